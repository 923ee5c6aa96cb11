package nfsserver

import (
	"syscall"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// create answers CREATE (RFC 1813 §3.3.8).
func create(r *request) {
	var args nfs3.CreateArgs
	dir, err := r.nodeToChange(args.Decode(&r.dec), &args.Where.Dir)
	r.changes(dir, &args.Where)
	r.set = args.Set
	if err == nil && r.set.SetSize && r.set.Size > maxFileSize {
		err = syscall.EFBIG
	}
	var ent vfs.Entry
	var wcc vfs.WCC
	if err == nil {
		ent, wcc, err = r.exp.FS.Create(&r.op, dir, string(args.Where.Name), args.How, &r.set, args.Verf)
	}
	r.created(dir, &ent, &wcc, err)
}

// created answers a procedure that made ent in dir, or failed with err.
func (r *request) created(dir vfs.NodeID, ent *vfs.Entry, wcc *vfs.WCC, err error) {
	var res nfs3.CreateResult
	if err == nil {
		r.hold(ent.Node)
		err = r.syncCreated(dir, ent)
	}
	if err == nil {
		res.Attr.Set(&ent.Attr)
		res.Handle.Handle, err = r.fileHandle(ent.Node)
		res.Handle.Has = err == nil
	}
	res.Status = statusOf(err)
	r.complete(dir, wcc)
	res.DirWCC = *wcc
	res.Encode(&r.enc)
}

// syncCreated puts a new object and its entry on stable storage.
func (r *request) syncCreated(dir vfs.NodeID, ent *vfs.Entry) error {
	if !ent.WithDir {
		return r.sync(ent.Node, dir)
	}
	return r.sync(dir)
}
