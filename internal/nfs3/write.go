package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// WriteArgs are the arguments of WRITE (RFC 1813 §3.3.7) up to and with the
// length word of the data; DataLen bytes and their padding (xdr.PadLen) follow.
type WriteArgs struct {
	Handle  FileHandle
	Offset  uint64
	Count   uint32 // bytes to write
	Stable  vfs.Stable
	DataLen uint32 // always Count
}

// Encode appends a, with Count for DataLen.
func (a *WriteArgs) Encode(e *xdr.Encoder) {
	a.Handle.Encode(e)
	e.Uint64(a.Offset)
	e.Uint32(a.Count)
	e.Uint32(uint32(a.Stable))
	e.Uint32(a.Count)
}

// Decode decodes a; xdr.ErrBadValue if DataLen is not Count. The caller compares
// Count with its limit and with what is left of the record.
func (a *WriteArgs) Decode(d *xdr.Decoder) error {
	a.Handle.Decode(d)
	a.Offset = d.Uint64()
	a.Count = d.Uint32()
	a.Stable = vfs.Stable(d.Enum(uint32(vfs.FileSync)))
	a.DataLen = decodeDataLen(d, a.Count)
	return d.Err()
}

// WriteResult are the results of WRITE; all but WCC with success only.
type WriteResult struct {
	Status    Status
	WCC       vfs.WCC
	Count     uint32 // bytes written
	Committed vfs.Stable
	Verf      vfs.Verifier
}

// Encode appends r.
func (r *WriteResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	EncodeWCC(e, &r.WCC)
	if r.Status != StatusOK {
		return
	}
	e.Uint32(r.Count)
	e.Uint32(uint32(r.Committed))
	e.FixedOpaque(r.Verf[:])
}

// Decode decodes r.
func (r *WriteResult) Decode(d *xdr.Decoder) error {
	*r = WriteResult{Status: Status(d.Uint32())}
	DecodeWCC(d, &r.WCC)
	if r.Status != StatusOK {
		return d.Err()
	}
	r.Count = d.Uint32()
	r.Committed = vfs.Stable(d.Enum(uint32(vfs.FileSync)))
	r.Verf = decodeVerf(d)
	return d.Err()
}

func decodeVerf(d *xdr.Decoder) (v vfs.Verifier) {
	copy(v[:], d.FixedOpaque(VerfLen))
	return v
}
