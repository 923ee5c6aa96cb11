package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// EncodeSetAttr appends s as a sattr3 (RFC 1813 §2.5), without its guard.
func EncodeSetAttr(e *xdr.Encoder, s *vfs.SetAttr) {
	encodeSet32(e, s.SetMode, s.Mode&modeBits)
	encodeSet32(e, s.SetUID, s.UID)
	encodeSet32(e, s.SetGID, s.GID)
	e.Bool(s.SetSize)
	if s.SetSize {
		e.Uint64(s.Size)
	}
	encodeSetTime(e, s.SetAtime, s.Atime)
	encodeSetTime(e, s.SetMtime, s.Mtime)
}

// DecodeSetAttr decodes a sattr3; the guard and what is not set become zero.
func DecodeSetAttr(d *xdr.Decoder, s *vfs.SetAttr) {
	*s = vfs.SetAttr{}
	s.SetMode, s.Mode = decodeSet32(d)
	s.Mode &= modeBits
	s.SetUID, s.UID = decodeSet32(d)
	s.SetGID, s.GID = decodeSet32(d)
	if s.SetSize = d.Bool(); s.SetSize {
		s.Size = d.Uint64()
	}
	s.SetAtime, s.Atime = decodeSetTime(d)
	s.SetMtime, s.Mtime = decodeSetTime(d)
}

func encodeSet32(e *xdr.Encoder, set bool, v uint32) {
	e.Bool(set)
	if set {
		e.Uint32(v)
	}
}

func decodeSet32(d *xdr.Decoder) (set bool, v uint32) {
	if set = d.Bool(); set {
		v = d.Uint32()
	}
	return set, v
}

func encodeSetTime(e *xdr.Encoder, how vfs.SetTime, t vfs.Time) {
	e.Uint32(uint32(how))
	if how == vfs.SetToClientTime {
		EncodeTime(e, t)
	}
}

func decodeSetTime(d *xdr.Decoder) (how vfs.SetTime, t vfs.Time) {
	how = vfs.SetTime(d.Enum(uint32(vfs.SetToClientTime)))
	if how == vfs.SetToClientTime {
		t = DecodeTime(d)
	}
	return how, t
}

// encodeGuard appends the sattrguard3 of SETATTR (RFC 1813 §3.3.2).
func encodeGuard(e *xdr.Encoder, s *vfs.SetAttr) {
	e.Bool(s.HasGuard)
	if s.HasGuard {
		EncodeTime(e, s.Guard)
	}
}

func decodeGuard(d *xdr.Decoder, s *vfs.SetAttr) {
	if s.HasGuard = d.Bool(); s.HasGuard {
		s.Guard = DecodeTime(d)
	}
}
