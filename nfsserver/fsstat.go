package nfsserver

import "loopnfs/internal/nfs3"

// fsstat answers FSSTAT (RFC 1813 §3.3.18).
func fsstat(r *request) {
	var args nfs3.FSStatArgs
	var res nfs3.FSStatResult
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	if err == nil {
		res.Stat, err = r.exp.FS.StatFS(&r.op, node)
	}
	res.Status = statusOf(err)
	r.postOp(node, &res.Attr)
	res.Encode(&r.enc)
}
