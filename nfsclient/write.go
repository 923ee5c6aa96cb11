package nfsclient

import (
	"errors"
	"math"
	"syscall"

	"loopnfs/alloc"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// Write puts the bytes of v into the page cache and, if how asks for it, on
// stable storage.
func (c *Client) Write(op *vfs.Op, node vfs.NodeID, off uint64, v *vfs.Vec, how vfs.Stable, res *vfs.WriteResult) error {
	*res = vfs.WriteResult{Stable: how, Verifier: c.verf}
	ino, err := c.regular(node)
	if err != nil {
		return err
	}
	if err := c.mayUse(op, ino, vfs.AccessModify|vfs.AccessExtend); err != nil {
		return err
	}
	if err := ino.wbErr.Refuse(op.File); err != nil {
		return err
	}
	total := v.Len()
	atEnd := off == vfs.AtEnd
	if atEnd {
		if off, err = c.end(op, ino); err != nil {
			return err
		}
	}
	if op.NoWait && !c.canWriteNow(op, off, total, how) {
		op.MustWait()
		return errWouldWait
	}
	if uint64(total) > math.MaxInt64-min(off, math.MaxInt64) || c.maxSize != 0 && off+uint64(total) > c.maxSize {
		return syscall.EFBIG
	}
	done := 0
	for done < total {
		n, err := c.writeSome(op, ino, off+uint64(done), atEnd && done == 0, v, done, total-done)
		if err == errMoved {
			off = c.sizeOf(ino)
			continue
		}
		if err != nil {
			if done == 0 {
				return err
			}
			break // what was taken counts
		}
		done += n
		if how == vfs.Unstable {
			c.bdi.Streamed(n >> alloc.PageShift)
		}
		if !op.NoWait {
			c.bdi.BalanceDirtyPages(op.Scope, op.Cancel)
		}
	}
	res.Count = uint32(done)
	if how != vfs.Unstable && done > 0 {
		return c.sync(op, ino)
	}
	return nil
}

// end returns the size of ino, as new as its attributes have to be.
func (c *Client) end(op *vfs.Op, ino *inode) (uint64, error) {
	var attr vfs.Attr
	err := c.getAttr(op, ino, &attr)
	return attr.Size, err
}

// errMoved says that the end of the file is not where it was.
var errMoved = errors.New("nfsclient: the end of the file has moved")

// canWriteNow reports whether a write of n bytes would be one call of writeSome, and nothing
// to wait for after it.
func (c *Client) canWriteNow(op *vfs.Op, off uint64, n int, how vfs.Stable) bool {
	skip := int(off & (alloc.PageSize - 1))
	return how == vfs.Unstable && skip+n <= c.scratch.size*alloc.PageSize && !c.bdi.Exceeded(op.Scope)
}

// writeSome writes up to left bytes from offset at of v to offset off, as many
// as a scratch has pages for, and returns how many. If atEnd says that off is to be the end of
// the file, and it is not, the error is errMoved.
func (c *Client) writeSome(op *vfs.Op, ino *inode, off uint64, atEnd bool, v *vfs.Vec, at, left int) (int, error) {
	first := off >> alloc.PageShift
	skip := int(off & (alloc.PageSize - 1))
	n := min(left, c.scratch.size*alloc.PageSize-skip)
	pages := alloc.Pages(skip + n)
	w := c.scratch.get()
	defer c.scratch.put(w)
	ino.m.GetRange(first, w.folios[:pages])
	for {
		if err := c.allocMissing(op, ino, first, pages, w); err != nil {
			return 0, err
		}
		c.putFolios(w, pages)
		written, err := c.writeLocked(op, ino, off, n, atEnd, v, at, w)
		if err == errMorePages {
			continue // pages were freed since they were counted
		}
		c.putFresh(w)
		return written, err
	}
}

// writeLocked copies n bytes under the lock of the inode, or as many as it can, and returns
// how many.
func (c *Client) writeLocked(op *vfs.Op, ino *inode, off uint64, n int, atEnd bool, v *vfs.Vec, at int, w *scratch) (int, error) {
	if err := ino.lockFor(op); err != nil {
		return 0, err
	}
	defer ino.unlock(op.Scope)
	// Whole pages are sent: one that is out of date would undo what others have written.
	ino.mu.Lock()
	stale, moved := ino.outdated() || ino.suspect, atEnd && ino.size != off
	ino.mu.Unlock()
	if moved {
		return 0, errMoved
	}
	if stale {
		if op.MustWait() {
			return 0, errWouldWait
		}
		if err := c.makeStable(op, ino); err != nil { // to be dropped, too
			return 0, err
		}
		c.invalidate(ino)
	}
	skip := int(off & (alloc.PageSize - 1))
	pages := alloc.Pages(skip + n)
	ready, err := c.preparePages(op, ino, off, n, w, pages)
	if err == syscall.EACCES && ready > 0 {
		n, err = ready*alloc.PageSize-skip, nil // what is behind is for the next call
	}
	if err == nil {
		c.copyIn(w, ready, off, n, v, at)
		ino.grow(off+uint64(n), c.now(), identify(&op.Cred))
		ino.m.MarkDirty(w.folios[:ready]...)
		ino.settle()
	}
	ino.m.Unlock(err == nil, w.ours...)
	c.putFolios(w, pages)
	if err == syscall.EACCES {
		return c.writeThrough(op, ino, off, v, at, min(n, alloc.PageSize-skip))
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// errMorePages says that fewer pages were allocated than are needed now.
var errMorePages = errors.New("nfsclient: more pages needed")

// preparePages makes every page that [off, off+n) touches ready to be written
// to: in the mapping, referenced, and valid where the bytes do not go
// (write_begin). It returns how many of them, from the first, are. ino.sem is held.
func (c *Client) preparePages(op *vfs.Op, ino *inode, off uint64, n int, w *scratch, pages int) (int, error) {
	first := off >> alloc.PageShift
	w.ours = w.ours[:0]
	ino.m.GetRange(first, w.folios[:pages])
	if op.NoWait && !c.canPrepareNow(ino, off, n, w.folios[:pages]) {
		op.MustWait()
		return 0, errWouldWait
	}
	for i := range pages {
		if err := c.preparePage(op, ino, first+uint64(i), off, off+uint64(n), w, i); err != nil {
			return i, err
		}
	}
	return pages, nil
}

// writeThrough writes n bytes of one page straight to the server: the caller may write the
// file, but not read what else is in the page. ino.sem is held.
func (c *Client) writeThrough(op *vfs.Op, ino *inode, off uint64, v *vfs.Vec, at, n int) (int, error) {
	s, err := c.begin(op, nfs3.ProcWrite)
	if err != nil {
		return 0, err
	}
	args := nfs3.WriteArgs{Handle: ino.fh, Offset: off, Count: uint32(n), Stable: vfs.FileSync}
	args.Encode(&s.enc)
	data := make([]byte, n)
	v.CopyTo(data, at)
	s.enc.FixedOpaque(data)
	start := c.seq.Add(1)
	var res nfs3.WriteResult
	_, err = c.call(op, s, ino.ino, func(d *xdr.Decoder) error { return res.Decode(d) })
	if err != nil {
		ino.expire()
		return 0, err
	}
	c.updateWCC(ino, &res.WCC, start, false)
	c.invalidate(ino)
	if err = nfs3.Errno(res.Status); err == nil && (res.Count == 0 || res.Count > args.Count) {
		err = syscall.EIO
	}
	if err != nil {
		return 0, err
	}
	ino.mu.Lock()
	ino.size = max(ino.size, off+uint64(res.Count))
	ino.mu.Unlock()
	return int(res.Count), nil
}

// canPrepareNow reports whether fs, which are the pages that [off, off+n) touches as far as
// they are there, need nothing of the server: it is asked before anything is done.
func (c *Client) canPrepareNow(ino *inode, off uint64, n int, fs []*alloc.Folio) bool {
	size, end := c.sizeOf(ino), off+uint64(n)
	for i, f := range fs {
		start := (off>>alloc.PageShift + uint64(i)) << alloc.PageShift
		switch {
		case f != nil && isValid(f):
		case f != nil && f.Has(alloc.Locked):
			return false
		case start >= size && f == nil:
		case !coversPage(start, off, end, size):
			return false
		}
	}
	return true
}

// coversPage reports whether a write of [from, to) leaves nothing of the page at start as it
// was, in a file of size bytes.
func coversPage(start, from, to, size uint64) bool {
	return from <= start && to >= min(start+alloc.PageSize, max(size, start))
}

// preparePage is preparePages for page index, the i-th, which is w.folios[i] if it was
// there; [from, to) will be written.
func (c *Client) preparePage(op *vfs.Op, ino *inode, index, from, to uint64, w *scratch, i int) error {
	for start := index << alloc.PageShift; ; w.folios[i] = ino.m.Get(index) {
		f := w.folios[i]
		if f != nil && isValid(f) {
			return nil
		}
		size := c.sizeOf(ino)
		covered := coversPage(start, from, to, size)
		ours := false
		if f == nil {
			if len(w.fresh) == 0 {
				return errMorePages
			}
			f, ours = c.insertLocked(ino, index, w)
			w.folios[i] = f
		} else {
			ours = covered && ino.m.Relock(f)
		}
		if ours && (covered || start >= size) {
			w.ours = append(w.ours, f)
			c.clearOutside(f, from, to)
			return nil
		}
		if op.MustWait() {
			if ours {
				ino.m.Unlock(false, f)
			}
			return errWouldWait
		}
		if ours {
			if err := c.fillOne(op, ino, f); err != nil {
				return err
			}
		}
		gone, err := c.waitFolio(op, ino, f)
		if !gone || err != nil {
			return err
		}
		w.folios[i] = nil
		c.arena.Put(f)
	}
}

// fillOne reads the folio f, which the caller has locked.
func (c *Client) fillOne(op *vfs.Op, ino *inode, f *alloc.Folio) error {
	s, err := c.t.acquire(op.Scope, op.Cancel)
	if err != nil {
		ino.m.Unlock(false, f)
		return err
	}
	who := identify(&op.Cred)
	c.beginRead(s, op.Scope, &who, ino)
	s.addRead(f)
	c.sendRead(s)
	return nil
}

// clearOutside zeroes what [from, to) does not cover of f.
func (c *Client) clearOutside(f *alloc.Folio, from, to uint64) {
	b := c.arena.Bytes(f)
	start := f.Index << alloc.PageShift
	if from > start {
		clear(b[:from-start])
	}
	if to < start+alloc.PageSize {
		clear(b[to-start:])
	}
}

// copyIn copies n bytes from offset at of v to offset off of the file.
func (c *Client) copyIn(w *scratch, pages int, off uint64, n int, v *vfs.Vec, at int) {
	skip := int(off & (alloc.PageSize - 1))
	for _, f := range w.folios[:pages] {
		b := c.arena.Bytes(f)[skip:]
		b = b[:min(len(b), n)]
		v.CopyTo(b, at)
		at += len(b)
		n -= len(b)
		skip = 0
	}
}

func (c *Client) sizeOf(ino *inode) uint64 {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	return ino.size
}

// grow makes the file at least size bytes long, before its new pages are dirty;
// settle is called when they are.
func (ino *inode) grow(size uint64, now vfs.Time, who identity) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	ino.pending++
	ino.size = max(ino.size, size)
	ino.mtime = now
	ino.writer, ino.hasWrite = who, true
}

func (ino *inode) settle() {
	ino.mu.Lock()
	ino.pending--
	ino.mu.Unlock()
}
