package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// RenameArgs are the arguments of RENAME (RFC 1813 §3.3.14).
type RenameArgs struct{ From, To DirOpArgs }

// Encode appends a.
func (a *RenameArgs) Encode(e *xdr.Encoder) {
	a.From.Encode(e)
	a.To.Encode(e)
}

// Decode decodes a; both names are borrowed.
func (a *RenameArgs) Decode(d *xdr.Decoder) error {
	a.From.Decode(d)
	return a.To.Decode(d)
}

// RenameResult are the results of RENAME: data of the old and of the new
// directory.
type RenameResult struct {
	Status   Status
	From, To vfs.WCC
}

// Encode appends r.
func (r *RenameResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	EncodeWCC(e, &r.From)
	EncodeWCC(e, &r.To)
}

// Decode decodes r.
func (r *RenameResult) Decode(d *xdr.Decoder) error {
	r.Status = Status(d.Uint32())
	DecodeWCC(d, &r.From)
	DecodeWCC(d, &r.To)
	return d.Err()
}
