package nfsserver

import (
	"syscall"

	"loopnfs/internal/nfs3"
)

// read answers READ (RFC 1813 §3.3.6). The data is sent from the pages of the
// file system, which stay pinned until then.
func read(r *request) {
	var args nfs3.ReadArgs
	var res nfs3.ReadResult
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	if err == nil && args.Offset > maxFileSize {
		err = syscall.EINVAL
	}
	if err == nil {
		n := uint32(min(uint64(args.Count), uint64(r.exp.ioMax), maxFileSize-args.Offset))
		res.EOF, err = r.exp.FS.Read(&r.op, node, args.Offset, n, &r.data, &r.attr)
	}
	if err == nil {
		res.Attr.Set(&r.attr)
		res.Count = uint32(r.data.Len())
	} else {
		r.data.Release()
		r.postOp(node, &res.Attr)
	}
	res.Status = statusOf(err)
	res.Encode(&r.enc)
}
