package nfsclient

import (
	"strings"
	"syscall"
	"unsafe"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// checkName refuses what is no name of a directory entry.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case len(name) > nfs3.MaxName:
		return syscall.ENAMETOOLONG
	}
	return nil
}

// bytesOf returns the bytes of s, which nobody changes, without copying them.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// where returns the arguments that name an entry of a directory.
func where(dir *inode, name string) nfs3.DirOpArgs {
	return nfs3.DirOpArgs{Dir: dir.fh, Name: bytesOf(name)}
}

// named returns the inode of dir after checking name.
func (c *Client) named(dir vfs.NodeID, name string) (*inode, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return c.tab.get(dir)
}

// Lookup finds name in dir.
func (c *Client) Lookup(op *vfs.Op, dir vfs.NodeID, name string) (vfs.Entry, error) {
	if dir == vfs.RootID && name == ".." {
		return c.rootEntry(op)
	}
	if name != ".." {
		if err := checkName(name); err != nil {
			return vfs.Entry{}, err
		}
	}
	d, err := c.tab.get(dir)
	if err != nil {
		return vfs.Entry{}, err
	}
	return c.lookup(op, d, name)
}

func (c *Client) rootEntry(op *vfs.Op) (vfs.Entry, error) {
	e := vfs.Entry{Node: vfs.RootID}
	return e, c.GetAttr(op, vfs.RootID, &e.Attr)
}

func (c *Client) lookup(op *vfs.Op, d *inode, name string) (vfs.Entry, error) {
	start := c.seq.Add(1)
	var res nfs3.LookupResult
	if err := c.lookupCall(op, d, name, &res); err != nil {
		return vfs.Entry{}, err
	}
	if res.DirAttr.Has {
		c.update(d, &res.DirAttr.Attr, start)
	}
	if err := nfs3.Errno(res.Status); err != nil {
		return vfs.Entry{}, err
	}
	return c.entry(op, &res.Handle, &res.Attr, start)
}

// lookupCall is LOOKUP alone.
func (c *Client) lookupCall(op *vfs.Op, d *inode, name string, res *nfs3.LookupResult) error {
	s, err := c.begin(op, nfs3.ProcLookup)
	if err != nil {
		return err
	}
	args := where(d, name)
	args.Encode(&s.enc)
	_, err = c.call(op, s, d.ino, func(x *xdr.Decoder) error { return res.Decode(x) })
	return err
}

// entry makes an Entry of a handle; the attributes are asked for if the server
// did not send them.
func (c *Client) entry(op *vfs.Op, fh *nfs3.FileHandle, attr *nfs3.PostOpAttr, start uint64) (vfs.Entry, error) {
	if !attr.Has {
		start = c.seq.Add(1)
		if err := c.getAttrOf(op, fh, 0, &attr.Attr); err != nil {
			return vfs.Entry{}, err
		}
	}
	ino := c.node(fh, &attr.Attr)
	c.update(ino, &attr.Attr, start)
	e := vfs.Entry{Node: ino.id}
	ino.mu.Lock()
	ino.visible(&e.Attr)
	ino.mu.Unlock()
	return e, nil
}

// Handle appends the server's handle of node to buf.
func (c *Client) Handle(node vfs.NodeID, buf []byte) ([]byte, error) {
	ino, err := c.tab.get(node)
	switch {
	case err != nil:
		return buf, err
	case ino.fh.Len() > 60:
		return buf, syscall.EOVERFLOW
	}
	return append(buf, ino.fh.Bytes()...), nil
}

// ByHandle finds the node of a handle of the server's.
func (c *Client) ByHandle(op *vfs.Op, handle []byte) (vfs.NodeID, error) {
	fh, ok := nfs3.MakeHandle(handle)
	if !ok {
		return 0, vfs.ErrBadHandle
	}
	e, err := c.entry(op, &fh, &nfs3.PostOpAttr{}, 0)
	return e.Node, err
}

// Readlink appends the target of a symbolic link to buf.
func (c *Client) Readlink(op *vfs.Op, node vfs.NodeID, buf []byte) ([]byte, error) {
	ino, err := c.tab.get(node)
	if err != nil {
		return buf, err
	}
	s, err := c.begin(op, nfs3.ProcReadlink)
	if err != nil {
		return buf, err
	}
	args := nfs3.ReadlinkArgs{Handle: ino.fh}
	args.Encode(&s.enc)
	start := c.seq.Add(1)
	var res nfs3.ReadlinkResult
	if _, err := c.run(op, s, ino.ino, func(d *xdr.Decoder) error { return res.Decode(d) }); err != nil {
		return buf, err
	}
	defer c.endCall(s)
	if res.Attr.Has {
		c.update(ino, &res.Attr.Attr, start)
	}
	if err := nfs3.Errno(res.Status); err != nil {
		return buf, err
	}
	return append(buf, res.Target...), nil
}

// StatFS describes the server's file system.
func (c *Client) StatFS(op *vfs.Op, node vfs.NodeID) (vfs.StatFS, error) {
	ino, err := c.tab.get(node)
	if err != nil {
		return vfs.StatFS{}, err
	}
	s, err := c.begin(op, nfs3.ProcFSStat)
	if err != nil {
		return vfs.StatFS{}, err
	}
	args := nfs3.FSStatArgs{Handle: ino.fh}
	args.Encode(&s.enc)
	var res nfs3.FSStatResult
	if _, err := c.call(op, s, ino.ino, func(d *xdr.Decoder) error { return res.Decode(d) }); err != nil {
		return vfs.StatFS{}, err
	}
	res.Stat.BlockSize, res.Stat.NameMax = 4096, nfs3.MaxName
	return res.Stat, nfs3.Errno(res.Status)
}
