package fusefs

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
)

// countsEntries reports whether the d_off of the file system with this magic number is the
// number of an entry, which is another one's when some before it are gone: who lists and
// removes would miss as many as were removed. So it is in directories of which an overlay
// merges several, and where the kernel lists what it has in its cache of names.
func countsEntries(magic int64) bool {
	switch magic {
	case unix.OVERLAYFS_SUPER_MAGIC, unix.RAMFS_MAGIC:
		return true
	case unix.TMPFS_MAGIC:
		return kernelBefore(6, 6) // it has offsets that stay since then
	}
	return false
}

func kernelBefore(major, minor int) bool {
	var u unix.Utsname
	var x, y int
	if unix.Uname(&u) != nil {
		return true
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &x, &y)
	return err != nil || x < major || x == major && y < minor
}

// ordered lists directories by cookies of our own, in their order: a hash of the name, which
// stays what it is whatever comes and goes. A directory is read as a whole for each listBuffer
// bytes of what it has.
type ordered struct {
	mu   sync.Mutex // below the lock of the directory
	raw  []byte     // what the kernel has returned
	buf  []byte     // entries that are to be listed
	ents []orderedEntry
}

// orderedEntry is an entry in ordered.buf.
type orderedEntry struct {
	cookie    uint64
	off, size int
}

// orderedBlocks is how many pages of entries are kept of one reading of the directory.
const (
	orderedBlocks = 64
	listBuffer    = orderedBlocks << alloc.PageShift
)

func newOrdered() *ordered {
	return &ordered{
		raw: make([]byte, listBuffer/8), buf: make([]byte, 0, listBuffer),
		ents: make([]orderedEntry, 0, listBuffer/(direntHeader+1)),
	}
}

// cookieOf returns the cookie of a name. Nobody can make a name that has the cookie of
// another's.
func cookieOf(name []byte) uint64 {
	switch string(name) {
	case ".":
		return 1
	case "..":
		return 2
	}
	sum := sha256.Sum256(name)
	return max(binary.BigEndian.Uint64(sum[:])>>2, 3)
}

// read appends blocks with the entries of in, open as fd, after cookie. It takes over as many
// of pages as it returns; end says that there are no more entries. The lock of the directory
// is held exclusively.
func (o *ordered) read(s *Store, in *inode, fd int, cookie uint64, pages []*alloc.Folio) (n int, end bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all, err := o.gather(fd, cookie)
	if err != nil {
		return 0, false, err
	}
	slices.SortFunc(o.ents, func(a, b orderedEntry) int { return cmp.Compare(a.cookie, b.cookie) })
	left := o.ents
	for n < len(pages) && len(left) > 0 {
		var size int
		size, left = o.pack(s.arena.Bytes(pages[n]), left)
		cookie = s.addBlock(in, pages[n], cookie, size).last
		n++
	}
	return n, all && len(left) == 0, nil
}

// pack puts the entries that fit into p, and returns how many bytes they are, and the rest.
func (o *ordered) pack(p []byte, ents []orderedEntry) (n int, rest []orderedEntry) {
	for i, e := range ents {
		if n+e.size > len(p) {
			return n, ents[i:]
		}
		copy(p[n:], o.buf[e.off:e.off+e.size])
		binary.NativeEndian.PutUint64(p[n+8:], e.cookie)
		n += e.size
	}
	return n, nil
}

// gather reads the directory and keeps those entries after cookie that come first; all says
// that these are all.
func (o *ordered) gather(fd int, cookie uint64) (all bool, err error) {
	o.buf, o.ents = o.buf[:0], o.ents[:0]
	if err := seekDir(fd, 0); err != nil {
		return false, err
	}
	limit := uint64(1 << 63)
	for {
		n, err := getdents(fd, o.raw)
		if n == 0 || err != nil {
			return limit == 1<<63, err
		}
		for p := o.raw[:n]; ; {
			d, ok := parseDirent(p)
			if !ok {
				break
			}
			if c := cookieOf(d.name); c > cookie && c < limit {
				if len(o.buf)+d.size > cap(o.buf) {
					limit = o.halve()
				}
				if c < limit {
					o.ents = append(o.ents, orderedEntry{c, len(o.buf), d.size})
					o.buf = append(o.buf, p[:d.size]...)
				}
			}
			p = p[d.size:]
		}
	}
}

// halve drops those entries that come last, and returns the cookie of the first of them.
func (o *ordered) halve() (limit uint64) {
	slices.SortFunc(o.ents, func(a, b orderedEntry) int { return cmp.Compare(a.cookie, b.cookie) })
	keep := len(o.ents) / 2
	limit = o.ents[keep].cookie
	o.ents = o.ents[:keep]
	slices.SortFunc(o.ents, func(a, b orderedEntry) int { return cmp.Compare(a.off, b.off) })
	n := 0
	for i := range o.ents {
		e := &o.ents[i]
		copy(o.buf[n:], o.buf[e.off:e.off+e.size])
		e.off = n
		n += e.size
	}
	o.buf = o.buf[:n]
	return limit
}
