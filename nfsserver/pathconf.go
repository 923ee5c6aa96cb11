package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// linkMax is the number of links that ext4 allows, the least of the usual file
// systems; one with a lower limit answers NFS3ERR_MLINK in time.
const linkMax = 65000

func linksOf(st *vfs.StatFS) uint32 {
	if st.LinkMax == 0 {
		return linkMax
	}
	return st.LinkMax
}

// pathconf answers PATHCONF (RFC 1813 §3.3.20).
func pathconf(r *request) {
	var args nfs3.PathConfArgs
	res := nfs3.PathConfResult{Conf: nfs3.PathConf{NoTrunc: true, ChownRestricted: true, CasePreserving: true}}
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	if err == nil {
		st, statErr := r.exp.FS.StatFS(&r.op, node)
		res.Conf.NameMax, res.Conf.LinkMax, err = min(st.NameMax, nfs3.MaxName), linksOf(&st), statErr
	}
	res.Status = statusOf(err)
	r.postOp(node, &res.Attr)
	res.Encode(&r.enc)
}
