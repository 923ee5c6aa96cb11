package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// SymlinkArgs are the arguments of SYMLINK (RFC 1813 §3.3.10). Target has at
// most MaxSymlink bytes, or else the error is ErrNameTooLong.
type SymlinkArgs struct {
	Where  DirOpArgs
	Set    vfs.SetAttr
	Target []byte
}

// Encode appends a.
func (a *SymlinkArgs) Encode(e *xdr.Encoder) {
	a.Where.Encode(e)
	EncodeSetAttr(e, &a.Set)
	e.Opaque(a.Target)
}

// Decode decodes a; name and target are borrowed.
func (a *SymlinkArgs) Decode(d *xdr.Decoder) error {
	a.Where.Decode(d)
	DecodeSetAttr(d, &a.Set)
	a.Target = d.OpaqueMax(MaxSymlink, ErrNameTooLong)
	return d.Err()
}

// SymlinkResult are the results of SYMLINK.
type SymlinkResult = CreateResult
