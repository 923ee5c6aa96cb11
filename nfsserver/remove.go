package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// remove answers REMOVE (RFC 1813 §3.3.12).
func remove(r *request) {
	var args nfs3.RemoveArgs
	dir, err := r.nodeToChange(args.Decode(&r.dec), &args.Dir)
	r.changes(dir, &args)
	var wcc vfs.WCC
	if err == nil {
		wcc, err = r.exp.FS.Remove(&r.op, dir, string(args.Name))
	}
	r.removed(dir, &wcc, err)
}

// removed answers a procedure that removed an entry of dir, or failed with err.
func (r *request) removed(dir vfs.NodeID, wcc *vfs.WCC, err error) {
	if err == nil {
		err = r.sync(dir)
	}
	r.complete(dir, wcc)
	res := nfs3.WCCResult{Status: statusOf(err), WCC: *wcc}
	res.Encode(&r.enc)
}
