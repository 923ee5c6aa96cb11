package nfs3

import "loopnfs/internal/xdr"

// ReadlinkArgs are the arguments of READLINK (RFC 1813 §3.3.5).
type ReadlinkArgs = HandleArgs

// ReadlinkResult are the results of READLINK; Target, of at most MaxSymlink
// bytes, with success only.
type ReadlinkResult struct {
	Status Status
	Attr   PostOpAttr
	Target []byte
}

// Encode appends r.
func (r *ReadlinkResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	r.Attr.Encode(e)
	if r.Status == StatusOK {
		e.Opaque(r.Target)
	}
}

// Decode decodes r; the target is borrowed.
func (r *ReadlinkResult) Decode(d *xdr.Decoder) error {
	*r = ReadlinkResult{Status: Status(d.Uint32())}
	r.Attr.Decode(d)
	if r.Status == StatusOK {
		r.Target = d.OpaqueMax(MaxSymlink, ErrNameTooLong)
	}
	return d.Err()
}
