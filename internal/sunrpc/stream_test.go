package sunrpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"loopnfs/internal/xdr"
	"pgregory.net/rapid"
)

type fataler interface {
	Helper()
	Fatal(...any)
}

// tcpPair returns the two ends of a TCP connection over loop-back.
func tcpPair(t fataler) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func newStream(t fataler, c net.Conn, size int) *Stream {
	t.Helper()
	s, err := NewStream(c, make([]byte, size))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// receiving returns a Stream at the other end of which send writes and closes.
func receiving(t fataler, size int, send func(net.Conn)) (*Stream, func()) {
	c, srv := tcpPair(t)
	go func() {
		send(c)
		c.Close()
	}()
	return newStream(t, srv, size), func() { srv.Close() }
}

// record returns data cut into fragments of the given sizes; the last fragment
// has the rest.
func record(data []byte, sizes ...int) []byte {
	var b []byte
	for _, n := range sizes {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		b = append(b, data[:n]...)
		data = data[n:]
	}
	b = binary.BigEndian.AppendUint32(b, lastFrag|uint32(len(data)))
	return append(b, data...)
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// ranges cuts b into slices of n bytes, with an empty one here and there.
func ranges(b []byte, n int) [][]byte {
	var v [][]byte
	for len(b) > 0 {
		k := min(n, len(b))
		v = append(v, b[:k], nil)
		b = b[k:]
	}
	return v
}

func dribble(c net.Conn, b []byte) {
	for i := range b {
		if _, err := c.Write(b[i : i+1]); err != nil {
			return
		}
	}
}

func write(b []byte) func(net.Conn) { return func(c net.Conn) { c.Write(b) } }

func TestReadsAcrossFragments(t *testing.T) {
	data := pattern(900)
	wire := append(record(data, 1, 99, 300), record(data)...)
	sends := map[string]func(net.Conn){
		"at once":            write(wire),
		"one byte at a time": func(c net.Conn) { dribble(c, wire) },
	}
	reads := map[string]func(*Stream) ([]byte, error){
		"full": func(s *Stream) ([]byte, error) { b := make([]byte, 900); return b, s.ReadFull(b) },
		"vec":  func(s *Stream) ([]byte, error) { b := make([]byte, 900); return b, s.ReadVec(ranges(b, 37)) },
		"mixed": func(s *Stream) ([]byte, error) {
			b := make([]byte, 900)
			head, err := s.Peek(60)
			copy(b, head)
			return b, errors.Join(err, s.Discard(60), s.ReadVec(ranges(b[60:500], 100)), s.ReadFull(b[500:]))
		},
	}
	for how, send := range sends {
		for name, read := range reads {
			s, done := receiving(t, MinBuffer, send)
			for i := range 2 {
				if err := s.BeginRecord(900); err != nil {
					t.Fatalf("%s, %s, record %d: %v", how, name, i, err)
				}
				got, err := read(s)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s, %s, record %d: wrong data, %v", how, name, i, err)
				}
				if n, exact := s.RecordRemaining(); n != 0 || !exact {
					t.Errorf("%s, %s: %d bytes left, %v", how, name, n, exact)
				}
			}
			if err := s.BeginRecord(900); err != io.EOF {
				t.Errorf("%s, %s: %v at the end, want EOF", how, name, err)
			}
			done()
		}
	}
}

func TestPeek(t *testing.T) {
	data := pattern(200)
	s, done := receiving(t, 128, write(record(data, 10, 20, 30)))
	defer done()
	if err := s.BeginRecord(200); err != nil {
		t.Fatal(err)
	}
	if n, exact := s.RecordRemaining(); n != 10 || exact {
		t.Errorf("%d bytes left, %v", n, exact)
	}
	for _, n := range []int{0, 5, 10, 11, 61, 124} {
		if b, err := s.Peek(n); err != nil || !bytes.Equal(b, data[:n]) {
			t.Errorf("Peek(%d): % x, %v", n, b, err)
		}
	}
	if _, err := s.Peek(125); err != ErrPeekTooLong {
		t.Errorf("Peek over the buffer: %v", err)
	}
	if err := s.Discard(150); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Peek(60); err != ErrRecordEnd || !bytes.Equal(b, data[150:]) {
		t.Errorf("Peek at the end: % x, %v", b, err)
	}
}

func TestRecordEnd(t *testing.T) {
	data := pattern(8)
	wire := append(record(data, 3), record(data)...)
	reads := map[string]func(*Stream) error{
		"full":    func(s *Stream) error { return s.ReadFull(make([]byte, 9)) },
		"vec":     func(s *Stream) error { return s.ReadVec(ranges(make([]byte, 9), 5)) },
		"discard": func(s *Stream) error { return s.Discard(9) },
		"peek":    func(s *Stream) error { _, err := s.Peek(9); return err },
	}
	for name, read := range reads {
		s, done := receiving(t, MinBuffer, write(wire))
		if err := read(s); err != ErrRecordEnd {
			t.Errorf("%s outside a record: %v", name, err)
		}
		for range 2 {
			if err := s.BeginRecord(100); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := read(s); err != ErrRecordEnd {
				t.Errorf("%s: %v", name, err)
			}
			if err := s.EndRecord(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		done()
	}
}

func TestEndRecordDiscardsTheRest(t *testing.T) {
	big := pattern(100000)
	wire := append(record(big, 1, 70000, 4), record([]byte("next"))...)
	s, done := receiving(t, MinBuffer, write(wire))
	defer done()
	if err := errors.Join(s.BeginRecord(100000), s.Discard(5), s.EndRecord(), s.BeginRecord(4)); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Peek(4); string(b) != "next" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestBadRecords(t *testing.T) {
	frag := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	many := bytes.Repeat([]byte{0, 0, 0, 1, 'x'}, MaxFragments)
	tests := []struct {
		name string
		wire []byte
		want error
	}{
		{"empty record", frag(lastFrag), ErrEmptyFragment},
		{"empty fragment", append(record(pattern(4))[:0:0], frag(0)...), ErrEmptyFragment},
		{"empty last fragment", append([]byte{0, 0, 0, 1, 'x'}, frag(lastFrag)...), ErrEmptyFragment},
		{"too long", frag(lastFrag | 101), ErrRecordTooLong},
		{"huge", frag(0xffffffff), ErrRecordTooLong},
		{"too long in sum", record(pattern(101), 50), ErrRecordTooLong},
		{"64 fragments", append(many[:len(many)-5:len(many)-5], record([]byte{'x'})...), nil},
		{"65 fragments", append(many[:len(many):len(many)], record([]byte{'x'})...), ErrManyFragments},
		{"cut in the first mark", []byte{128, 0}, io.ErrUnexpectedEOF},
		{"cut in a mark", []byte{0, 0, 0, 1, 'x', 0}, io.ErrUnexpectedEOF},
		{"cut in the data", record(pattern(50))[:30], io.ErrUnexpectedEOF},
		{"cut between fragments", []byte{0, 0, 0, 1, 'x'}, io.ErrUnexpectedEOF},
		{"closed", nil, io.EOF},
	}
	reads := map[string]func(*Stream) error{
		"end":  (*Stream).EndRecord,
		"full": func(s *Stream) error { return s.ReadFull(make([]byte, 200)) },
		"vec":  func(s *Stream) error { return s.ReadVec(ranges(make([]byte, 200), 3)) },
	}
	for _, tt := range tests {
		for name, read := range reads {
			s, done := receiving(t, MinBuffer, write(tt.wire))
			err := s.BeginRecord(100)
			if err == nil {
				err = read(s)
			}
			if err == ErrRecordEnd {
				err = nil
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("%s, %s: %v, want %v", tt.name, name, err, tt.want)
			}
			if err != nil && !errors.Is(s.BeginRecord(100), tt.want) {
				t.Errorf("%s, %s: the error did not stay", tt.name, name)
			}
			done()
		}
	}
	for _, err := range []error{ErrEmptyFragment, ErrRecordTooLong, ErrManyFragments} {
		if !errors.Is(err, ErrBadRecord) {
			t.Errorf("%v is no ErrBadRecord", err)
		}
	}
}

func TestDeadlineBetweenRecordsCanBeRetried(t *testing.T) {
	c, srv := tcpPair(t)
	defer c.Close()
	defer srv.Close()
	s := newStream(t, srv, MinBuffer)
	wire := record([]byte("late"))
	c.Write(wire[:2])
	srv.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if err := s.BeginRecord(10); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v, want a missed deadline", err)
	}
	srv.SetReadDeadline(time.Time{})
	c.Write(wire[2:])
	b := make([]byte, 4)
	if err := errors.Join(s.BeginRecord(10), s.ReadFull(b)); err != nil || string(b) != "late" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestNewStreamRefuses(t *testing.T) {
	c, srv := tcpPair(t)
	defer c.Close()
	defer srv.Close()
	if _, err := NewStream(c, make([]byte, MinBuffer-1)); err == nil {
		t.Error("a buffer that is too small")
	}
	p, _ := net.Pipe()
	if _, err := NewStream(p, make([]byte, MinBuffer)); err == nil {
		t.Error("a connection without a file descriptor")
	}
}

// TestWriteVec sends more than the socket takes and more ranges than one
// system call takes, so that partial writes happen.
func TestWriteVec(t *testing.T) {
	c, srv := tcpPair(t)
	defer c.Close()
	defer srv.Close()
	c.SetWriteBuffer(4096)
	data := pattern(4 << 20)
	bufs := append([][]byte{nil, record(nil)[:0]}, ranges(data, 1000)...)
	lens := len(bufs)
	out := newStream(t, c, MinBuffer)
	failed := make(chan error, 1)
	go func() { failed <- out.WriteVec(bufs) }()
	got := make([]byte, len(data))
	for off := 0; off < len(got); off += min(65536, len(got)-off) {
		if off == 1<<20 {
			time.Sleep(20 * time.Millisecond) // let the writer run into a full socket
		}
		if _, err := io.ReadFull(srv, got[off:off+min(65536, len(got)-off)]); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-failed; err != nil || !bytes.Equal(got, data) {
		t.Errorf("wrong data, %v", err)
	}
	if len(bufs) != lens || len(bufs[2]) != 1000 || &bufs[2][0] != &data[0] {
		t.Error("the caller's slices were changed")
	}
}

func TestWriteErrorStays(t *testing.T) {
	c, srv := tcpPair(t)
	srv.Close()
	s := newStream(t, c, MinBuffer)
	c.Close()
	err := s.WriteVec([][]byte{{1}})
	if !errors.Is(err, net.ErrClosed) || s.WriteVec(nil) != err {
		t.Errorf("%v, then %v", err, s.WriteVec(nil))
	}
}

// TestBothDirections reads and writes one Stream at once, under -race.
func TestBothDirections(t *testing.T) {
	c, srv := tcpPair(t)
	defer c.Close()
	defer srv.Close()
	a, b := newStream(t, c, 256), newStream(t, srv, 256)
	const records = 200
	done := make(chan error, 4)
	for _, s := range []*Stream{a, b} {
		go func() { done <- sendAll(s, records) }()
		go func() { done <- receiveAll(s, records) }()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func sendAll(s *Stream, records int) error {
	var e xdr.Encoder
	for i := range records {
		data := pattern(i * 50)
		e.Buf = e.Buf[:0]
		mark := BeginRecord(&e)
		e.Uint32(uint32(len(data)))
		EndRecord(&e, mark, len(data))
		if err := s.WriteVec([][]byte{e.Buf, data}); err != nil {
			return err
		}
	}
	return nil
}

func receiveAll(s *Stream, records int) error {
	for i := range records {
		got := make([]byte, i*50)
		if err := errors.Join(s.BeginRecord(1<<20), s.Discard(4), s.ReadVec(ranges(got, 999))); err != nil {
			return err
		}
		if n, exact := s.RecordRemaining(); n != 0 || !exact || !bytes.Equal(got, pattern(i*50)) {
			return errors.New("wrong data")
		}
	}
	return nil
}

// TestStreamProperty cuts records at random and reads them at random.
func TestStreamProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := pattern(rapid.IntRange(1, 2000).Draw(t, "size"))
		var cuts []int
		for rest := len(data); rest > 1 && len(cuts) < MaxFragments-1 && rapid.Bool().Draw(t, "cut"); {
			cuts = append(cuts, rapid.IntRange(1, rest-1).Draw(t, "fragment"))
			rest -= cuts[len(cuts)-1]
		}
		s, done := receiving(t, rapid.IntRange(MinBuffer, 400).Draw(t, "buffer"), write(record(data, cuts...)))
		defer done()
		if err := s.BeginRecord(len(data)); err != nil {
			t.Fatal(err)
		}
		for len(data) > 0 {
			data = data[readSome(t, s, data):]
		}
		if err := s.BeginRecord(1); err != io.EOF {
			t.Fatalf("%v at the end", err)
		}
	})
}

// readSome reads some of want in some way and returns how much.
func readSome(t *rapid.T, s *Stream, want []byte) int {
	n := rapid.IntRange(1, len(want)).Draw(t, "n")
	got, err := make([]byte, n), error(nil)
	switch rapid.IntRange(0, 3).Draw(t, "how") {
	case 0:
		err = s.ReadFull(got)
	case 1:
		err = s.ReadVec(ranges(got, rapid.IntRange(1, 100).Draw(t, "range")))
	case 2:
		err, got = s.Discard(n), want[:n]
	case 3:
		n = min(n, MinBuffer-4)
		got, err = s.Peek(n)
		got = bytes.Clone(got)
		err = errors.Join(err, s.Discard(n))
	}
	if err != nil || !bytes.Equal(got, want[:n]) {
		t.Fatalf("%d bytes: %v, or wrong data", n, err)
	}
	return n
}

func FuzzStream(f *testing.F) {
	f.Add(record(pattern(100), 10, 20))
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Add([]byte{0, 0, 0, 0, 128, 0, 0, 0})
	f.Fuzz(func(t *testing.T, wire []byte) {
		s, done := receiving(t, MinBuffer, write(wire))
		defer done()
		for err := error(nil); err == nil; {
			if err = s.BeginRecord(1000); err == nil {
				s.Peek(20)
				s.ReadVec([][]byte{make([]byte, 7), make([]byte, 100)})
				err = s.EndRecord()
			}
			if n, _ := s.RecordRemaining(); n < 0 || s.r > s.w {
				t.Fatalf("%d left, buffer %d to %d", n, s.r, s.w)
			}
		}
	})
}

// echo is a WRITE of 64 KiB and its reply, in place.
type echo struct {
	c, s       *Stream
	req, rep   xdr.Encoder
	out, in    [][]byte
	reply      [][]byte
	closeConns func()
}

func newEcho(t fataler, size int) *echo {
	c, srv := tcpPair(t)
	x := &echo{c: newStream(t, c, 4096), s: newStream(t, srv, 4096)}
	x.closeConns = func() { c.Close(); srv.Close() }
	mark := BeginRecord(&x.req)
	EncodeCall(&x.req, sysCall())
	EndRecord(&x.req, mark, size)
	mark = BeginRecord(&x.rep)
	ReplySuccess(&x.rep, 7)
	EndRecord(&x.rep, mark, 0)
	for range size / 4096 {
		x.out, x.in = append(x.out, make([]byte, 4096)), append(x.in, make([]byte, 4096))
	}
	x.out = append([][]byte{x.req.Buf}, x.out...)
	x.reply = [][]byte{x.rep.Buf}
	return x
}

// serve takes one call and answers it.
func (x *echo) serve() error {
	if err := x.s.BeginRecord(2 << 20); err != nil {
		return err
	}
	b, err := x.s.Peek(min(MaxCallHeader, x.s.left))
	if err != nil {
		return err
	}
	var call Call
	d := xdr.NewDecoder(b)
	if err := DecodeCall(&d, &call); err != nil {
		return err
	}
	if err := x.s.Discard(d.Offset()); err != nil {
		return err
	}
	if err := x.s.ReadVec(x.in); err != nil {
		return err
	}
	return x.s.WriteVec(x.reply)
}

func (x *echo) call() error {
	if err := x.c.WriteVec(x.out); err != nil {
		return err
	}
	if err := x.c.BeginRecord(1000); err != nil {
		return err
	}
	b, err := x.c.Peek(x.c.left)
	if err != nil {
		return err
	}
	d := xdr.NewDecoder(b)
	if _, err := DecodeReply(&d); err != nil {
		return err
	}
	return x.c.EndRecord()
}

func (x *echo) serveAll() {
	for x.serve() == nil {
	}
}

func TestStreamDoesNotAllocate(t *testing.T) {
	x := newEcho(t, 64<<10)
	defer x.closeConns()
	go x.serveAll()
	n := testing.AllocsPerRun(200, func() {
		if err := x.call(); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkStream(b *testing.B) {
	for _, bm := range []struct {
		name string
		size int
	}{{"4KiB", 4 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
		b.Run(bm.name, func(b *testing.B) {
			x := newEcho(b, bm.size)
			defer x.closeConns()
			go x.serveAll()
			b.SetBytes(int64(bm.size))
			b.ReportAllocs()
			for b.Loop() {
				if err := x.call(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Ranges that touch are one to the kernel, which looks at each.
func TestAdjacentRangesAreOne(t *testing.T) {
	b := make([]byte, 100)
	var v vecIO
	v.init(syscall.SYS_WRITEV)
	for _, r := range [][2]int{{0, 10}, {10, 30}, {31, 40}, {40, 41}, {20, 31}, {50, 60}} {
		v.add(b[r[0]:r[1]])
	}
	var got [][2]int
	for _, iov := range v.iov[:v.niov] {
		from := int(uintptr(unsafe.Pointer(iov.Base)) - uintptr(unsafe.Pointer(&b[0])))
		got = append(got, [2]int{from, from + int(iov.Len)})
	}
	if want := [][2]int{{0, 30}, {31, 41}, {20, 31}, {50, 60}}; !slices.Equal(got, want) {
		t.Errorf("the ranges are %v, want %v", got, want)
	}
}
