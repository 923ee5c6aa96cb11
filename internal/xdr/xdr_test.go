package xdr

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestEncodings(t *testing.T) {
	tests := []struct {
		name string
		enc  func(*Encoder)
		want []byte
	}{
		{"uint32", func(e *Encoder) { e.Uint32(0x01020304) }, []byte{1, 2, 3, 4}},
		{"uint64", func(e *Encoder) { e.Uint64(0x0102030405060708) }, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"true", func(e *Encoder) { e.Bool(true) }, []byte{0, 0, 0, 1}},
		{"false", func(e *Encoder) { e.Bool(false) }, []byte{0, 0, 0, 0}},
		{"opaque0", func(e *Encoder) { e.Opaque(nil) }, []byte{0, 0, 0, 0}},
		{"opaque1", func(e *Encoder) { e.Opaque([]byte{9}) }, []byte{0, 0, 0, 1, 9, 0, 0, 0}},
		{"opaque4", func(e *Encoder) { e.Opaque([]byte{9, 8, 7, 6}) }, []byte{0, 0, 0, 4, 9, 8, 7, 6}},
		{"fixed", func(e *Encoder) { e.FixedOpaque([]byte{9, 8, 7, 6, 5}) }, []byte{9, 8, 7, 6, 5, 0, 0, 0}},
		{"string", func(e *Encoder) { e.String("ab") }, []byte{0, 0, 0, 2, 'a', 'b', 0, 0}},
		{"patch", func(e *Encoder) { e.Uint64(0); e.PutUint32At(4, 5) }, []byte{0, 0, 0, 0, 0, 0, 0, 5}},
	}
	for _, tt := range tests {
		var e Encoder
		tt.enc(&e)
		if !bytes.Equal(e.Buf, tt.want) {
			t.Errorf("%s: % x, want % x", tt.name, e.Buf, tt.want)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	own := errors.New("own")
	tests := []struct {
		name string
		in   []byte
		dec  func(*Decoder)
		want error
	}{
		{"short uint32", []byte{0, 0, 0}, func(d *Decoder) { d.Uint32() }, ErrShort},
		{"short uint64", make([]byte, 7), func(d *Decoder) { d.Uint64() }, ErrShort},
		{"bad bool", []byte{0, 0, 0, 2}, func(d *Decoder) { d.Bool() }, ErrBadValue},
		{"bad enum", []byte{0, 0, 0, 4}, func(d *Decoder) { d.Enum(3) }, ErrBadValue},
		{"opaque over limit", []byte{0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0}, func(d *Decoder) { d.Opaque(4) }, ErrTooLong},
		{"own limit error", []byte{0, 0, 0, 5}, func(d *Decoder) { d.OpaqueMax(4, own) }, own},
		{"huge opaque", []byte{255, 255, 255, 255, 1}, func(d *Decoder) { d.Opaque(1 << 40) }, ErrShort},
		{"opaque cut", []byte{0, 0, 0, 5, 1, 2, 3, 4}, func(d *Decoder) { d.Opaque(9) }, ErrShort},
		{"padding cut", []byte{0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0}, func(d *Decoder) { d.Opaque(9) }, ErrShort},
		{"negative", make([]byte, 8), func(d *Decoder) { d.FixedOpaque(-1) }, ErrBadValue},
		{"largest", make([]byte, 8), func(d *Decoder) { d.FixedOpaque(int(^uint(0) >> 1)) }, ErrShort},
		{"first error stays", []byte{0, 0, 0, 2}, func(d *Decoder) { d.Bool(); d.Uint32() }, ErrBadValue},
	}
	for _, tt := range tests {
		d := NewDecoder(tt.in)
		tt.dec(&d)
		if !errors.Is(d.Err(), tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, d.Err(), tt.want)
		}
	}
}

func TestErrorIsSticky(t *testing.T) {
	d := NewDecoder([]byte{0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	d.Bool()
	off := d.Offset()
	if d.Uint32() != 0 || d.Uint64() != 0 || d.Bool() || d.Opaque(9) != nil || d.FixedOpaque(1) != nil {
		t.Error("a failed decoder returned data")
	}
	if d.Offset() != off {
		t.Errorf("a failed decoder moved from %d to %d", off, d.Offset())
	}
	d.Reset([]byte{0, 0, 0, 7})
	if d.Uint32() != 7 || d.Err() != nil {
		t.Error("Reset did not forget the error")
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := rapid.Uint32().Draw(t, "u")
		h := rapid.Uint64().Draw(t, "h")
		b := rapid.Bool().Draw(t, "b")
		o := rapid.SliceOfN(rapid.Byte(), 0, 70).Draw(t, "o")
		s := rapid.String().Draw(t, "s")
		var e Encoder
		e.Opaque(o)
		e.Uint32(u)
		e.FixedOpaque(o)
		e.Uint64(h)
		e.String(s)
		e.Bool(b)
		if e.Len()%4 != 0 || e.Len() != 2*OpaqueLen(len(o))-4+OpaqueLen(len(s))+16 {
			t.Fatalf("%d bytes", e.Len())
		}
		d := NewDecoder(e.Buf)
		if !bytes.Equal(d.Opaque(len(o)), o) || d.Uint32() != u || !bytes.Equal(d.FixedOpaque(len(o)), o) ||
			d.Uint64() != h || string(d.String(len(s))) != s || d.Bool() != b {
			t.Fatal("decoded something else")
		}
		if d.Err() != nil || d.Remaining() != 0 || d.Offset() != e.Len() {
			t.Fatalf("err %v, %d bytes left", d.Err(), d.Remaining())
		}
	})
}

// FuzzDecoder runs a program of decoder calls, one per byte of ops.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5}, make([]byte, 64))
	f.Add([]byte{3, 3, 3}, []byte{255, 255, 255, 255, 0, 0, 0, 1})
	f.Add([]byte{3}, []byte{0, 0, 0, 3, 1, 2, 3, 0})
	f.Fuzz(func(t *testing.T, ops, data []byte) {
		d := NewDecoder(data)
		for _, op := range ops {
			before, failed := d.Offset(), d.Err() != nil
			runOp(&d, op)
			if d.Offset() < before || d.Offset() > len(data) || failed && d.Offset() != before {
				t.Fatalf("offset went from %d to %d of %d", before, d.Offset(), len(data))
			}
		}
	})
}

func runOp(d *Decoder, op byte) {
	switch op % 6 {
	case 0:
		d.Uint32()
	case 1:
		d.Uint64()
	case 2:
		d.Bool()
	case 3:
		d.Opaque(int(op))
	case 4:
		d.FixedOpaque(int(op) - 4)
	case 5:
		d.Enum(uint32(op))
	}
}

func message(e *Encoder, d *Decoder, name []byte) {
	e.Buf = e.Buf[:0]
	e.Uint32(1)
	e.Uint64(2)
	e.Bool(true)
	e.Opaque(name)
	d.Reset(e.Buf)
	d.Uint32()
	d.Uint64()
	d.Bool()
	d.Opaque(255)
}

func TestNoAllocs(t *testing.T) {
	e, name := Encoder{Buf: make([]byte, 0, 64)}, []byte("some-name")
	var d Decoder
	if n := testing.AllocsPerRun(100, func() { message(&e, &d, name) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMessage(b *testing.B) {
	e, name := Encoder{Buf: make([]byte, 0, 64)}, []byte("some-name")
	var d Decoder
	b.ReportAllocs()
	for b.Loop() {
		message(&e, &d, name)
	}
}
