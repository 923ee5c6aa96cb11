package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// MknodArgs are the arguments of MKNOD (RFC 1813 §3.3.11): Set for devices,
// sockets and FIFOs, Major and Minor for devices. With any other Type, which
// may have any value, there is neither, and the answer is NFS3ERR_BADTYPE.
type MknodArgs struct {
	Where        DirOpArgs
	Type         vfs.FileType
	Set          vfs.SetAttr
	Major, Minor uint32
}

// Encode appends a.
func (a *MknodArgs) Encode(e *xdr.Encoder) {
	a.Where.Encode(e)
	e.Uint32(uint32(a.Type))
	if isDevice(a.Type) || isPipe(a.Type) {
		EncodeSetAttr(e, &a.Set)
	}
	if isDevice(a.Type) {
		e.Uint32(a.Major)
		e.Uint32(a.Minor)
	}
}

// Decode decodes a; the name is borrowed.
func (a *MknodArgs) Decode(d *xdr.Decoder) error {
	*a = MknodArgs{}
	a.Where.Decode(d)
	a.Type = vfs.FileType(d.Uint32())
	if isDevice(a.Type) || isPipe(a.Type) {
		DecodeSetAttr(d, &a.Set)
	}
	if isDevice(a.Type) {
		a.Major, a.Minor = d.Uint32(), d.Uint32()
	}
	return d.Err()
}

func isDevice(t vfs.FileType) bool { return t == vfs.TypeChar || t == vfs.TypeBlock }

func isPipe(t vfs.FileType) bool { return t == vfs.TypeSocket || t == vfs.TypeFIFO }

// MknodResult are the results of MKNOD.
type MknodResult = CreateResult
