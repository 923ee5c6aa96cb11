package nfsserver

import (
	"math"
	"syscall"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// setattr answers SETATTR (RFC 1813 §3.3.2).
func setattr(r *request) {
	var args nfs3.SetAttrArgs
	node, err := r.nodeToChange(args.Decode(&r.dec), &args.Handle)
	r.set = args.Set
	if err == nil && r.set.SetSize && r.set.Size > maxFileSize {
		err = syscall.EFBIG
	}
	var wcc vfs.WCC
	if err == nil {
		wcc, err = r.exp.FS.SetAttr(&r.op, node, &r.set)
	}
	if err == nil {
		err = r.sync(node)
	}
	r.complete(node, &wcc)
	res := nfs3.SetAttrResult{Status: statusOf(err), WCC: wcc}
	res.Encode(&r.enc)
}

// maxFileSize is the largest offset that file systems count with, in bytes.
const maxFileSize = math.MaxInt64

// checkRange reports EFBIG for bytes that lie beyond every file.
func checkRange(off uint64, n int) error {
	if off > maxFileSize || uint64(n) > maxFileSize-off {
		return syscall.EFBIG
	}
	return nil
}
