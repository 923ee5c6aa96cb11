package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// postOp puts the attributes of node into p if they can be had. node is 0 if
// the procedure did not get as far.
func (r *request) postOp(node vfs.NodeID, p *nfs3.PostOpAttr) {
	if node != 0 && !r.op.Waits && r.exp.FS.GetAttr(&r.op, node, &r.attr) == nil {
		p.Set(&r.attr)
	}
}

// complete fills in the attributes after a change, or after an attempt, if the
// file system has not given any.
func (r *request) complete(node vfs.NodeID, w *vfs.WCC) {
	if node == 0 || w.HasPost || r.op.Waits {
		return
	}
	w.HasPre = false // others may have changed it since
	if r.exp.FS.GetAttr(&r.op, node, &r.attr) == nil {
		w.Post, w.HasPost = r.attr, true
	}
}

// sync puts changed objects on stable storage, as RFC 1813 §4.8 has it for
// everything that changes a file system but unstable WRITE; or leaves that to the
// file system (Config.AsyncMetadata). What somebody else has removed since cannot be synced
// itself; after a loss of power it may be there again, and must be as it was.
func (r *request) sync(nodes ...vfs.NodeID) error {
	if r.srv.cfg.AsyncMetadata {
		return nil
	}
	for _, n := range nodes {
		err := r.exp.FS.Sync(&r.op, n)
		if err == vfs.ErrStale || err == vfs.ErrJukebox { // it is too late to be tried again
			return r.exp.syncAll()
		}
		if err != nil {
			return err
		}
	}
	return nil
}
