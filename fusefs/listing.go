package fusefs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
)

// A listing caches what getdents64 returned for a directory: one page of the
// arena for each call. Blocks need not be adjacent, nor begin at the start: each
// says from which cookie it was read. A block is good for as long as the
// directory is what it was; one change drops them all.
//
// The pages are Private: reclaim gets them by asking ReleaseFolio only, which
// needs the directory's lock. Hence the rule of this file: whoever holds that
// lock allocates under NoFS.
type listing struct {
	// Guarded by the lock of the directory.
	blocks []block
	next   uint64 // index of the next page
	stamp  stamp  // of the directory when the blocks were read
	racy   int64  // ns; afterwards what was read within the directory's last tick is not trusted
	end    uint64 // the last cookie, if hasEnd
	hasEnd bool

	// hint is the index of the block that was found last. Readers set it under the
	// shared lock.
	hint atomic.Int64
}

// block is the entries of one page.
type block struct {
	f     *alloc.Folio // kept by the mapping, and by Private
	start uint64       // the cookie it was read from
	last  uint64       // the cookie of its last entry
	inc   bool         // the cookies only increase
	n     int          // bytes
}

// reset drops the index; the pages go with the mapping.
func (l *listing) reset() {
	l.blocks, l.hasEnd = l.blocks[:0], false
	l.hint.Store(0)
}

// dirent is struct linux_dirent64 without the name.
type dirent struct {
	ino  uint64
	next uint64 // d_off: the cookie
	size int
	typ  uint8
	name []byte
}

const (
	direntHeader = 19
	maxDirent    = direntHeader + maxName + 1 + 7
)

// parse returns the entry at the front of p.
func parseDirent(p []byte) (d dirent, ok bool) {
	if len(p) < direntHeader {
		return d, false
	}
	d.ino, d.next = binary.NativeEndian.Uint64(p), binary.NativeEndian.Uint64(p[8:])
	d.size, d.typ = int(binary.NativeEndian.Uint16(p[16:])), p[18]
	if d.size < direntHeader || d.size > len(p) {
		return d, false
	}
	d.name = p[direntHeader:d.size]
	if i := bytes.IndexByte(d.name, 0); i >= 0 {
		d.name = d.name[:i]
	}
	return d, true
}

// find returns the block that has the entry after cookie, and where in it. Who reads on
// finds it where the last one was found, or next to that.
func (s *Store) find(l *listing, cookie uint64) (*block, int) {
	hint := int(l.hint.Load())
	for i := hint; i < min(hint+2, len(l.blocks)); i++ {
		if off, ok := s.findIn(&l.blocks[i], cookie); ok {
			l.hint.Store(int64(i))
			return &l.blocks[i], off
		}
	}
	for i := range l.blocks {
		if l.blocks[i].start == cookie {
			l.hint.Store(int64(i))
			return &l.blocks[i], 0
		}
	}
	for i := range l.blocks {
		if off, ok := s.findIn(&l.blocks[i], cookie); ok {
			l.hint.Store(int64(i))
			return &l.blocks[i], off
		}
	}
	return nil, 0
}

// findIn returns where in b the entry after cookie is.
func (s *Store) findIn(b *block, cookie uint64) (off int, ok bool) {
	if b.start == cookie {
		return 0, true
	}
	if b.inc && (cookie <= b.start || cookie >= b.last) {
		return 0, false
	}
	p := s.arena.Bytes(b.f)[:b.n]
	for {
		next, size := direntNext(p[off:])
		if size == 0 {
			return 0, false
		}
		if off += size; next == cookie && off < b.n {
			return off, true
		}
	}
}

// direntNext returns the cookie and the size of the entry at the front of p; 0 if there
// is none.
func direntNext(p []byte) (next uint64, size int) {
	if len(p) < direntHeader {
		return 0, 0
	}
	size = int(binary.NativeEndian.Uint16(p[16:]))
	if size < direntHeader || size > len(p) {
		return 0, 0
	}
	return binary.NativeEndian.Uint64(p[8:]), size
}

