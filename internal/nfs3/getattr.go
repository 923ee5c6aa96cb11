package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// GetAttrArgs are the arguments of GETATTR (RFC 1813 §3.3.1).
type GetAttrArgs = HandleArgs

// GetAttrResult are the results of GETATTR; Attr with success only.
type GetAttrResult struct {
	Status Status
	Attr   vfs.Attr
}

// Encode appends r.
func (r *GetAttrResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	if r.Status == StatusOK {
		EncodeAttr(e, &r.Attr)
	}
}

// Decode decodes r.
func (r *GetAttrResult) Decode(d *xdr.Decoder) error {
	*r = GetAttrResult{Status: Status(d.Uint32())}
	if r.Status == StatusOK {
		DecodeAttr(d, &r.Attr)
	}
	return d.Err()
}
