package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// LinkArgs are the arguments of LINK (RFC 1813 §3.3.15): a file and its new name.
type LinkArgs struct {
	Handle FileHandle
	To     DirOpArgs
}

// Encode appends a.
func (a *LinkArgs) Encode(e *xdr.Encoder) {
	a.Handle.Encode(e)
	a.To.Encode(e)
}

// Decode decodes a; the name is borrowed.
func (a *LinkArgs) Decode(d *xdr.Decoder) error {
	a.Handle.Decode(d)
	return a.To.Decode(d)
}

// LinkResult are the results of LINK: attributes of the file, data of the
// directory.
type LinkResult struct {
	Status Status
	Attr   PostOpAttr
	DirWCC vfs.WCC
}

// Encode appends r.
func (r *LinkResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	r.Attr.Encode(e)
	EncodeWCC(e, &r.DirWCC)
}

// Decode decodes r.
func (r *LinkResult) Decode(d *xdr.Decoder) error {
	r.Status = Status(d.Uint32())
	r.Attr.Decode(d)
	DecodeWCC(d, &r.DirWCC)
	return d.Err()
}
