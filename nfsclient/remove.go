package nfsclient

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// sillyName is where a file is that was removed while it was open.
type sillyName struct {
	dir  *inode
	name string
	who  vfs.Cred
}

// Remove removes a name that is no directory.
func (c *Client) Remove(op *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	d, err := c.named(dir, name)
	if err != nil {
		return vfs.WCC{}, err
	}
	ino, err := c.openFile(op, d, name)
	if err != nil {
		return vfs.WCC{}, err
	}
	if ino == nil {
		return c.remove(op, d, name, nfs3.ProcRemove)
	}
	return toTheEnd(c, op, func(op *vfs.Op) (vfs.WCC, error) { return c.hide(op, d, name, ino) }, d)
}

// toTheEnd carries out f, a series of calls that belong together and of which each is waited
// for. Who is killed meanwhile gets EINTR, and f goes on. It refers to the dirs until then.
func toTheEnd[T any](c *Client, op *vfs.Op, f func(op *vfs.Op) (T, error), dirs ...*inode) (T, error) {
	type result struct {
		val T
		err error
	}
	c.tab.mu.Lock()
	for _, d := range dirs {
		d.refs++
	}
	c.tab.mu.Unlock()
	own := vfs.Op{Scope: gfp.For(nil), Cred: op.Cred, Cancel: c.t.stop}
	own.Cred.Groups = slices.Clone(op.Cred.Groups)
	over := make(chan result, 1)
	c.series.Go(func() {
		val, err := f(&own)
		for _, d := range dirs {
			c.Forget(d.id, 1)
		}
		over <- result{val, err}
	})
	select {
	case r := <-over:
		return r.val, r.err
	case <-op.Cancel:
		return *new(T), syscall.EINTR
	}
}

// Rmdir removes an empty directory.
func (c *Client) Rmdir(op *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	d, err := c.named(dir, name)
	if err != nil {
		return vfs.WCC{}, err
	}
	return c.remove(op, d, name, nfs3.ProcRmdir)
}

func (c *Client) remove(op *vfs.Op, d *inode, name string, proc uint32) (vfs.WCC, error) {
	s, err := c.begin(op, proc)
	if err != nil {
		return vfs.WCC{}, err
	}
	args := where(d, name)
	args.Encode(&s.enc)
	start := c.seq.Add(1)
	var res nfs3.WCCResult
	if _, err = c.call(op, s, d.ino, func(x *xdr.Decoder) error { return res.Decode(x) }); err != nil {
		return vfs.WCC{}, err
	}
	c.updateWCC(d, &res.WCC, start, true)
	return res.WCC, nfs3.Errno(res.Status)
}

// hide renames ino, which is open here, to a name that nobody asks for
// (nfs_sillyrename).
func (c *Client) hide(op *vfs.Op, d *inode, name string, ino *inode) (vfs.WCC, error) {
	silly := fmt.Sprintf(".nfs%016x%016x%08x", ino.ino, c.id, c.sillySeq.Add(1)) // nobody else's
	w, _, err := c.rename(op, d, name, d, silly)
	if errors.Is(err, syscall.ENOENT) && c.isThere(op, d, silly, ino) {
		err = nil // the call was sent twice
	}
	if err != nil {
		return w, err
	}
	hidden := &sillyName{dir: d, name: silly, who: op.Cred}
	c.tab.mu.Lock()
	d.refs++ // until the file is removed
	closed := ino.opens == 0
	if !closed {
		ino.silly = hidden
	}
	c.tab.mu.Unlock()
	ino.expire()
	if closed { // while it was being renamed
		c.unhide(hidden, c.t.stop)
	}
	return w, nil
}

// isThere reports whether name is one of ino.
func (c *Client) isThere(op *vfs.Op, d *inode, name string, ino *inode) bool {
	var res nfs3.LookupResult
	return c.lookupCall(op, d, name, &res) == nil && res.Status == nfs3.StatusOK && res.Handle == ino.fh
}

// openFile returns the inode of a name that must be kept, or nil, since it is open here and
// was not hidden before. The name under which one is hidden is busy.
func (c *Client) openFile(op *vfs.Op, d *inode, name string) (*inode, error) {
	c.tab.mu.RLock()
	open := c.tab.open
	c.tab.mu.RUnlock()
	if open == 0 {
		return nil, nil
	}
	var res nfs3.LookupResult
	if err := c.lookupCall(op, d, name, &res); err != nil || res.Status != nfs3.StatusOK {
		return nil, err // who removes it is told of a status
	}
	c.tab.mu.RLock()
	defer c.tab.mu.RUnlock()
	ino := c.tab.byFH[res.Handle]
	switch {
	case ino == nil || ino.opens == 0 || !ino.isFile():
		return nil, nil
	case ino.silly != nil && ino.silly.dir == d && ino.silly.name == name:
		return nil, syscall.EBUSY
	case ino.silly != nil || res.Attr.Has && res.Attr.Attr.Nlink > 1:
		return nil, nil
	}
	return ino, nil
}

