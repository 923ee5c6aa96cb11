package nfsserver

import (
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
		res.Info = r.exp.info()
	}
	res.Status = statusOf(err)
	r.postOp(node, &res.Attr)
	res.Encode(&r.enc)
}

func (x *export) info() nfs3.FSInfo {
	mult := min(x.ioMax, alloc.PageSize)
	return nfs3.FSInfo{
		RTMax: x.ioMax, RTPref: x.ioMax, RTMult: mult,
		WTMax: x.ioMax, WTPref: x.ioMax, WTMult: mult,
		DTPref:      dirMax,
		MaxFileSize: maxFileSize,
		TimeDelta:   vfs.Time{Nsec: 1},
		Properties:  nfs3.FSFLink | nfs3.FSFSymlink | nfs3.FSFHomogeneous | nfs3.FSFCanSetTime,
	}
}