// valid reports whether the blocks are what the directory contains. It was
// looked at just now.
func (in *inode) listingValid() bool {
	in.am.Lock()
	now := stampOf(&in.st)
	in.am.Unlock()
	l := in.dir
	return len(l.blocks) > 0 && l.stamp == now && (l.racy == 0 || time.Now().UnixNano() < l.racy)
}

// dropListing gives up every page of the listing. The lock is held exclusively.
func (in *inode) dropListing() {
	if len(in.dir.blocks) > 0 {
		in.dir.reset()
		in.m.Truncate(0)
	}
}

// begin starts an empty listing of the directory as it is now.
func (in *inode) beginListing() {
	in.dropListing()
	l := in.dir
	in.am.Lock()
	l.stamp = stampOf(&in.st)
	in.am.Unlock()
	l.next, l.racy = 0, 0
	// A change in the same tick of the kernel's clock as the last one may
	// not show in the times.
	now := time.Now().UnixNano()
	if age := now - (l.stamp.mtime.Sec*1e9 + int64(l.stamp.mtime.Nsec)); age < racyNs {
		l.racy = now + racyNs
	}
}

// readBlocks is how many pages of a large directory are read at once. To go to a place costs
// ext4 a block of the directory, which it has to sort again.
const readBlocks = 16

// readAfter appends blocks with the entries after cookie, and returns how many; 0 is the end
// of the directory. The lock is held exclusively, so pages are allocated under NoFS; one is
// waited for.
func (s *Store) readAfter(op *vfs.Op, in *inode, fd int, cookie uint64) (n int, err error) {
	var all [max(readBlocks, orderedBlocks)]*alloc.Folio
	have := len(in.dir.blocks)
	pages := all[:min(s.readAhead(have), s.maxBlocks-have)]
	if s.arena.AllocInto(op.Scope.NoFS(), gfp.NoWait, pages) != nil {
		pages = pages[:1]
		if err := s.arena.AllocInto(op.Scope.NoFS(), gfp.Kernel, pages); err != nil {
			return 0, fmt.Errorf("%w: %w", vfs.ErrJukebox, err)
		}
	}
	n, _, err = s.readDir(in, fd, cookie, pages)
	s.arena.PutAll(pages[n:])
	if n > 0 {
		err = nil // it shows when somebody reads on
	}
	return n, err
}

// readAhead returns how many pages are worth reading into a listing that has some.
func (s *Store) readAhead(have int) int {
	if s.ordered != nil {
		return orderedBlocks // it costs as much as one
	}
	return min(1+2*have, readBlocks)
}

// readDir appends a block for each of pages, which it takes over, as long as the directory,
// open as fd, has entries after cookie. It returns how many; end says that there is nothing
// behind them, if that is known.
func (s *Store) readDir(in *inode, fd int, cookie uint64, pages []*alloc.Folio) (n int, end bool, err error) {
	if s.ordered != nil {
		return s.ordered.read(s, in, fd, cookie, pages)
	}
	if err := seekDir(fd, cookie); err != nil {
		return 0, false, err
	}
	for i, f := range pages {
		n, err := fillDirents(fd, s.arena.Bytes(f))
		if n == 0 || err != nil {
			return i, false, err
		}
		cookie = s.addBlock(in, f, cookie, n).last
	}
	return len(pages), false, nil
}

// fillDirents reads entries until there is no room in p for another. A signal, as the
// runtime sends them to its threads, ends getdents64(2) early.
func fillDirents(fd int, p []byte) (n int, err error) {
	for n == 0 || len(p)-n >= maxDirent {
		more, err := getdents(fd, p[n:])
		if more == 0 || err != nil {
			if n > 0 {
				err = nil // it shows when somebody reads on
			}
			return n, err
		}
		n += more
	}
	return n, nil
}

