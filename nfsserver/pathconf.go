package nfsserver

import "loopnfs/internal/nfs3"

// linkMax is the number of links that ext4 allows, the least of the usual file
// systems; one with a lower limit answers NFS3ERR_MLINK in time.
const linkMax = 65000

// pathconf answers PATHCONF (RFC 1813 §3.3.20).
func pathconf(r *request) {
	var args nfs3.PathConfArgs
	res := nfs3.PathConfResult{Conf: nfs3.PathConf{
		LinkMax: linkMax, NoTrunc: true, ChownRestricted: true, CasePreserving: true,
	}}
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	if err == nil {
		st, statErr := r.exp.FS.StatFS(&r.op, node)
		res.Conf.NameMax, err = min(st.NameMax, nfs3.MaxName), statErr
	}
	res.Status = statusOf(err)
	r.postOp(node, &res.Attr)
	res.Encode(&r.enc)
}
