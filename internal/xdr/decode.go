package xdr

import (
	"encoding/binary"
	"errors"
)

// The errors of a Decoder. Callers compare with errors.Is.
var (
	// ErrShort is returned when the data ends inside an item.
	ErrShort = errors.New("xdr: data too short")
	// ErrTooLong is returned when an item is longer than its limit.
	ErrTooLong = errors.New("xdr: item too long")
	// ErrBadValue is returned when a value is none of those its type has.
	ErrBadValue = errors.New("xdr: value out of range")
)

// Decoder reads one byte slice from front to back. After the first error every
// call returns a zero value and changes nothing. The zero Decoder is empty.
type Decoder struct {
	buf []byte
	off int
	err error
}

// NewDecoder returns a Decoder over b, which must stay unchanged as long as
// anything decoded from it is in use.
func NewDecoder(b []byte) Decoder { return Decoder{buf: b} }

// Reset starts over with b and forgets the error.
func (d *Decoder) Reset(b []byte) { *d = Decoder{buf: b} }

// Err returns the first error, or nil.
func (d *Decoder) Err() error { return d.err }

// Fail makes err, which is not nil, the error of d unless it has one.
func (d *Decoder) Fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// Offset returns how many bytes have been decoded.
func (d *Decoder) Offset() int { return d.off }

// Rest returns what is left to decode, borrowed.
func (d *Decoder) Rest() []byte { return d.buf[d.off:] }

// Remaining returns how many bytes are left, whatever the error.
func (d *Decoder) Remaining() int { return len(d.buf) - d.off }

// Uint32 decodes an unsigned integer.
func (d *Decoder) Uint32() uint32 {
	if d.err != nil || len(d.buf)-d.off < 4 {
		d.Fail(ErrShort)
		return 0
	}
	v := binary.BigEndian.Uint32(d.buf[d.off:])
	d.off += 4
	return v
}

// Uint64 decodes an unsigned hyper integer.
func (d *Decoder) Uint64() uint64 {
	if d.err != nil || len(d.buf)-d.off < 8 {
		d.Fail(ErrShort)
		return 0
	}
	v := binary.BigEndian.Uint64(d.buf[d.off:])
	d.off += 8
	return v
}

// Bool decodes a boolean; anything but 0 and 1 is ErrBadValue.
func (d *Decoder) Bool() bool {
	v := d.Uint32()
	if v > 1 {
		d.Fail(ErrBadValue)
		return false
	}
	return v == 1
}

// Enum decodes an unsigned integer from 0 to max; more is ErrBadValue.
func (d *Decoder) Enum(max uint32) uint32 {
	v := d.Uint32()
	if v > max {
		d.Fail(ErrBadValue)
		return 0
	}
	return v
}

// Opaque decodes variable-length opaque data of at most max bytes; longer is
// ErrTooLong. The result is borrowed from the data, its capacity is its length.
func (d *Decoder) Opaque(max int) []byte { return d.OpaqueMax(max, ErrTooLong) }

// OpaqueMax is Opaque with an error of the caller's for data over the limit.
func (d *Decoder) OpaqueMax(max int, tooLong error) []byte {
	n := d.Uint32()
	if uint64(n) > uint64(max) {
		d.Fail(tooLong)
		return nil
	}
	return d.FixedOpaque(int(n))
}

// FixedOpaque decodes n bytes of opaque data and their padding. The result is
// borrowed from the data. A negative n is ErrBadValue.
func (d *Decoder) FixedOpaque(n int) []byte {
	if n < 0 {
		d.Fail(ErrBadValue)
	}
	if d.err != nil || n > d.Remaining() || PadLen(n) > d.Remaining()-n {
		d.Fail(ErrShort)
		return nil
	}
	b := d.buf[d.off : d.off+n : d.off+n]
	d.off += n + PadLen(n)
	return b
}

// String decodes a string of at most max bytes, as Opaque does: the bytes are
// borrowed and may hold anything, NUL included.
func (d *Decoder) String(max int) []byte { return d.Opaque(max) }
