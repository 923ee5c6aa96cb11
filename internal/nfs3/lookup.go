package nfs3

import "loopnfs/internal/xdr"

// LookupArgs are the arguments of LOOKUP (RFC 1813 §3.3.3).
type LookupArgs = DirOpArgs

// LookupResult are the results of LOOKUP; Handle and Attr with success only.
type LookupResult struct {
	Status  Status
	Handle  FileHandle
	Attr    PostOpAttr
	DirAttr PostOpAttr
}

// Encode appends r.
func (r *LookupResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	if r.Status == StatusOK {
		r.Handle.Encode(e)
		r.Attr.Encode(e)
	}
	r.DirAttr.Encode(e)
}

// Decode decodes r.
func (r *LookupResult) Decode(d *xdr.Decoder) error {
	*r = LookupResult{Status: Status(d.Uint32())}
	if r.Status == StatusOK {
		r.Handle.Decode(d)
		r.Attr.Decode(d)
	}
	return r.DirAttr.Decode(d)
}
