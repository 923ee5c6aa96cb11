package nfsserver

import "loopnfs/internal/nfs3"

// getattr answers GETATTR (RFC 1813 §3.3.1).
func getattr(r *request) {
	var args nfs3.GetAttrArgs
	err := r.stat(args.Decode(&r.dec), &args.Handle)
	res := nfs3.GetAttrResult{Status: statusOf(err), Attr: r.attr}
	res.Encode(&r.enc)
}

// stat puts the attributes of a file into r.attr.
func (r *request) stat(decodeErr error, fh *nfs3.FileHandle) error {
	h, err := r.ownHandle(decodeErr, fh)
	if err != nil {
		return err
	}
	if r.exp.stater != nil {
		return r.exp.stater.Stat(&r.op, h, &r.attr)
	}
	node, err := r.exp.FS.ByHandle(&r.op, h)
	if err != nil {
		return err
	}
	r.hold(node)
	return r.exp.FS.GetAttr(&r.op, node, &r.attr)
}
