package nfsserver

import (
	"syscall"

	"loopnfs/internal/nfs3"
)

// commit answers COMMIT (RFC 1813 §3.3.21).
func commit(r *request) {
	var args nfs3.CommitArgs
	var res nfs3.CommitResult
	node, err := r.nodeToChange(args.Decode(&r.dec), &args.Handle)
	if err == nil && args.Offset > maxFileSize {
		err = syscall.EINVAL
	}
	if err == nil {
		if checkRange(args.Offset, int(args.Count)) != nil {
			args.Count = 0 // to the end
		}
		r.cleansMemory()
		res.Verf, res.WCC, err = r.exp.FS.Commit(&r.op, node, args.Offset, args.Count)
	}
	res.Status = statusOf(err)
	r.complete(node, &res.WCC)
	res.Encode(&r.enc)
}
