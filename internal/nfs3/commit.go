package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// CommitArgs are the arguments of COMMIT (RFC 1813 §3.3.21).
type CommitArgs struct {
	Handle FileHandle
	Offset uint64
	Count  uint32 // bytes; 0: to the end of the file
}

// Encode appends a.
func (a *CommitArgs) Encode(e *xdr.Encoder) {
	a.Handle.Encode(e)
	e.Uint64(a.Offset)
	e.Uint32(a.Count)
}

// Decode decodes a.
func (a *CommitArgs) Decode(d *xdr.Decoder) error {
	a.Handle.Decode(d)
	a.Offset = d.Uint64()
	a.Count = d.Uint32()
	return d.Err()
}

// CommitResult are the results of COMMIT; Verf with success only.
type CommitResult struct {
	Status Status
	WCC    vfs.WCC
	Verf   vfs.Verifier
}

// Encode appends r.
func (r *CommitResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	EncodeWCC(e, &r.WCC)
	if r.Status == StatusOK {
		e.FixedOpaque(r.Verf[:])
	}
}

// Decode decodes r.
func (r *CommitResult) Decode(d *xdr.Decoder) error {
	*r = CommitResult{Status: Status(d.Uint32())}
	DecodeWCC(d, &r.WCC)
	if r.Status == StatusOK {
		r.Verf = decodeVerf(d)
	}
	return d.Err()
}