// unhide removes a file that was removed while it was open, after its last
// close.
func (c *Client) unhide(silly *sillyName, cancel <-chan struct{}) {
	op := &vfs.Op{Scope: gfp.For(nil), Cred: silly.who, Cancel: cancel}
	if _, err := c.remove(op, silly.dir, silly.name, nfs3.ProcRemove); err != nil && !errors.Is(err, syscall.ENOENT) {
		c.cfg.Logger.Warn("cannot remove a file after its last close; it stays on the server", "name", silly.name, "err", err)
	}
	c.Forget(silly.dir.id, 1)
}

// unhideAll removes what was removed and is still open.
func (c *Client) unhideAll(cancel <-chan struct{}) {
	for _, ino := range c.inodes() {
		c.tab.mu.Lock()
		silly := ino.silly
		ino.silly = nil
		c.tab.mu.Unlock()
		if silly != nil {
			c.unhide(silly, cancel)
		}
	}
}

// Rename gives a file a new name. What has the new name and is open here lives
// on until it is closed.
func (c *Client) Rename(op *vfs.Op, dir vfs.NodeID, name string, newDir vfs.NodeID, newName string) (from, to vfs.WCC, err error) {
	d, err := c.named(dir, name)
	if err != nil {
		return from, to, err
	}
	nd, err := c.named(newDir, newName)
	if err != nil {
		return from, to, err
	}
	target, err := c.openTarget(op, d, name, nd, newName)
	if err != nil {
		return from, to, err
	}
	if target == nil {
		return c.rename(op, d, name, nd, newName)
	}
	w, err := toTheEnd(c, op, func(op *vfs.Op) (w [2]vfs.WCC, err error) {
		defer c.Close(target.id)
		if _, err = c.hide(op, nd, newName, target); err != nil {
			return w, err
		}
		if w[0], w[1], err = c.rename(op, d, name, nd, newName); err != nil {
			c.showTarget(op, target, nd, newName)
		}
		return w, err
	}, d, nd)
	return w[0], w[1], err
}

// openTarget returns the file that a rename will replace, unless it is the same file or nobody
// has it open: open once more, for the caller to close.
func (c *Client) openTarget(op *vfs.Op, d *inode, name string, nd *inode, newName string) (*inode, error) {
	if d == nd && name == newName {
		return nil, nil
	}
	target, err := c.openFile(op, nd, newName)
	if target == nil {
		return nil, err
	}
	var res nfs3.LookupResult
	if err := c.lookupCall(op, d, name, &res); err != nil || res.Status != nfs3.StatusOK || res.Handle == target.fh {
		return nil, err
	}
	c.tab.mu.Lock()
	defer c.tab.mu.Unlock()
	if target.opens == 0 {
		return nil, nil
	}
	target.opens++
	c.tab.open++
	return target, nil
}

// showTarget gives back its name to what a rename was to replace, unless something has that
// name: then the rename was carried out, whatever its answer, or somebody else was faster.
func (c *Client) showTarget(op *vfs.Op, target, dir *inode, name string) {
	c.tab.mu.Lock()
	silly := target.silly
	target.silly = nil
	c.tab.mu.Unlock()
	if silly == nil {
		return
	}
	_, err := c.link(op, target, dir, name)
	switch {
	case err == nil:
		c.unhide(silly, c.t.stop)
		return
	case errors.Is(err, syscall.EEXIST):
		c.tab.mu.Lock()
		target.silly = silly
		c.tab.mu.Unlock()
		return
	case c.isFree(op, dir, name): // the server has no links, or not for this user
		_, _, err = c.rename(op, silly.dir, silly.name, dir, name)
	}
	if err != nil {
		c.cfg.Logger.Warn("cannot give a file its name back after a rename over it has failed", "name", name, "hidden", silly.name, "err", err)
	}
	c.Forget(silly.dir.id, 1)
}

// isFree reports whether nothing is called name.
func (c *Client) isFree(op *vfs.Op, d *inode, name string) bool {
	var res nfs3.LookupResult
	return c.lookupCall(op, d, name, &res) == nil && res.Status == nfs3.StatusNoEnt
}

func (c *Client) rename(op *vfs.Op, d *inode, name string, nd *inode, newName string) (from, to vfs.WCC, err error) {
	s, err := c.begin(op, nfs3.ProcRename)
	if err != nil {
		return from, to, err
	}
	args := nfs3.RenameArgs{From: where(d, name), To: where(nd, newName)}
	args.Encode(&s.enc)
	start := c.seq.Add(1)
	var res nfs3.RenameResult
	if _, err = c.call(op, s, d.ino, func(x *xdr.Decoder) error { return res.Decode(x) }); err != nil {
		return from, to, err
	}
	c.updateWCC(d, &res.From, start, true)
	if nd != d {
		c.updateWCC(nd, &res.To, start, true)
	}
	return res.From, res.To, nfs3.Errno(res.Status)
}
