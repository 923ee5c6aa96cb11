package nfsclient

import (
	"loopnfs/alloc"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// SetAttr changes attributes. What was written here before is sent first, so
// that the server's time stamps, size and rights are changed in that order
// (nfs_setattr).
func (c *Client) SetAttr(op *vfs.Op, node vfs.NodeID, set *vfs.SetAttr) (vfs.WCC, error) {
	ino, err := c.tab.get(node)
	if err != nil {
		return vfs.WCC{}, err
	}
	if !ino.isFile() {
		return c.setAttr(op, ino, set)
	}
	if err := ino.lockFor(op); err != nil {
		return vfs.WCC{}, err
	}
	defer ino.unlock(op.Scope)
	if err := c.settleFirst(op, ino, set.SetSize); err != nil {
		return vfs.WCC{}, err
	}
	w, err := c.setAttr(op, ino, set)
	if err == nil && set.SetSize {
		c.truncate(ino, set.Size)
	}
	return w, err
}

// settleFirst writes back before a change of attributes. Before a change of size
// it commits too (nfs_wb_all): otherwise a server that restarts just then would
// have pages written again behind the new end. ino.sem is held, so nothing gets
// dirty meanwhile.
func (c *Client) settleFirst(op *vfs.Op, ino *inode, commit bool) error {
	if !commit {
		return c.writeOut(op, ino)
	}
	return c.makeStable(op, ino)
}

// setAttr is SETATTR alone.
func (c *Client) setAttr(op *vfs.Op, ino *inode, set *vfs.SetAttr) (vfs.WCC, error) {
	s, err := c.begin(op, nfs3.ProcSetAttr)
	if err != nil {
		return vfs.WCC{}, err
	}
	args := nfs3.SetAttrArgs{Handle: ino.fh, Set: *set}
	args.Encode(&s.enc)
	start := c.seq.Add(1)
	var res nfs3.SetAttrResult
	again, err := c.call(op, s, ino.ino, func(d *xdr.Decoder) error { return res.Decode(d) })
	if err != nil {
		ino.expire()
		return vfs.WCC{}, err
	}
	c.updateWCC(ino, &res.WCC, start, !again)
	ino.mu.Lock()
	ino.dropAccess()
	ino.mu.Unlock()
	if again && res.Status == nfs3.StatusNotSync && set.HasGuard {
		// The first time may have changed the ctime that the guard asks for;
		// nothing tells, so the caller has to look.
		ino.expire()
	}
	return res.WCC, nfs3.Errno(res.Status)
}

// truncate makes the cache follow the file, which has size bytes on the server
// now and nothing to be written here. ino.sem is held.
func (c *Client) truncate(ino *inode, size uint64) {
	ino.mu.Lock()
	ino.size = size
	ino.barrier = c.seq.Add(1) // replies from before speak of another size
	ino.mu.Unlock()
	ino.m.Truncate((size + alloc.PageSize - 1) >> alloc.PageShift)
	if skip := size & (alloc.PageSize - 1); skip != 0 {
		c.zeroTail(ino, size>>alloc.PageShift, skip)
	}
}

// zeroTail clears what is behind the end of the file in its last page, if that
// is in the cache: it shows when the file grows again.
func (c *Client) zeroTail(ino *inode, index, skip uint64) {
	f := ino.m.Get(index)
	if f == nil {
		return
	}
	ino.m.WaitUnlocked(f, nil)
	clear(c.arena.Bytes(f)[skip:])
	c.arena.Put(f)
}
