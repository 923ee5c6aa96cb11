package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// mkdir answers MKDIR (RFC 1813 §3.3.9).
func mkdir(r *request) {
	var args nfs3.MkdirArgs
	dir, err := r.nodeToChange(args.Decode(&r.dec), &args.Where.Dir)
	r.changes(dir, &args.Where)
	r.set = args.Set
	var ent vfs.Entry
	var wcc vfs.WCC
	if err == nil {
		ent, wcc, err = r.exp.FS.Mkdir(&r.op, dir, string(args.Where.Name), &r.set)
	}
	r.created(dir, &ent, &wcc, err)
}
