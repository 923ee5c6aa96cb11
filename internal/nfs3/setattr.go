package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// SetAttrArgs are the arguments of SETATTR (RFC 1813 §3.3.2); the guard is part
// of Set.
type SetAttrArgs struct {
	Handle FileHandle
	Set    vfs.SetAttr
}

// Encode appends a.
func (a *SetAttrArgs) Encode(e *xdr.Encoder) {
	a.Handle.Encode(e)
	EncodeSetAttr(e, &a.Set)
	encodeGuard(e, &a.Set)
}

// Decode decodes a.
func (a *SetAttrArgs) Decode(d *xdr.Decoder) error {
	a.Handle.Decode(d)
	DecodeSetAttr(d, &a.Set)
	decodeGuard(d, &a.Set)
	return d.Err()
}

// SetAttrResult are the results of SETATTR: data of the object.
type SetAttrResult = WCCResult
