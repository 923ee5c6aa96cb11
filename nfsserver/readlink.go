package nfsserver

import "loopnfs/internal/nfs3"

// readlink answers READLINK (RFC 1813 §3.3.5).
func readlink(r *request) {
	var args nfs3.ReadlinkArgs
	var res nfs3.ReadlinkResult
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	if err == nil {
		// The arguments are decoded: their buffer is free for the target.
		res.Target, err = r.exp.FS.Readlink(&r.op, node, r.args[:0])
	}
	if err == nil && len(res.Target) > nfs3.MaxSymlink {
		err = nfs3.ErrNameTooLong
	}
	res.Status = statusOf(err)
	r.postOp(node, &res.Attr)
	res.Encode(&r.enc)
}
