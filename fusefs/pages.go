package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// span is a range of bytes of a file, and the pages it touches.
type span struct {
	off   uint64
	n     int
	first uint64 // index of the first page
	pages int
}

func spanOf(off uint64, n int) span {
	first := off >> alloc.PageShift
	last := (off + uint64(n) + alloc.PageSize - 1) >> alloc.PageShift
	return span{off: off, n: n, first: first, pages: int(last - first)}
}

// in returns what part of page i of sp belongs to the range.
func (sp span) in(i int) (lo, hi int) {
	start := (sp.first + uint64(i)) << alloc.PageShift
	lo, hi = 0, alloc.PageSize
	if start < sp.off {
		lo = int(sp.off - start)
	}
	if end := sp.off + uint64(sp.n); start+alloc.PageSize > end {
		hi = int(end - start)
	}
	return lo, hi
}

// gather takes the pages of sp that are in memory and allocates folios for the
// others, with no lock held: this is where a request enters direct reclaim. Who
// has to wait for memory lets go of every page first, for others wait, too. The
// second time the cache has lost pages meanwhile, and all are allocated anew:
// then ready cannot fail.
func (s *Store) gather(op *vfs.Op, in *inode, sp span, b *scratch, again bool) error {
	n := sp.pages - b.given
	if !again {
		b.fs = b.fs[:sp.pages]
		in.m.GetRange(sp.first, b.fs)
		n = missing(b.fs[b.given:])
		plenty := s.arena.Free()-n >= s.arena.Watermarks().Low
		if n == 0 || plenty && b.alloc(s.arena, op.Scope, gfp.NoWait, n) == nil {
			return nil
		}
	}
	if op.MustWait() {
		return errWouldWait
	}
	given := b.given
	b.release(s.arena)
	b.fs, b.given = b.fs[:sp.pages], given
	return b.alloc(s.arena, op.Scope, gfp.Kernel, n)
}

func missing(fs []*alloc.Folio) int {
	n := 0
	for _, f := range fs {
		if f == nil {
			n++
		}
	}
	return n
}

// ready looks again for the pages of sp with the inode's lock held, and reports
// whether there are spare folios for all that are missing. A page that was
// dropped meanwhile (truncated, out of date) is missing.
func (s *Store) ready(in *inode, sp span, b *scratch) bool {
	for i, f := range b.fs {
		if f != nil && f.Owner() == 0 {
			s.arena.Put(f)
			f = nil
		}
		if f == nil {
			f = in.m.Get(sp.first + uint64(i))
		}
		b.fs[i] = f
	}
	return missing(b.fs[b.given:]) <= len(b.spare)
}

// fillPage reads page index through fd into f, which nobody else sees. What the
// backing file does not have is zero.
func (s *Store) fillPage(fd int, index uint64, f *alloc.Folio, size uint64) error {
	p := s.arena.Bytes(f)
	start := index << alloc.PageShift
	n := 0
	for start < size && n < len(p) {
		got, err := unix.Pread(fd, p[n:], int64(start)+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if got == 0 {
			break
		}
		n += got
	}
	clear(p[clip(size, start, n):])
	return nil
}

// clip returns how many of the n bytes from start lie in a file of size bytes.
func clip(size, start uint64, n int) int {
	if start >= size {
		return 0
	}
	return int(min(size-start, uint64(n)))
}
