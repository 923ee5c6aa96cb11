package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// FSStatArgs are the arguments of FSSTAT (RFC 1813 §3.3.18).
type FSStatArgs = HandleArgs

// FSStatResult are the results of FSSTAT; all but Attr with success only.
// BlockSize and NameMax of Stat are not part of them.
type FSStatResult struct {
	Status   Status
	Attr     PostOpAttr
	Stat     vfs.StatFS
	Invarsec uint32 // seconds for which the numbers hold; 0: not known
}

// Encode appends r.
func (r *FSStatResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	r.Attr.Encode(e)
	if r.Status != StatusOK {
		return
	}
	e.Uint64(r.Stat.TotalBytes)
	e.Uint64(r.Stat.FreeBytes)
	e.Uint64(r.Stat.AvailBytes)
	e.Uint64(r.Stat.TotalFiles)
	e.Uint64(r.Stat.FreeFiles)
	e.Uint64(r.Stat.AvailFiles)
	e.Uint32(r.Invarsec)
}

// Decode decodes r.
func (r *FSStatResult) Decode(d *xdr.Decoder) error {
	*r = FSStatResult{Status: Status(d.Uint32())}
	r.Attr.Decode(d)
	if r.Status != StatusOK {
		return d.Err()
	}
	s := &r.Stat
	s.TotalBytes, s.FreeBytes, s.AvailBytes = d.Uint64(), d.Uint64(), d.Uint64()
	s.TotalFiles, s.FreeFiles, s.AvailFiles = d.Uint64(), d.Uint64(), d.Uint64()
	r.Invarsec = d.Uint32()
	return d.Err()
}
