package nfsclient

import (
	"slices"
	"sync"
	"syscall"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// scratch is what one Read or Write works with.
type scratch struct {
	next   *scratch
	folios []*alloc.Folio // of the pages, referenced; nil where there is none
	fresh  []*alloc.Folio // allocated and not used yet
	ours   []*alloc.Folio // Write: those of folios that this call locked
}

// scratchPool keeps scratches; there are as many as calls at once ever were.
type scratchPool struct {
	mu   sync.Mutex
	idle *scratch
	size int // pages
}

func (p *scratchPool) get() *scratch {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.idle; s != nil {
		p.idle = s.next
		return s
	}
	return &scratch{folios: make([]*alloc.Folio, p.size), fresh: make([]*alloc.Folio, 0, p.size), ours: make([]*alloc.Folio, 0, p.size)}
}

func (p *scratchPool) put(s *scratch) {
	p.mu.Lock()
	s.next, p.idle = p.idle, s
	p.mu.Unlock()
}

// putFresh frees what was allocated and not used.
func (c *Client) putFresh(w *scratch) {
	c.arena.PutAll(w.fresh)
	w.fresh = w.fresh[:0]
}

// putFolios gives up the references to the first n pages.
func (c *Client) putFolios(w *scratch, n int) {
	c.arena.PutAll(w.folios[:n])
	clear(w.folios[:n])
}

// regular returns the inode of a regular file.
func (c *Client) regular(node vfs.NodeID) (*inode, error) {
	ino, err := c.tab.get(node)
	switch {
	case err != nil:
		return nil, err
	case ino.typ == vfs.TypeDirectory:
		return nil, syscall.EISDIR
	case !ino.isFile():
		return nil, syscall.EINVAL
	}
	return ino, nil
}

// Read fills v from the page cache; what is not there is read from the server,
// and what will likely be wanted next, too.
func (c *Client) Read(op *vfs.Op, node vfs.NodeID, off uint64, count uint32, v *vfs.Vec, attr *vfs.Attr) (eof bool, err error) {
	ino, err := c.regular(node)
	if err != nil {
		return false, err
	}
	if err := c.mayUse(op, ino, vfs.AccessRead|vfs.AccessExecute); err != nil {
		return false, err
	}
	if err := c.revalidate(op, ino); err != nil {
		return false, err
	}
	for {
		n, eof := ino.clip(off, min(count, c.MaxIO()), attr)
		if n == 0 {
			return eof, nil
		}
		if again, err := c.readPages(op, ino, off, n, v); !again {
			return eof && err == nil, err
		}
	}
}

// clip returns how many of count bytes from off are in the file, and whether
// they are its last, and fills attr if that is not nil.
func (ino *inode) clip(off uint64, count uint32, attr *vfs.Attr) (n int, eof bool) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if attr != nil {
		ino.visible(attr)
	}
	if off >= ino.size {
		return 0, true
	}
	left := ino.size - off
	return int(min(uint64(count), left)), uint64(count) >= left
}

// readPages fills v with n bytes from off, which are in the file and at most
// MaxIO. again reports that pages left the cache meanwhile: the file was changed.
func (c *Client) readPages(op *vfs.Op, ino *inode, off uint64, n int, v *vfs.Vec) (again bool, err error) {
	first := off >> alloc.PageShift
	pages := int((off+uint64(n)-1)>>alloc.PageShift-first) + 1
	w := c.scratch.get()
	defer c.scratch.put(w)
	if err := c.getPages(op, ino, first, pages, w); err != nil {
		return false, err
	}
	if op.NoWait && !allValid(w.folios[:pages]) {
		op.MustWait()
		c.putFolios(w, pages)
		return false, errWouldWait
	}
	c.readAhead(op, ino, first, pages)
	for _, f := range w.folios[:pages] {
		if gone, err := c.waitFolio(op, ino, f); gone || err != nil {
			c.putFolios(w, pages)
			return gone, err
		}
	}
	c.fillVec(w, off, n, v)
	return false, nil
}

// fillVec hands the folios over to v.
func (c *Client) fillVec(w *scratch, off uint64, n int, v *vfs.Vec) {
	v.Owner = c.arena
	skip := int(off & (alloc.PageSize - 1))
	for i := 0; n > 0; i++ {
		b := c.arena.Bytes(w.folios[i])[skip:]
		b = b[:min(len(b), n)]
		v.Bufs = append(v.Bufs, b)
		v.Pins = append(v.Pins, w.folios[i].Num())
		n -= len(b)
		skip = 0
		w.folios[i] = nil
	}
}

