package nfsclient

import (
	"slices"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// readAhead is what is known of how a file is read (struct file_ra_state).
type readAhead struct {
	next uint64 // the page that a sequential reader wants next
	end  uint64 // first page that was not asked for ahead
	size int    // pages to be ahead
}

// plan notes that pages from first are read now and returns which pages to ask
// for ahead: none unless the reader is sequential; each time more, up to limit.
func (ra *readAhead) plan(first uint64, pages, step, limit int) (from uint64, n int) {
	// Readers at once arrive out of order: a little way off is sequential too.
	sequential := first <= ra.next && first+uint64(pages+step) > ra.next
	next := first + uint64(pages)
	if !sequential || first == 0 && ra.next != 0 && next < ra.next {
		*ra = readAhead{next: next, end: next}
		return 0, 0
	}
	ra.next = max(ra.next, next)
	ra.end = max(ra.end, ra.next)
	ra.size = min(max(2*ra.size, step), limit)
	if ahead := int(ra.end - ra.next); ahead > ra.size/2 {
		return 0, 0 // enough is under way
	}
	from = ra.end
	ra.end = ra.next + uint64(ra.size)
	return from, int(ra.end - from)
}

// readAhead asks for pages that a sequential reader will want. It waits for
// nothing: neither memory nor a slot.
func (c *Client) readAhead(op *vfs.Op, ino *inode, first uint64, pages int) {
	limit := c.rpages * c.cfg.ReadAhead
	if limit <= 0 {
		return
	}
	ino.mu.Lock()
	from, n := ino.ra.plan(first, pages, c.rpages, limit)
	last := (ino.size + alloc.PageSize - 1) >> alloc.PageShift
	ino.mu.Unlock()
	if from >= last {
		return
	}
	n = min(n, int(last-from))
	who := identify(&op.Cred)
	for n > 0 {
		k := min(n, c.rpages)
		if !c.sendAhead(op.Scope, &who, ino, from, k) {
			ino.mu.Lock()
			ino.ra.end = min(ino.ra.end, max(from, ino.ra.next))
			ino.mu.Unlock()
			return
		}
		from += uint64(k)
		n -= k
	}
}

// sendAhead sends one READ of read-ahead and reports whether there were means to.
func (c *Client) sendAhead(sc gfp.Scope, who *identity, ino *inode, from uint64, n int) bool {
	if c.arena.Free()-n < c.arena.Watermarks().Low || c.aheadPages.Load()+int64(n) > c.aheadLimit {
		return false
	}
	s := c.t.tryAcquire(gfp.Scope{})
	if s == nil {
		return false
	}
	w := c.scratch.get()
	defer c.scratch.put(w)
	c.beginRead(s, sc, who, ino)
	s.own.Begin("read-ahead")
	s.own.Hold(folioResource(ino))
	s.io.ahead = true
	ok := c.addAhead(sc, ino, from, n, w, s)
	c.putFresh(w)
	c.aheadPages.Add(int64(len(s.io.folios)))
	c.sendOrDrop(s)
	return ok
}

// addAhead adds the pages that are not in the cache, up to the first that is
// behind a gap. It reports whether memory was there.
func (c *Client) addAhead(sc gfp.Scope, ino *inode, from uint64, n int, w *scratch, s *slot) bool {
	w.fresh = w.fresh[:n]
	if err := c.arena.AllocInto(sc, gfp.NoWait, w.fresh); err != nil {
		w.fresh = w.fresh[:0]
		return false
	}
	slices.Reverse(w.fresh) // as in allocMissing
	for i := range n {
		f, ours := c.insertLocked(ino, from+uint64(i), w)
		if ours {
			s.addRead(f)
		}
		c.arena.Put(f)
		if !ours && len(s.io.folios) > 0 {
			break
		}
	}
	return true
}