// seekDir goes behind the entry with a cookie. The lock of the directory is held exclusively
// from here on to the last getdents.
func seekDir(fd int, cookie uint64) error {
	if _, err := unix.Seek(fd, int64(cookie), unix.SEEK_SET); err != nil {
		return vfs.ErrBadCookie
	}
	return nil
}

func getdents(fd int, p []byte) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_GETDENTS64, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	switch e {
	case 0:
		return int(n), nil
	case unix.ENOENT:
		return 0, vfs.ErrStale
	case unix.EINVAL:
		return 0, vfs.ErrBadCookie
	}
	return 0, e
}

// addBlock makes f part of the listing, which takes the reference over.
func (s *Store) addBlock(in *inode, f *alloc.Folio, cookie uint64, n int) *block {
	l := in.dir
	f.Set(alloc.Private | alloc.Uptodate)
	if old := in.m.Insert(l.next, f); old != nil {
		panic("fusefs: a page of a listing was there already")
	}
	s.arena.Put(f) // the mapping keeps it, and nobody takes it without the lock
	l.next++
	b := block{f: f, start: cookie, n: n, last: cookie, inc: true}
	for p := s.arena.Bytes(f)[:n]; ; {
		next, size := direntNext(p)
		if size == 0 {
			break
		}
		b.inc = b.inc && next > b.last
		b.last, p = next, p[size:]
	}
	l.blocks = append(l.blocks, b)
	return &l.blocks[len(l.blocks)-1]
}

// relist brings the listing up to date after a change of the directory. A small
// one that somebody uses is read again at once, with the pages of the old one
// still in place; others are dropped. The lock is held exclusively, so the pages
// are allocated under NoFS: all of them, or none.
func (s *Store) relist(op *vfs.Op, in *inode, fd int) {
	l := in.dir
	n := len(l.blocks)
	if n == 0 {
		return
	}
	if l.blocks[n-1].n > alloc.PageSize-maxDirent {
		n++ // the last page may be too full for another entry
	}
	var fresh [maxRelist + 1]*alloc.Folio
	if n > len(fresh) || !l.hasEnd || s.arena.AllocInto(op.Scope.NoFS(), gfp.Kernel, fresh[:n]) != nil {
		in.dropListing()
		return
	}
	in.beginListing()
	read, end, err := s.readDir(in, fd, 0, fresh[:n])
	s.arena.PutAll(fresh[read:n])
	if err == nil && (end || s.ordered == nil && atEnd(fd)) { // an error shows when somebody lists
		l.end, l.hasEnd = l.last(), true
	}
}

// last returns the cookie of the last entry that was read.
func (l *listing) last() uint64 {
	if len(l.blocks) == 0 {
		return 0
	}
	return l.blocks[len(l.blocks)-1].last
}

// atEnd reports whether the directory has no entry where it is. One that does not fit is an
// error.
func atEnd(fd int) bool {
	var p [24]byte
	n, err := getdents(fd, p[:])
	return n == 0 && err == nil
}

// ReleaseFolio implements pagecache.Ops. A page of a listing costs the whole
// listing, and the directory's lock. Those who others wait for to get memory,
// kswapd and Memalloc scopes, do not wait for that lock: its holder may be one of
// the others. Dirty pages are the flusher's business.
func (s *Store) ReleaseFolio(m *pagecache.Mapping, f *alloc.Folio, sc gfp.Scope, _ gfp.Flags) pagecache.Verdict {
	in := m.Host.(*inode)
	if in.dir == nil {
		s.bdi.WakeFlusher()
		return pagecache.Started
	}
	task := sc.Task()
	if sc.IsKswapd() || sc.IsMemalloc() {
		if !in.lock.TryLock(task) {
			return pagecache.Busy
		}
	} else {
		in.lock.Lock(task, "direct reclaim")
	}
	in.drop()
	in.lock.Unlock(task)
	return pagecache.Freed
}
