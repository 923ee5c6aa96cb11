package nfs3

import "loopnfs/internal/xdr"

// AccessArgs are the arguments of ACCESS (RFC 1813 §3.3.4); Access holds the
// bits of vfs.AccessRead and so on, in which unknown ones may be set.
type AccessArgs struct {
	Handle FileHandle
	Access uint32
}

// Encode appends a.
func (a *AccessArgs) Encode(e *xdr.Encoder) {
	a.Handle.Encode(e)
	e.Uint32(a.Access)
}

// Decode decodes a.
func (a *AccessArgs) Decode(d *xdr.Decoder) error {
	a.Handle.Decode(d)
	a.Access = d.Uint32()
	return d.Err()
}

// AccessResult are the results of ACCESS; Access with success only.
type AccessResult struct {
	Status Status
	Attr   PostOpAttr
	Access uint32
}

// Encode appends r.
func (r *AccessResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	r.Attr.Encode(e)
	if r.Status == StatusOK {
		e.Uint32(r.Access)
	}
}

// Decode decodes r.
func (r *AccessResult) Decode(d *xdr.Decoder) error {
	*r = AccessResult{Status: Status(d.Uint32())}
	r.Attr.Decode(d)
	if r.Status == StatusOK {
		r.Access = d.Uint32()
	}
	return d.Err()
}
