package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// ReaddirplusArgs are the arguments of READDIRPLUS (RFC 1813 §3.3.17).
type ReaddirplusArgs struct {
	Handle   FileHandle
	Cookie   uint64
	Verf     vfs.Verifier
	DirCount uint32 // most bytes of ids, names and cookies
	MaxCount uint32 // largest READDIRPLUS3resok, in bytes
}

// Encode appends a.
func (a *ReaddirplusArgs) Encode(e *xdr.Encoder) {
	a.Handle.Encode(e)
	e.Uint64(a.Cookie)
	e.FixedOpaque(a.Verf[:])
	e.Uint32(a.DirCount)
	e.Uint32(a.MaxCount)
}

// Decode decodes a.
func (a *ReaddirplusArgs) Decode(d *xdr.Decoder) error {
	a.Handle.Decode(d)
	a.Cookie = d.Uint64()
	a.Verf = decodeVerf(d)
	a.DirCount, a.MaxCount = d.Uint32(), d.Uint32()
	return d.Err()
}

// ReaddirplusResult is the beginning of the results of READDIRPLUS.
type ReaddirplusResult = ReaddirResult

// EntryPlus is an entry of READDIRPLUS.
type EntryPlus struct {
	vfs.DirEntry
	Attr   PostOpAttr
	Handle PostOpFH
}

// EntryPlusSize returns the encoded size in bytes of an entry of READDIRPLUS
// with a name of nameLen bytes and all else present, the handle with handleLen
// bytes: what to reckon with before attributes and handle are known.
func EntryPlusSize(nameLen, handleLen int) int {
	return EntrySize(nameLen) + 4 + AttrLen + 4 + xdr.OpaqueLen(handleLen)
}

// Size returns the encoded size of p in bytes.
func (p *EntryPlus) Size() int {
	return EntrySize(len(p.Name)) + p.Attr.Len() + p.Handle.Len()
}

// StartPlus is Start for READDIRPLUS. dirCount, which counts no attributes and
// handles, never keeps out the first entry: it is a hint, and clients send 0.
func (w *DirWriter) StartPlus(e *xdr.Encoder, head *ReaddirplusResult, dirCount, maxCount uint32) bool {
	return w.start(e, head, dirCount, maxCount)
}

// EntryPlus appends p and reports whether it did: if it does not fit, nothing is
// appended.
func (w *DirWriter) EntryPlus(p *EntryPlus) bool {
	dir := int64(EntrySize(len(p.Name)) - 4)
	if w.n > 0 && dir > w.dirRoom || !w.take(p.Size()) {
		return false
	}
	w.dirRoom -= dir
	w.entry(&p.DirEntry)
	p.Attr.Encode(w.e)
	p.Handle.Encode(w.e)
	return true
}

// In returns a writer with as much room as w for entries of the same listing, in an encoder
// of their own.
func (w *DirWriter) In(e *xdr.Encoder) DirWriter {
	return DirWriter{e: e, room: w.room, dirRoom: w.dirRoom}
}

// NextEntryPlus is NextEntry for READDIRPLUS. The type of the entry is known if
// its attributes are there.
func NextEntryPlus(d *xdr.Decoder, p *EntryPlus) bool {
	if !NextEntry(d, &p.DirEntry) {
		return false
	}
	p.Attr.Decode(d)
	p.Handle.Decode(d)
	p.Type = p.Attr.Attr.Type
	return d.Err() == nil
}
