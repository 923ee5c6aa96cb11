package nfs3

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// ReaddirArgs are the arguments of READDIR (RFC 1813 §3.3.16).
type ReaddirArgs struct {
	Handle FileHandle
	Cookie uint64
	Verf   vfs.Verifier
	Count  uint32 // largest READDIR3resok, in bytes
}

// Encode appends a.
func (a *ReaddirArgs) Encode(e *xdr.Encoder) {
	a.Handle.Encode(e)
	e.Uint64(a.Cookie)
	e.FixedOpaque(a.Verf[:])
	e.Uint32(a.Count)
}

// Decode decodes a.
func (a *ReaddirArgs) Decode(d *xdr.Decoder) error {
	a.Handle.Decode(d)
	a.Cookie = d.Uint64()
	a.Verf = decodeVerf(d)
	a.Count = d.Uint32()
	return d.Err()
}

// ReaddirResult is the beginning of the results of READDIR and READDIRPLUS:
// what comes before the entries, Verf with success only. With success the
// entries follow: a server appends them with a DirWriter, a client decodes them
// with NextEntry or NextEntryPlus.
type ReaddirResult struct {
	Status  Status
	DirAttr PostOpAttr
	Verf    vfs.Verifier
}

// Encode appends r.
func (r *ReaddirResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	r.DirAttr.Encode(e)
	if r.Status == StatusOK {
		e.FixedOpaque(r.Verf[:])
	}
}

// Decode decodes r.
func (r *ReaddirResult) Decode(d *xdr.Decoder) error {
	*r = ReaddirResult{Status: Status(d.Uint32())}
	r.DirAttr.Decode(d)
	if r.Status == StatusOK {
		r.Verf = decodeVerf(d)
	}
	return d.Err()
}

// EntrySize returns the encoded size in bytes of an entry of READDIR with a name
// of nameLen bytes, the word that announces it included.
func EntrySize(nameLen int) int { return 4 + 8 + xdr.OpaqueLen(nameLen) + 8 }

// listTail is the size of what ends a list: no more entries, and eof.
const listTail = 8

// DirWriter appends the entries of a directory listing as long as they fit. It
// counts as RFC 1813 §3.3.16 and §3.3.17 do: the limit is for the whole of
// READDIR3resok, attributes, verifier and end of the list included, without the
// status. A DirWriter is used for one listing:
//
//	head.Encode(e) // ReaddirResult
//	w.Start(e, &head, args.Count)
//	for w.Entry(&ent) { ... }
//	w.End(eof)
type DirWriter struct {
	e       *xdr.Encoder
	room    int   // bytes left for entries
	dirRoom int64 // bytes left of dircount, READDIRPLUS only
	n       int
}

// Start begins a listing behind head, which has been encoded with success. It
// takes up to maxCount bytes; the caller caps maxCount to the size of its
// buffer. It returns false, and no entry will fit, if maxCount has not even
// room for an empty listing.
func (w *DirWriter) Start(e *xdr.Encoder, head *ReaddirResult, maxCount uint32) bool {
	return w.start(e, head, maxCount, maxCount)
}

func (w *DirWriter) start(e *xdr.Encoder, head *ReaddirResult, dirCount, maxCount uint32) bool {
	room := int64(maxCount) - int64(head.DirAttr.Len()+VerfLen+listTail)
	*w = DirWriter{e: e, room: int(max(room, 0)), dirRoom: int64(dirCount)}
	return room >= 0
}

// Entry appends ent and reports whether it did: if it does not fit, nothing is
// appended. The name has at most MaxName bytes.
func (w *DirWriter) Entry(ent *vfs.DirEntry) bool {
	if !w.take(EntrySize(len(ent.Name))) {
		return false
	}
	w.entry(ent)
	return true
}

func (w *DirWriter) entry(ent *vfs.DirEntry) {
	w.e.Bool(true)
	w.e.Uint64(ent.Ino)
	w.e.Opaque(ent.Name)
	w.e.Uint64(ent.Cookie)
	w.n++
}

func (w *DirWriter) take(size int) bool {
	if size > w.room {
		return false
	}
	w.room -= size
	return true
}

// Len returns the number of entries appended. If it is 0 and the directory has
// not ended, the answer is NFS3ERR_TOOSMALL.
func (w *DirWriter) Len() int { return w.n }

// Room returns how many bytes are left for entries.
func (w *DirWriter) Room() int { return w.room }

// End appends the end of the list.
func (w *DirWriter) End(eof bool) {
	w.e.Bool(false)
	w.e.Bool(eof)
}

// NextEntry decodes the next entry of READDIR into ent. It returns false at the
// end of the list and on errors; ListEOF tells which. The name is borrowed and
// has at most MaxName bytes, ErrNameTooLong otherwise.
func NextEntry(d *xdr.Decoder, ent *vfs.DirEntry) bool {
	*ent = vfs.DirEntry{}
	if !d.Bool() {
		return false
	}
	ent.Ino = d.Uint64()
	ent.Name = d.OpaqueMax(MaxName, ErrNameTooLong)
	ent.Cookie = d.Uint64()
	return d.Err() == nil
}

// ListEOF decodes what follows the last entry: whether the directory ends there.
// It is called once NextEntry or NextEntryPlus has returned false, and returns
// the error that they ran into.
func ListEOF(d *xdr.Decoder) (bool, error) {
	eof := d.Bool()
	return eof, d.Err()
}
