package nfsclient

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// newer compares two points in time.
func newer(a, b vfs.Time) bool {
	return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec
}

// update takes in attributes that a call begun at start returned
// (nfs_refresh_inode). Replies come in any order: attributes that are older than
// those known are ignored.
func (c *Client) update(ino *inode, a *vfs.Attr, start uint64) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	c.updateLocked(ino, a, start)
}

func (c *Client) updateLocked(ino *inode, a *vfs.Attr, start uint64) {
	later := newer(a.Ctime, ino.attr.Ctime) || a.Ctime == ino.attr.Ctime && a.Size > ino.attr.Size // in one tick
	if start < ino.barrier || start <= ino.applied && !later {
		return
	}
	ino.applied = c.seq.Add(1) // calls that have begun may be answered with what was before
	if a.Ctime != ino.attr.Ctime {
		ino.dropAccess()
	}
	c.take(ino, a)
	// While data is on its way from here, a change may well be our own.
	if ino.hasBase && a.Pre() != ino.base && ino.writes == 0 && !ino.dirty() {
		ino.stale = true
	}
	if !ino.hasBase {
		ino.base, ino.hasBase = a.Pre(), true
	}
}

// updateWCC takes in what a call that changed ino from here returned
// (nfs_post_op_update_inode_force_wcc). alone says that no other such call
// overlapped with it, so that its pre-op attributes tell of changes by others.
func (c *Client) updateWCC(ino *inode, w *vfs.WCC, start uint64, alone bool) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	c.updateWCCLocked(ino, w, start, alone)
}

func (c *Client) updateWCCLocked(ino *inode, w *vfs.WCC, start uint64, alone bool) {
	if alone && w.HasPre && ino.hasBase && w.Pre != ino.base {
		ino.stale = true
	}
	if !w.HasPost || start < ino.barrier || newer(ino.attr.Ctime, w.Post.Ctime) {
		ino.fetched = 0
		return
	}
	if !alone && w.Post.Ctime == ino.attr.Ctime && w.Post.Size < ino.attr.Size {
		return // of two in one tick of the server's clock, the earlier one
	}
	// Attributes read by a call that began before now may be from before this
	// change.
	ino.applied = c.seq.Add(1)
	c.take(ino, &w.Post)
	ino.base, ino.hasBase = w.Post.Pre(), true
}

// take makes a the attributes of the server. The size is ours as long as there
// is data that a server which restarts could lack: with a smaller size, what is
// sent again would be cut. ino.mu is held.
func (c *Client) take(ino *inode, a *vfs.Attr) {
	if a.Mode != ino.attr.Mode || a.UID != ino.attr.UID || a.GID != ino.attr.GID {
		ino.dropAccess()
	}
	ino.attr, ino.fetched = *a, c.ticks()
	switch {
	case !ino.dirty() && !ino.hasUnstable():
		ino.size, ino.grown = a.Size, false
	case a.Size > ino.size: // by somebody else
		if !ino.grown {
			ino.grown, ino.ours = true, ino.size
		}
		ino.size, ino.stale = a.Size, true
	}
}

// adopt makes the attributes known now those of the cached pages, after all that
// was changed here was committed.
func (c *Client) adopt(ino *inode) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if !ino.outdated() && !ino.dirty() && !ino.hasUnstable() {
		ino.base, ino.hasBase = ino.attr.Pre(), true
	}
}

// expire makes the next use of the attributes ask the server.
func (ino *inode) expire() {
	ino.mu.Lock()
	ino.fetched = 0
	ino.mu.Unlock()
}

// isFresh reports whether the attributes can be used. ino.mu is held.
func (c *Client) isFresh(ino *inode) bool {
	return ino.fetched != 0 && c.ticks()-ino.fetched < int64(c.cfg.AttrTimeout)
}

// visible returns the attributes as users see them: what was written here and
// not sent yet counts. ino.mu is held.
func (ino *inode) visible(a *vfs.Attr) {
	*a = ino.attr
	if ino.isFile() {
		a.Size = ino.size
		if ino.dirty() {
			a.Mtime, a.Ctime = ino.mtime, ino.mtime
		}
	}
}

// GetAttr returns the attributes of node.
func (c *Client) GetAttr(op *vfs.Op, node vfs.NodeID, attr *vfs.Attr) error {
	ino, err := c.tab.get(node)
	if err != nil {
		return err
	}
	return c.getAttr(op, ino, attr)
}

func (c *Client) getAttr(op *vfs.Op, ino *inode, attr *vfs.Attr) error {
	ino.mu.Lock()
	ok := c.isFresh(ino)
	ino.mu.Unlock()
	if !ok {
		if err := c.fetchAttr(op, ino); err != nil {
			return err
		}
	}
	ino.mu.Lock()
	ino.visible(attr)
	ino.mu.Unlock()
	return nil
}

// fetchAttr asks the server for the attributes of ino.
func (c *Client) fetchAttr(op *vfs.Op, ino *inode) error {
	start := c.seq.Add(1)
	var attr vfs.Attr
	err := c.getAttrOf(op, &ino.fh, ino.ino, &attr)
	if err == nil && attr.Type != ino.typ {
		err = vfs.ErrStale
	}
	if err != nil {
		return err
	}
	c.update(ino, &attr, start)
	return nil
}

// getAttrOf is GETATTR of a handle.
func (c *Client) getAttrOf(op *vfs.Op, fh *nfs3.FileHandle, num uint64, attr *vfs.Attr) error {
	s, err := c.begin(op, nfs3.ProcGetAttr)
	if err != nil {
		return err
	}
	args := nfs3.GetAttrArgs{Handle: *fh}
	args.Encode(&s.enc)
	var res nfs3.GetAttrResult
	if _, err := c.call(op, s, num, func(d *xdr.Decoder) error { return res.Decode(d) }); err != nil {
		return err
	}
	*attr = res.Attr
	return nfs3.Errno(res.Status)
}

// revalidate makes sure that the attributes of ino are at most AttrTimeout old
// and that no page is older than they are.
func (c *Client) revalidate(op *vfs.Op, ino *inode) error {
	ino.mu.Lock()
	ok, stale := c.isFresh(ino), ino.outdated()
	ino.mu.Unlock()
	if !ok {
		if err := c.fetchAttr(op, ino); err != nil {
			return err
		}
		ino.mu.Lock()
		stale = ino.outdated()
		ino.mu.Unlock()
	}
	if stale && op.MustWait() {
		return errWouldWait // to drop many pages takes long, and they have to be read then
	}
	if stale && ino.isFile() && ino.tryLock() { // else whoever changes it is not done
		c.invalidate(ino)
		<-ino.sem
	}
	return nil
}

// outdated reports whether clean pages may be older than the file. ino.mu is held.
func (ino *inode) outdated() bool {
	if ino.suspect && !ino.dirty() && !ino.hasUnstable() {
		ino.stale, ino.suspect = true, false
	}
	return ino.stale
}

// invalidate drops clean pages of a file that was changed elsewhere. What was
// written here stays, and is dropped when it is committed. ino.sem is held.
func (c *Client) invalidate(ino *inode) {
	ino.mu.Lock()
	ino.gen++ // what is being read now was asked for too early
	ino.suspect = ino.dirty() || ino.hasUnstable()
	ino.stale = false
	ino.grown = ino.grown && ino.suspect
	ino.base = ino.attr.Pre()
	ino.mu.Unlock()
	ino.m.InvalidateClean()
}
