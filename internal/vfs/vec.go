package vfs

// A Pinner owns the memory behind a Vec.
type Pinner interface {
	// Unpin lets go of the memory named by pins, in the owner's own terms.
	// It never blocks.
	Unpin(pins []uint32)
}

// Vec is file data as a list of byte ranges, in file order. Whoever filled it
// keeps the ranges unchanged in place until Release. A Vec is reused from
// request to request: Reset keeps the capacity of both slices.
type Vec struct {
	Bufs  [][]byte // the ranges
	Pins  []uint32 // what keeps them in place, in Owner's terms
	Owner Pinner   // nil if nothing has to be let go
}

// Len returns the number of bytes in v.
func (v *Vec) Len() int {
	n := 0
	for _, b := range v.Bufs {
		n += len(b)
	}
	return n
}

// Release unpins the memory behind v and empties v. A second call does nothing.
func (v *Vec) Release() {
	if v.Owner != nil && len(v.Pins) > 0 {
		v.Owner.Unpin(v.Pins)
	}
	v.Reset()
}

// Reset empties v without letting go of anything.
func (v *Vec) Reset() {
	v.Bufs, v.Pins, v.Owner = v.Bufs[:0], v.Pins[:0], nil
}

// CopyTo copies the bytes of v from offset off into dst and returns how many
// there were.
func (v *Vec) CopyTo(dst []byte, off int) int {
	n := 0
	for _, b := range v.Bufs {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		n += copy(dst[n:], b[off:])
		off = 0
		if n == len(dst) {
			break
		}
	}
	return n
}

// Slice returns in dst the ranges of v that hold n bytes from offset off. dst
// borrows v's memory: it has no pins of its own.
func (v *Vec) Slice(dst *Vec, off, n int) {
	dst.Reset()
	for _, b := range v.Bufs {
		if n == 0 {
			return
		}
		if off >= len(b) {
			off -= len(b)
			continue
		}
		b = b[off:]
		off = 0
		if len(b) > n {
			b = b[:n]
		}
		dst.Bufs = append(dst.Bufs, b)
		n -= len(b)
	}
}
