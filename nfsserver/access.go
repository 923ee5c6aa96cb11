package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

const (
	accessAll    = 0x3f
	accessChange = vfs.AccessModify | vfs.AccessExtend | vfs.AccessDelete
)

// access answers ACCESS (RFC 1813 §3.3.4).
func access(r *request) {
	var args nfs3.AccessArgs
	var res nfs3.AccessResult
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	if err == nil {
		want := args.Access & accessAll
		if r.exp.ReadOnly {
			want &^= accessChange
		}
		res.Access, err = r.exp.FS.Access(&r.op, node, want)
		res.Access &= want
	}
	res.Status = statusOf(err)
	r.postOp(node, &res.Attr)
	res.Encode(&r.enc)
}
