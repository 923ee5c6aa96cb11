package nfsserver

import (
	"unsafe"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// lookup answers LOOKUP (RFC 1813 §3.3.3).
func lookup(r *request) {
	var args nfs3.LookupArgs
	var res nfs3.LookupResult
	dir, err := r.node(args.Decode(&r.dec), &args.Dir)
	if err == nil {
		err = r.lookup(dir, args.Name, &res)
	}
	res.Status = statusOf(err)
	r.postOp(dir, &res.DirAttr)
	res.Encode(&r.enc)
}

func (r *request) lookup(dir vfs.NodeID, name []byte, res *nfs3.LookupResult) error {
	ent, err := r.lookupEntry(dir, name)
	if err != nil {
		return err
	}
	res.Attr.Set(&ent.Attr)
	res.Handle, err = r.fileHandle(ent.Node)
	return err
}

// lookupEntry is FS.Lookup, and knows ".", too. The node is referenced until the
// request ends.
func (r *request) lookupEntry(dir vfs.NodeID, name []byte) (vfs.Entry, error) {
	if string(name) == "." {
		err := r.exp.FS.GetAttr(&r.op, dir, &r.attr)
		return vfs.Entry{Node: dir, Attr: r.attr}, err
	}
	ent, err := r.exp.FS.Lookup(&r.op, dir, borrowed(name))
	if err == nil {
		r.hold(ent.Node)
	}
	return ent, err
}

// borrowed returns b as a string without copying it. FS.Lookup may use the name
// until it returns, and b stays unchanged until then.
func borrowed(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
