package nfs3

import (
	"math"

	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// AttrLen is the encoded size of a fattr3 in bytes.
const AttrLen = 84

const (
	modeBits  = 0o7777
	nsecLimit = 1_000_000_000
)

// EncodeTime appends t as an nfstime3 (RFC 1813 §2.5), clamped to its range.
func EncodeTime(e *xdr.Encoder, t vfs.Time) {
	switch {
	case t.Sec < 0:
		e.Uint64(0)
	case t.Sec > math.MaxUint32:
		e.Uint64(math.MaxUint32<<32 | (nsecLimit - 1))
	default:
		e.Uint64(uint64(t.Sec)<<32 | uint64(t.Nsec))
	}
}

// DecodeTime decodes an nfstime3; a second of nanoseconds or more is
// xdr.ErrBadValue.
func DecodeTime(d *xdr.Decoder) vfs.Time {
	t := vfs.Time{Sec: int64(d.Uint32()), Nsec: d.Uint32()}
	if t.Nsec >= nsecLimit {
		d.Fail(xdr.ErrBadValue)
		return vfs.Time{}
	}
	return t
}

// decodeAttrTime is DecodeTime for what a server tells of a file, which others can give any
// time: the file has to be of use all the same, so the nanoseconds are clamped.
func decodeAttrTime(d *xdr.Decoder) vfs.Time {
	return vfs.Time{Sec: int64(d.Uint32()), Nsec: min(d.Uint32(), nsecLimit-1)}
}

// EncodeAttr appends a as a fattr3 (RFC 1813 §2.5).
func EncodeAttr(e *xdr.Encoder, a *vfs.Attr) {
	e.Uint32(uint32(a.Type))
	e.Uint32(a.Mode & modeBits)
	e.Uint32(a.Nlink)
	e.Uint32(a.UID)
	e.Uint32(a.GID)
	e.Uint64(a.Size)
	e.Uint64(a.Used)
	e.Uint32(a.Major)
	e.Uint32(a.Minor)
	e.Uint64(a.FSID)
	e.Uint64(a.Ino)
	EncodeTime(e, a.Atime)
	EncodeTime(e, a.Mtime)
	EncodeTime(e, a.Ctime)
}

// DecodeAttr decodes a fattr3. Bits of the mode other than permissions are
// dropped: some servers put the type there.
func DecodeAttr(d *xdr.Decoder, a *vfs.Attr) {
	a.Type = vfs.FileType(d.Enum(uint32(vfs.TypeFIFO)))
	if a.Type == 0 {
		d.Fail(xdr.ErrBadValue)
	}
	a.Mode = d.Uint32() & modeBits
	a.Nlink = d.Uint32()
	a.UID, a.GID = d.Uint32(), d.Uint32()
	a.Size, a.Used = d.Uint64(), d.Uint64()
	a.Major, a.Minor = d.Uint32(), d.Uint32()
	a.FSID, a.Ino = d.Uint64(), d.Uint64()
	a.Atime, a.Mtime, a.Ctime = decodeAttrTime(d), decodeAttrTime(d), decodeAttrTime(d)
}

// PostOpAttr is a post_op_attr (RFC 1813 §2.6): attributes that may be absent.
type PostOpAttr struct {
	Has  bool
	Attr vfs.Attr
}

// Len returns the encoded size in bytes.
func (p *PostOpAttr) Len() int {
	if !p.Has {
		return 4
	}
	return 4 + AttrLen
}

// Set makes the attributes present.
func (p *PostOpAttr) Set(a *vfs.Attr) { p.Has, p.Attr = true, *a }

// Encode appends p.
func (p *PostOpAttr) Encode(e *xdr.Encoder) { encodePostOp(e, p.Has, &p.Attr) }

// Decode decodes p.
func (p *PostOpAttr) Decode(d *xdr.Decoder) error {
	*p = PostOpAttr{}
	decodePostOp(d, &p.Has, &p.Attr)
	return d.Err()
}

func encodePostOp(e *xdr.Encoder, has bool, a *vfs.Attr) {
	e.Bool(has)
	if has {
		EncodeAttr(e, a)
	}
}

func decodePostOp(d *xdr.Decoder, has *bool, a *vfs.Attr) {
	if *has = d.Bool(); *has {
		DecodeAttr(d, a)
	}
}

// EncodeWCC appends w as a wcc_data (RFC 1813 §2.6).
func EncodeWCC(e *xdr.Encoder, w *vfs.WCC) {
	e.Bool(w.HasPre)
	if w.HasPre {
		e.Uint64(w.Pre.Size)
		EncodeTime(e, w.Pre.Mtime)
		EncodeTime(e, w.Pre.Ctime)
	}
	encodePostOp(e, w.HasPost, &w.Post)
}

// DecodeWCC decodes a wcc_data.
func DecodeWCC(d *xdr.Decoder, w *vfs.WCC) {
	*w = vfs.WCC{HasPre: d.Bool()}
	if w.HasPre {
		w.Pre.Size = d.Uint64()
		w.Pre.Mtime, w.Pre.Ctime = decodeAttrTime(d), decodeAttrTime(d)
	}
	decodePostOp(d, &w.HasPost, &w.Post)
}

// WCCResult are the results of a procedure that returns a status and the weak
// cache consistency data of one object, both with and without success.
type WCCResult struct {
	Status Status
	WCC    vfs.WCC
}

// Encode appends r.
func (r *WCCResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	EncodeWCC(e, &r.WCC)
}

// Decode decodes r.
func (r *WCCResult) Decode(d *xdr.Decoder) error {
	r.Status = Status(d.Uint32())
	DecodeWCC(d, &r.WCC)
	return d.Err()
}
