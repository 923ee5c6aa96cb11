package nfsserver

import (
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// dirSink puts the entries of READDIR into pages as they come.
type dirSink struct {
	pages *pageBuf
	w     nfs3.DirWriter
}

// Entry implements vfs.DirSink.
func (s *dirSink) Entry(e *vfs.DirEntry) bool {
	return s.pages.reserve(nfs3.EntrySize(len(e.Name))) && s.w.Entry(e)
}

// readdir answers READDIR (RFC 1813 §3.3.16).
func readdir(r *request) {
	var args nfs3.ReaddirArgs
	var res nfs3.ReaddirResult
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	r.postOp(node, &res.DirAttr)
	if err == nil {
		err = r.readdir(node, &args, &res)
	}
	res.Status = statusOf(err)
	res.Encode(&r.enc)
}

// readdir leaves the entries in r.data.
func (r *request) readdir(node vfs.NodeID, args *nfs3.ReaddirArgs, res *nfs3.ReaddirResult) error {
	size := min(args.Count, uint32(r.srv.dirMax))
	if err := r.allocPages(gfp.Kernel, int(size), &r.pages); err != nil {
		return err
	}
	r.list.pages = &r.pages
	if !r.list.w.Start(&r.pages.enc, res, size) {
		return errTooSmall
	}
	verf, eof, err := r.exp.FS.ReadDir(&r.op, node, args.Cookie, args.Verf, &r.list)
	if err != nil {
		return err
	}
	res.Verf = verf
	return r.endList(eof)
}

// endList completes the listing and puts it into r.data.
func (r *request) endList(eof bool) error {
	if r.list.w.Len() == 0 && !eof || !r.pages.reserve(listEnd) {
		return errTooSmall
	}
	r.list.w.End(eof)
	r.pages.moveTo(&r.data)
	return nil
}

// listEnd is the size of the end of a list.
const listEnd = 8
