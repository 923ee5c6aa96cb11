package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// rename answers RENAME (RFC 1813 §3.3.14).
func rename(r *request) {
	var args nfs3.RenameArgs
	var res nfs3.RenameResult
	var to vfs.NodeID
	from, err := r.nodeToChange(args.Decode(&r.dec), &args.From.Dir)
	if err == nil {
		to, err = r.nodeToChange(nil, &args.To.Dir)
	}
	if err == nil {
		r.changes(from, &args.From)
		r.changes(to, &args.To)
		res.From, res.To, err = r.exp.FS.Rename(&r.op, from, string(args.From.Name), to, string(args.To.Name))
	}
	if err == nil {
		err = r.syncRenamed(from, to)
	}
	res.Status = statusOf(err)
	r.complete(from, &res.From)
	r.complete(to, &res.To)
	res.Encode(&r.enc)
}

// syncRenamed syncs the new name first: a crash in between leaves both, not
// none.
func (r *request) syncRenamed(from, to vfs.NodeID) error {
	if from == to {
		return r.sync(to)
	}
	return r.sync(to, from)
}
