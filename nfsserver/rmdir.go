package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// rmdir answers RMDIR (RFC 1813 §3.3.13).
func rmdir(r *request) {
	var args nfs3.RmdirArgs
	dir, err := r.nodeToChange(args.Decode(&r.dec), &args.Dir)
	r.changes(dir, &args)
	var wcc vfs.WCC
	if err == nil {
		wcc, err = r.exp.FS.Rmdir(&r.op, dir, string(args.Name))
	}
	r.removed(dir, &wcc, err)
}
