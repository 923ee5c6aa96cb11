package nfsserver

import (
	"cmp"

	"loopnfs/alloc"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// fsinfo answers FSINFO (RFC 1813 §3.3.19).
func fsinfo(r *request) {
	var args nfs3.FSInfoArgs
	var res nfs3.FSInfoResult
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	if err == nil {
		if r.conn.isLocal() && r.srv.cfg.Locks != nil {
			r.srv.cfg.Locks.Mounting()
		}
		st, statErr := r.exp.FS.StatFS(&r.op, node)
		res.Info, err = r.exp.info(&st, r.srv.dirMax), statErr
	}
	res.Status = statusOf(err)
	r.postOp(node, &res.Attr)
	res.Encode(&r.enc)
}

func (x *export) info(st *vfs.StatFS, dirMax int) nfs3.FSInfo {
	mult := min(x.ioMax, alloc.PageSize)
	props := uint32(nfs3.FSFSymlink | nfs3.FSFHomogeneous | nfs3.FSFCanSetTime)
	if linksOf(st) > 1 {
		props |= nfs3.FSFLink
	}
	return nfs3.FSInfo{
		RTMax: x.ioMax, RTPref: x.ioMax, RTMult: mult,
		WTMax: x.ioMax, WTPref: x.ioMax, WTMult: mult,
		DTPref:      uint32(dirMax),
		MaxFileSize: cmp.Or(st.MaxFile, maxFileSize),
		TimeDelta:   vfs.Time{Nsec: 1},
		Properties:  props,
	}
}
