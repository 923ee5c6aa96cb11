package nfsclient

import (
	"crypto/rand"
	"errors"
	"syscall"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// Create makes a regular file. Exclusive is carried out by the server with verf,
// or a random verifier if that is zero; the attributes are set afterwards. A
// size, too: data of the file that is still here must not be written after that.
func (c *Client) Create(op *vfs.Op, dir vfs.NodeID, name string, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (vfs.Entry, vfs.WCC, error) {
	if how == vfs.Exclusive && verf == (vfs.Verifier{}) {
		rand.Read(verf[:])
	}
	e, w, made, err := c.create(op, dir, name, how, set, verf)
	if err != nil {
		return e, w, err
	}
	if made {
		c.created(e.Node, op.Cred.UID)
	}
	switch {
	case how == vfs.Exclusive && changes(set):
		err = c.setCreated(op, &e, exclusiveSet(set))
	case set.SetSize && e.Attr.Size != set.Size:
		err = c.setCreated(op, &e, &vfs.SetAttr{SetSize: true, Size: set.Size})
	}
	return e, w, err
}

// create is CREATE alone, and reports whether it has made the file for sure: Unchecked is
// tried as Guarded before, since whoever has made a file may do more with it.
func (c *Client) create(op *vfs.Op, dir vfs.NodeID, name string, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (e vfs.Entry, w vfs.WCC, made bool, err error) {
	args := nfs3.CreateArgs{How: how, Set: *set, Verf: verf}
	args.Set.SetSize = false
	if how == vfs.Unchecked {
		args.How = vfs.Guarded
	}
	e, w, err = c.createCall(op, dir, name, &args)
	if how != vfs.Unchecked || !errors.Is(err, syscall.EEXIST) {
		return e, w, true, err
	}
	args.How = how
	e, w, err = c.createCall(op, dir, name, &args)
	return e, w, false, err
}

func (c *Client) createCall(op *vfs.Op, dir vfs.NodeID, name string, args *nfs3.CreateArgs) (vfs.Entry, vfs.WCC, error) {
	d, s, err := c.beginMake(op, dir, name, nfs3.ProcCreate)
	if err != nil {
		return vfs.Entry{}, vfs.WCC{}, err
	}
	args.Where = where(d, name)
	args.Encode(&s.enc)
	return c.finishMake(op, s, d, name)
}

// changes reports whether set changes anything.
func changes(s *vfs.SetAttr) bool {
	return s.SetMode || s.SetUID || s.SetGID || s.SetSize || s.SetAtime != vfs.DontChange || s.SetMtime != vfs.DontChange
}

// exclusiveSet is what to set after an Exclusive create: the server may have
// kept the verifier in the attributes, in the times first of all.
func exclusiveSet(set *vfs.SetAttr) *vfs.SetAttr {
	all := *set
	if all.SetAtime == vfs.DontChange {
		all.SetAtime = vfs.SetToServerTime
	}
	if all.SetMtime == vfs.DontChange {
		all.SetMtime = vfs.SetToServerTime
	}
	return &all
}

// setCreated gives a file that was just made its attributes.
func (c *Client) setCreated(op *vfs.Op, e *vfs.Entry, set *vfs.SetAttr) error {
	_, err := c.SetAttr(op, e.Node, set)
	if err == nil {
		err = c.GetAttr(op, e.Node, &e.Attr)
	}
	if err != nil {
		c.Forget(e.Node, 1)
		*e = vfs.Entry{}
	}
	return err
}

// created lets uid open node once whatever its mode says, as open(O_CREAT) does.
func (c *Client) created(node vfs.NodeID, uid uint32) {
	if ino, err := c.tab.get(node); err == nil {
		ino.mu.Lock()
		ino.fresh, ino.maker = true, uid
		ino.mu.Unlock()
	}
}

// Mkdir makes a directory.
func (c *Client) Mkdir(op *vfs.Op, dir vfs.NodeID, name string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	d, s, err := c.beginMake(op, dir, name, nfs3.ProcMkdir)
	if err != nil {
		return vfs.Entry{}, vfs.WCC{}, err
	}
	args := nfs3.MkdirArgs{Where: where(d, name), Set: *set}
	args.Encode(&s.enc)
	return c.finishMake(op, s, d, name)
}

// Symlink makes a symbolic link.
func (c *Client) Symlink(op *vfs.Op, dir vfs.NodeID, name, target string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	if len(target) > nfs3.MaxSymlink {
		return vfs.Entry{}, vfs.WCC{}, syscall.ENAMETOOLONG
	}
	d, s, err := c.beginMake(op, dir, name, nfs3.ProcSymlink)
	if err != nil {
		return vfs.Entry{}, vfs.WCC{}, err
	}
	args := nfs3.SymlinkArgs{Where: where(d, name), Set: *set, Target: bytesOf(target)}
	args.Encode(&s.enc)
	return c.finishMake(op, s, d, name)
}

// Mknod makes a device, socket or FIFO.
func (c *Client) Mknod(op *vfs.Op, dir vfs.NodeID, name string, typ vfs.FileType, major, minor uint32, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	d, s, err := c.beginMake(op, dir, name, nfs3.ProcMknod)
	if err != nil {
		return vfs.Entry{}, vfs.WCC{}, err
	}
	args := nfs3.MknodArgs{Where: where(d, name), Type: typ, Set: *set, Major: major, Minor: minor}
	args.Encode(&s.enc)
	return c.finishMake(op, s, d, name)
}

// beginMake starts a call that makes name in dir.
func (c *Client) beginMake(op *vfs.Op, dir vfs.NodeID, name string, proc uint32) (*inode, *slot, error) {
	d, err := c.named(dir, name)
	if err != nil {
		return nil, nil, err
	}
	s, err := c.begin(op, proc)
	return d, s, err
}

// finishMake makes the call in s and returns what was made.
func (c *Client) finishMake(op *vfs.Op, s *slot, d *inode, name string) (vfs.Entry, vfs.WCC, error) {
	start := c.seq.Add(1)
	var res nfs3.CreateResult
	if _, err := c.call(op, s, d.ino, func(x *xdr.Decoder) error { return res.Decode(x) }); err != nil {
		return vfs.Entry{}, vfs.WCC{}, err
	}
	c.updateWCC(d, &res.DirWCC, start, true)
	if err := nfs3.Errno(res.Status); err != nil {
		return vfs.Entry{}, res.DirWCC, err
	}
	if !res.Handle.Has {
		e, err := c.lookup(op, d, name)
		return e, res.DirWCC, err
	}
	e, err := c.entry(op, &res.Handle.Handle, &res.Attr, start)
	return e, res.DirWCC, err
}

// Link makes name in dir another name of node.
func (c *Client) Link(op *vfs.Op, node, dir vfs.NodeID, name string) (vfs.Attr, vfs.WCC, error) {
	ino, err := c.tab.get(node)
	if err != nil {
		return vfs.Attr{}, vfs.WCC{}, err
	}
	d, err := c.named(dir, name)
	if err != nil {
		return vfs.Attr{}, vfs.WCC{}, err
	}
	w, err := c.link(op, ino, d, name)
	if err != nil {
		return vfs.Attr{}, w, err
	}
	var attr vfs.Attr
	err = c.getAttr(op, ino, &attr)
	return attr, w, err
}

// link is LINK alone.
func (c *Client) link(op *vfs.Op, ino, d *inode, name string) (vfs.WCC, error) {
	s, err := c.begin(op, nfs3.ProcLink)
	if err != nil {
		return vfs.WCC{}, err
	}
	args := nfs3.LinkArgs{Handle: ino.fh, To: where(d, name)}
	args.Encode(&s.enc)
	start := c.seq.Add(1)
	var res nfs3.LinkResult
	if _, err = c.call(op, s, ino.ino, func(x *xdr.Decoder) error { return res.Decode(x) }); err != nil {
		return vfs.WCC{}, err
	}
	c.updateWCC(d, &res.DirWCC, start, true)
	ino.changed(&res.Attr, c, start)
	return res.DirWCC, nfs3.Errno(res.Status)
}

// changed takes in attributes after a change of the number of links, which
// leaves the data alone: if that is not what it was, others have changed it.
func (ino *inode) changed(a *nfs3.PostOpAttr, c *Client, start uint64) {
	if !a.Has {
		ino.expire()
		return
	}
	ino.mu.Lock()
	defer ino.mu.Unlock()
	same := a.Attr.Size == ino.base.Size && a.Attr.Mtime == ino.base.Mtime
	if ino.hasBase && !same && ino.writes == 0 {
		ino.stale = true
	}
	c.updateWCCLocked(ino, &vfs.WCC{HasPost: true, Post: a.Attr}, start, false)
}
