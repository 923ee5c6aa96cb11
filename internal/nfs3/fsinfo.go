package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// FSInfoArgs are the arguments of FSINFO (RFC 1813 §3.3.19).
type FSInfoArgs = HandleArgs

// Properties of a file system (FSF3_* of RFC 1813 §3.3.19).
const (
	FSFLink        = 0x01
	FSFSymlink     = 0x02
	FSFHomogeneous = 0x08
	FSFCanSetTime  = 0x10
)

// FSInfo is what FSINFO returns; sizes are in bytes.
type FSInfo struct {
	RTMax, RTPref, RTMult uint32 // of READ: largest, preferred, multiple
	WTMax, WTPref, WTMult uint32 // of WRITE
	DTPref                uint32 // of READDIR, preferred
	MaxFileSize           uint64
	TimeDelta             vfs.Time // granularity of time stamps
	Properties            uint32   // FSFLink and so on
}

// FSInfoResult are the results of FSINFO; Info with success only.
type FSInfoResult struct {
	Status Status
	Attr   PostOpAttr
	Info   FSInfo
}

// Encode appends r.
func (r *FSInfoResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	r.Attr.Encode(e)
	if r.Status == StatusOK {
		r.Info.encode(e)
	}
}

// Decode decodes r.
func (r *FSInfoResult) Decode(d *xdr.Decoder) error {
	*r = FSInfoResult{Status: Status(d.Uint32())}
	r.Attr.Decode(d)
	if r.Status == StatusOK {
		r.Info.decode(d)
	}
	return d.Err()
}

func (i *FSInfo) encode(e *xdr.Encoder) {
	e.Uint32(i.RTMax)
	e.Uint32(i.RTPref)
	e.Uint32(i.RTMult)
	e.Uint32(i.WTMax)
	e.Uint32(i.WTPref)
	e.Uint32(i.WTMult)
	e.Uint32(i.DTPref)
	e.Uint64(i.MaxFileSize)
	EncodeTime(e, i.TimeDelta)
	e.Uint32(i.Properties)
}

func (i *FSInfo) decode(d *xdr.Decoder) {
	i.RTMax, i.RTPref, i.RTMult = d.Uint32(), d.Uint32(), d.Uint32()
	i.WTMax, i.WTPref, i.WTMult = d.Uint32(), d.Uint32(), d.Uint32()
	i.DTPref = d.Uint32()
	i.MaxFileSize = d.Uint64()
	i.TimeDelta = DecodeTime(d)
	i.Properties = d.Uint32()
}
