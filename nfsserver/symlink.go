package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// symlink answers SYMLINK (RFC 1813 §3.3.10).
func symlink(r *request) {
	var args nfs3.SymlinkArgs
	dir, err := r.nodeToChange(args.Decode(&r.dec), &args.Where.Dir)
	r.changes(dir, &args.Where)
	r.set = args.Set
	var ent vfs.Entry
	var wcc vfs.WCC
	if err == nil {
		ent, wcc, err = r.exp.FS.Symlink(&r.op, dir, string(args.Where.Name), string(args.Target), &r.set)
	}
	r.created(dir, &ent, &wcc, err)
}