// getPages finds the pages in the cache and starts to read those that are not
// there. Every one of w.folios is set then, but not yet valid. Nothing is pinned
// while memory is waited for.
func (c *Client) getPages(op *vfs.Op, ino *inode, first uint64, pages int, w *scratch) error {
	if ino.m.GetRange(first, w.folios[:pages]) == pages {
		return nil
	}
	if op.MustWait() {
		c.putFolios(w, pages)
		return errWouldWait
	}
	err := c.allocMissing(op, ino, first, pages, w)
	if err == nil {
		err = c.fillHoles(op, ino, first, pages, w)
	}
	c.putFresh(w)
	if err != nil {
		c.putFolios(w, pages)
	}
	return err
}

// allValid reports whether nobody has to wait for a page of fs.
func allValid(fs []*alloc.Folio) bool {
	for _, f := range fs {
		if !isValid(f) {
			return false
		}
	}
	return true
}

func isValid(f *alloc.Folio) bool { return f.Has(alloc.Uptodate) && !f.Has(alloc.Locked) }

// allocMissing allocates a fresh folio for every page that w.folios has not. The
// references are given up meanwhile, and some pages may be gone afterwards; the
// second time there is one for each page.
func (c *Client) allocMissing(op *vfs.Op, ino *inode, first uint64, pages int, w *scratch) error {
	for need := 0; ; need = pages {
		missing := 0
		for _, f := range w.folios[:pages] {
			if f == nil {
				missing++
			}
		}
		if missing <= len(w.fresh) {
			return nil
		}
		c.putFolios(w, pages)
		c.putFresh(w)
		fresh := w.fresh[:max(need, missing)]
		if err := c.allocFor(op, fresh); err != nil {
			return err
		}
		slices.Reverse(fresh) // they are used from the end: neighbours stay neighbours
		w.fresh = fresh
		ino.m.GetRange(first, w.folios[:pages])
	}
}

// allocFor allocates for op. Who may not wait gets only what nobody else waits for.
func (c *Client) allocFor(op *vfs.Op, dst []*alloc.Folio) error {
	if !op.NoWait {
		return c.arena.AllocInto(op.Scope, gfp.Kernel, dst)
	}
	if c.arena.Free()-len(dst) >= c.arena.Watermarks().Low && c.arena.AllocInto(op.Scope, gfp.NoWait, dst) == nil {
		return nil
	}
	op.MustWait()
	return errWouldWait
}

// fillHoles inserts a fresh folio for each page that has none and sends READs,
// one per run of neighbours.
func (c *Client) fillHoles(op *vfs.Op, ino *inode, first uint64, pages int, w *scratch) error {
	who := identify(&op.Cred)
	for i := 0; i < pages; {
		if w.folios[i] != nil {
			i++
			continue
		}
		s, err := c.t.acquire(op.Scope, op.Cancel)
		if err != nil {
			return err
		}
		c.beginRead(s, op.Scope, &who, ino)
		for i < pages && w.folios[i] == nil && len(s.io.folios) < c.rpages {
			f, ours := c.insertLocked(ino, first+uint64(i), w)
			w.folios[i] = f
			i++
			if !ours {
				break
			}
			s.addRead(f)
		}
		c.sendOrDrop(s)
	}
	return nil
}

// insertLocked puts a fresh folio into the mapping, locked for filling, and
// returns it with a reference; or the one that somebody else put there.
func (c *Client) insertLocked(ino *inode, index uint64, w *scratch) (f *alloc.Folio, ours bool) {
	f = w.fresh[len(w.fresh)-1]
	f.Set(alloc.Locked)
	if old := ino.m.Insert(index, f); old != nil {
		f.Clear(alloc.Locked)
		return old, false
	}
	w.fresh = w.fresh[:len(w.fresh)-1]
	return f, true
}

// sendOrDrop sends the READ in s unless nothing was added.
func (c *Client) sendOrDrop(s *slot) {
	if len(s.io.folios) > 0 {
		c.sendRead(s)
		return
	}
	c.endIO(s.io.ino)
	c.t.release(s)
}
