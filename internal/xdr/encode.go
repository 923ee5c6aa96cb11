package xdr

import "encoding/binary"

// PadLen returns how many bytes, 0 to 3, follow n bytes of opaque data.
func PadLen(n int) int { return -n & 3 }

// OpaqueLen returns the encoded size in bytes of n bytes of variable-length
// opaque data: length word, data, padding.
func OpaqueLen(n int) int { return 4 + n + PadLen(n) }

// Encoder appends to Buf, which the caller owns. As long as cap(Buf) suffices
// nothing is allocated; the caller sets Buf back to Buf[:0] between messages.
type Encoder struct{ Buf []byte }

// Len returns the number of bytes encoded so far.
func (e *Encoder) Len() int { return len(e.Buf) }

// Uint32 appends v.
func (e *Encoder) Uint32(v uint32) { e.Buf = binary.BigEndian.AppendUint32(e.Buf, v) }

// Uint64 appends v, an unsigned hyper integer.
func (e *Encoder) Uint64(v uint64) { e.Buf = binary.BigEndian.AppendUint64(e.Buf, v) }

// Bool appends v as 0 or 1.
func (e *Encoder) Bool(v bool) {
	if v {
		e.Uint32(1)
		return
	}
	e.Uint32(0)
}

// Opaque appends b as variable-length opaque data: length, bytes, padding.
// b holds less than 4 GiB.
func (e *Encoder) Opaque(b []byte) {
	e.Uint32(uint32(len(b)))
	e.FixedOpaque(b)
}

// FixedOpaque appends b as fixed-length opaque data: bytes and padding.
func (e *Encoder) FixedOpaque(b []byte) {
	e.Buf = append(e.Buf, b...)
	e.Pad(len(b))
}

// String appends s as Opaque would.
func (e *Encoder) String(s string) {
	e.Uint32(uint32(len(s)))
	e.Buf = append(e.Buf, s...)
	e.Pad(len(s))
}

var zeros [3]byte

// Pad appends the padding that follows n bytes of opaque data.
func (e *Encoder) Pad(n int) { e.Buf = append(e.Buf, zeros[:PadLen(n)]...) }

// PutUint32At overwrites the word at offset off, which must have been encoded
// before, for lengths that are known only afterwards.
func (e *Encoder) PutUint32At(off int, v uint32) { binary.BigEndian.PutUint32(e.Buf[off:], v) }
