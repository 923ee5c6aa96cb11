package nfsclient

import (
	"bytes"
	"errors"
	"syscall"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// ReadDir hands the entries after cookie to sink. One call is one listing of the
// server's, so that it ends earlier than sink wants it to when the server had no
// more at hand.
func (c *Client) ReadDir(op *vfs.Op, dir vfs.NodeID, cookie uint64, verf vfs.Verifier, sink vfs.DirSink) (vfs.Verifier, bool, error) {
	d, err := c.tab.get(dir)
	if err != nil {
		return verf, false, err
	}
	if d.typ != vfs.TypeDirectory {
		return verf, false, syscall.ENOTDIR
	}
	if !c.noReaddirplus.Load() {
		v, eof, err := c.readDir(op, d, cookie, verf, sink, nfs3.ProcReaddirplus)
		if !errors.Is(err, syscall.EOPNOTSUPP) {
			return v, eof, err
		}
		c.noReaddirplus.Store(true)
	}
	return c.readDir(op, d, cookie, verf, sink, nfs3.ProcReaddir)
}

// readDir is one READDIR or READDIRPLUS.
func (c *Client) readDir(op *vfs.Op, d *inode, cookie uint64, verf vfs.Verifier, sink vfs.DirSink, proc uint32) (vfs.Verifier, bool, error) {
	s, err := c.begin(op, proc)
	if err != nil {
		return verf, false, err
	}
	if err := c.takeDirBuf(op, s); err != nil {
		return verf, false, err
	}
	encodeReadDir(&s.enc, proc, d, cookie, verf)
	start := c.seq.Add(1)
	var res nfs3.ReaddirResult
	_, err = c.run(op, s, d.ino, func(x *xdr.Decoder) error { return checkListing(x, proc, &res) })
	if err != nil {
		return verf, false, err
	}
	defer c.endCall(s)
	if res.DirAttr.Has {
		c.update(d, &res.DirAttr.Attr, start)
	}
	if err := nfs3.Errno(res.Status); err != nil {
		return verf, false, err
	}
	s.dec.Reset(s.reply)
	res.Decode(&s.dec)
	eof := deliverListing(&s.dec, proc, sink)
	return res.Verf, eof, nil
}

// takeDirBuf gives s a buffer for a listing.
func (c *Client) takeDirBuf(op *vfs.Op, s *slot) error {
	select {
	case s.dest = <-c.dirBufs:
		s.dirBufs = c.dirBufs
		return nil
	case <-op.Cancel:
		c.t.release(s)
		return syscall.EINTR
	}
}

func encodeReadDir(e *xdr.Encoder, proc uint32, d *inode, cookie uint64, verf vfs.Verifier) {
	if proc == nfs3.ProcReaddirplus {
		args := nfs3.ReaddirplusArgs{Handle: d.fh, Cookie: cookie, Verf: verf, DirCount: dirBytes, MaxCount: dirBytes}
		args.Encode(e)
		return
	}
	args := nfs3.ReaddirArgs{Handle: d.fh, Cookie: cookie, Verf: verf, Count: dirBytes}
	args.Encode(e)
}

// checkListing decodes all of a listing before anything of it is used.
func checkListing(d *xdr.Decoder, proc uint32, res *nfs3.ReaddirResult) error {
	if err := res.Decode(d); err != nil || res.Status != nfs3.StatusOK {
		return err
	}
	var ent nfs3.EntryPlus
	for nextEntry(d, proc, &ent) {
	}
	_, err := nfs3.ListEOF(d)
	return err
}

func nextEntry(d *xdr.Decoder, proc uint32, ent *nfs3.EntryPlus) bool {
	if proc == nfs3.ProcReaddirplus {
		return nfs3.NextEntryPlus(d, ent)
	}
	return nfs3.NextEntry(d, &ent.DirEntry)
}

// isEntry reports whether a name that the server sent can be one.
func isEntry(name []byte) bool {
	return len(name) > 0 && bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0
}

// deliverListing hands the entries to sink and reports whether it took all there
// are in the directory.
func deliverListing(d *xdr.Decoder, proc uint32, sink vfs.DirSink) bool {
	var ent nfs3.EntryPlus
	for nextEntry(d, proc, &ent) {
		if isEntry(ent.Name) && !sink.Entry(&ent.DirEntry) {
			return false
		}
	}
	eof, _ := nfs3.ListEOF(d)
	return eof
}
