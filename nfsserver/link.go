package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// link answers LINK (RFC 1813 §3.3.15).
func link(r *request) {
	var args nfs3.LinkArgs
	var res nfs3.LinkResult
	var dir vfs.NodeID
	node, err := r.nodeToChange(args.Decode(&r.dec), &args.Handle)
	if err == nil {
		dir, err = r.nodeToChange(nil, &args.To.Dir)
	}
	var attr vfs.Attr
	if err == nil {
		r.changes(dir, &args.To)
		attr, res.DirWCC, err = r.exp.FS.Link(&r.op, node, dir, string(args.To.Name))
	}
	if err == nil {
		err = r.sync(dir) // the link count changed together with it
	}
	if err == nil {
		res.Attr.Set(&attr)
	} else {
		r.postOp(node, &res.Attr)
	}
	res.Status = statusOf(err)
	r.complete(dir, &res.DirWCC)
	res.Encode(&r.enc)
}
