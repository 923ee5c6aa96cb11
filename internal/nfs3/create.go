package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// CreateArgs are the arguments of CREATE (RFC 1813 §3.3.8): Verf if How is
// vfs.Exclusive, otherwise Set.
type CreateArgs struct {
	Where DirOpArgs
	How   vfs.CreateMode
	Set   vfs.SetAttr
	Verf  vfs.Verifier
}

// Encode appends a.
func (a *CreateArgs) Encode(e *xdr.Encoder) {
	a.Where.Encode(e)
	e.Uint32(uint32(a.How))
	if a.How == vfs.Exclusive {
		e.FixedOpaque(a.Verf[:])
		return
	}
	EncodeSetAttr(e, &a.Set)
}

// Decode decodes a; the name is borrowed.
func (a *CreateArgs) Decode(d *xdr.Decoder) error {
	*a = CreateArgs{}
	a.Where.Decode(d)
	a.How = vfs.CreateMode(d.Enum(uint32(vfs.Exclusive)))
	if a.How == vfs.Exclusive {
		a.Verf = decodeVerf(d)
	} else {
		DecodeSetAttr(d, &a.Set)
	}
	return d.Err()
}

// CreateResult are the results of CREATE and of everything else that makes a
// file object; Handle and Attr with success only. DirWCC is of the directory.
type CreateResult struct {
	Status Status
	Handle PostOpFH
	Attr   PostOpAttr
	DirWCC vfs.WCC
}

// Encode appends r.
func (r *CreateResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	if r.Status == StatusOK {
		r.Handle.Encode(e)
		r.Attr.Encode(e)
	}
	EncodeWCC(e, &r.DirWCC)
}

// Decode decodes r.
func (r *CreateResult) Decode(d *xdr.Decoder) error {
	*r = CreateResult{Status: Status(d.Uint32())}
	if r.Status == StatusOK {
		r.Handle.Decode(d)
		r.Attr.Decode(d)
	}
	DecodeWCC(d, &r.DirWCC)
	return d.Err()
}
