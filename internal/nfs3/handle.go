package nfs3

import "loopnfs/internal/xdr"

// FileHandle is an nfs_fh3 (RFC 1813 §2.3.3): 0 to 64 bytes that only the
// server understands. It is a value and can be compared; bytes past the length
// are zero.
type FileHandle struct {
	n uint8
	b [MaxHandle]byte
}

// MakeHandle returns the handle with the bytes of b; false if there are too many.
func MakeHandle(b []byte) (FileHandle, bool) {
	var h FileHandle
	ok := h.set(b)
	return h, ok
}

func (h *FileHandle) set(b []byte) bool {
	*h = FileHandle{}
	if len(b) > MaxHandle {
		return false
	}
	h.n = uint8(copy(h.b[:], b))
	return true
}

// Len returns the length in bytes.
func (h *FileHandle) Len() int { return int(h.n) }

// Bytes returns the bytes of the handle, which stay part of it.
func (h *FileHandle) Bytes() []byte { return h.b[:h.n:h.n] }

// Encode appends h.
func (h *FileHandle) Encode(e *xdr.Encoder) { e.Opaque(h.Bytes()) }

// Decode decodes h; ErrBadHandle if it is too long.
func (h *FileHandle) Decode(d *xdr.Decoder) error {
	h.set(d.OpaqueMax(MaxHandle, ErrBadHandle))
	return d.Err()
}

// PostOpFH is a post_op_fh3 (RFC 1813 §2.6): a handle that may be absent.
type PostOpFH struct {
	Has    bool
	Handle FileHandle
}

// Len returns the encoded size in bytes.
func (p *PostOpFH) Len() int {
	if !p.Has {
		return 4
	}
	return 4 + xdr.OpaqueLen(p.Handle.Len())
}

// Encode appends p.
func (p *PostOpFH) Encode(e *xdr.Encoder) {
	e.Bool(p.Has)
	if p.Has {
		p.Handle.Encode(e)
	}
}

// Decode decodes p.
func (p *PostOpFH) Decode(d *xdr.Decoder) error {
	*p = PostOpFH{Has: d.Bool()}
	if p.Has {
		p.Handle.Decode(d)
	}
	return d.Err()
}

// HandleArgs are the arguments of a procedure that takes a handle alone.
type HandleArgs struct{ Handle FileHandle }

// Encode appends a.
func (a *HandleArgs) Encode(e *xdr.Encoder) { a.Handle.Encode(e) }

// Decode decodes a.
func (a *HandleArgs) Decode(d *xdr.Decoder) error { return a.Handle.Decode(d) }

// DirOpArgs is a diropargs3 (RFC 1813 §2.6): a name in a directory, at most
// MaxName bytes, or else ErrNameTooLong. The decoder checks nothing more of it.
type DirOpArgs struct {
	Dir  FileHandle
	Name []byte
}

// Encode appends a.
func (a *DirOpArgs) Encode(e *xdr.Encoder) {
	a.Dir.Encode(e)
	e.Opaque(a.Name)
}

// Decode decodes a; the name is borrowed.
func (a *DirOpArgs) Decode(d *xdr.Decoder) error {
	a.Dir.Decode(d)
	a.Name = d.OpaqueMax(MaxName, ErrNameTooLong)
	return d.Err()
}
