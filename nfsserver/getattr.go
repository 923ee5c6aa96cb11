package nfsserver

import "loopnfs/internal/nfs3"

// getattr answers GETATTR (RFC 1813 §3.3.1).
func getattr(r *request) {
	var args nfs3.GetAttrArgs
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	if err == nil {
		err = r.exp.FS.GetAttr(&r.op, node, &r.attr)
	}
	res := nfs3.GetAttrResult{Status: statusOf(err), Attr: r.attr}
	res.Encode(&r.enc)
}
