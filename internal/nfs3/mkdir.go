package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// MkdirArgs are the arguments of MKDIR (RFC 1813 §3.3.9).
type MkdirArgs struct {
	Where DirOpArgs
	Set   vfs.SetAttr
}

// Encode appends a.
func (a *MkdirArgs) Encode(e *xdr.Encoder) {
	a.Where.Encode(e)
	EncodeSetAttr(e, &a.Set)
}

// Decode decodes a; the name is borrowed.
func (a *MkdirArgs) Decode(d *xdr.Decoder) error {
	a.Where.Decode(d)
	DecodeSetAttr(d, &a.Set)
	return d.Err()
}

// MkdirResult are the results of MKDIR.
type MkdirResult = CreateResult
