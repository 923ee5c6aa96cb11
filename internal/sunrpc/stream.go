package sunrpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"loopnfs/internal/xdr"
)

const (
	// MaxFragments is the largest number of fragments in a record.
	MaxFragments = 64
	// MinBuffer is the smallest read buffer of a Stream, in bytes.
	MinBuffer = 64

	markLen  = 4       // bytes of a record mark
	lastFrag = 1 << 31 // in a record mark: no fragment follows
	// iovBatch is how many ranges go into one system call, at most IOV_MAX
	// (1024). It covers 1 MiB in pages of 4 KiB with headers around it.
	iovBatch = 512
)

// Errors of the reading side of a Stream.
var (
	// ErrBadRecord is what all violations of record marking wrap. The
	// connection is of no use afterwards.
	ErrBadRecord = errors.New("sunrpc: bad record")
	// ErrEmptyFragment is returned for a fragment without data.
	ErrEmptyFragment = fmt.Errorf("%w: empty fragment", ErrBadRecord)
	// ErrRecordTooLong is returned for a record over the limit.
	ErrRecordTooLong = fmt.Errorf("%w: over the size limit", ErrBadRecord)
	// ErrManyFragments is returned for more than MaxFragments fragments.
	ErrManyFragments = fmt.Errorf("%w: too many fragments", ErrBadRecord)

	// ErrRecordEnd is returned for a read past the end of the record, or
	// outside of one. The Stream stays usable: EndRecord, then go on.
	ErrRecordEnd = errors.New("sunrpc: read past the end of the record")
	// ErrPeekTooLong is returned by Peek for more than the buffer can hold.
	ErrPeekTooLong = errors.New("sunrpc: peek larger than the buffer")
)

// BeginRecord appends room for a record mark to e and returns its offset.
func BeginRecord(e *xdr.Encoder) int {
	e.Uint32(0)
	return e.Len() - markLen
}

// EndRecord fills in the record mark at offset mark of e for a record of one
// fragment: all that e holds after the mark and payload more bytes, which the
// caller sends behind it. The sum is less than 2 GiB.
func EndRecord(e *xdr.Encoder, mark, payload int) {
	e.PutUint32At(mark, lastFrag|uint32(e.Len()-mark-markLen+payload))
}

// Stream is a connection that carries records. One goroutine at a time may
// read and one may write, both at once. The owner of the connection closes it,
// which ends all calls, and sets its deadlines, which they respect.
//
// Reading and writing each stop at their first error, which later calls return
// again, except for ErrRecordEnd, ErrPeekTooLong and the missed deadline of a
// read; in the middle of a record nobody knows how much that one consumed.
type Stream struct {
	raw syscall.RawConn

	in     vecIO
	reads  uint64
	buf    []byte // read ahead; the caller of NewStream gave it
	r, w   int    // buf[r:w] is received and not consumed
	rerr   error
	left   int  // bytes of the fragment not consumed, some may be in buf
	budget int  // bytes that further fragments of the record may have
	frags  int  // fragments seen of the record
	last   bool // the fragment is the record's last, or there is no record

	out  vecIO
	werr error
}

// NewStream returns a Stream over conn, which must also be a syscall.Conn, as
// *net.TCPConn is. It keeps buf, of at least MinBuffer bytes, as its read
// buffer: the larger, the fewer system calls for small records; up to its size
// is copied once.
func NewStream(conn net.Conn, buf []byte) (*Stream, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("sunrpc: %T has no file descriptor", conn)
	}
	if len(buf) < MinBuffer {
		return nil, fmt.Errorf("sunrpc: read buffer of %d bytes, need %d", len(buf), MinBuffer)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("sunrpc: %w", err)
	}
	s := &Stream{raw: raw, buf: buf, last: true}
	s.in.init(syscall.SYS_READV)
	s.out.init(syscall.SYS_WRITEV)
	return s, nil
}

// ErrGate is what reading and writing fail with when the gate is shut.
const ErrGate = syscall.ESHUTDOWN

// Gate has open asked right before each system call that sends, and right after each that
// receives: if it reports false, nothing is sent, and what came is not seen. It is called
// before the first use.
func (s *Stream) Gate(open func() bool) { s.in.gate, s.out.gate = open, open }

// BeginRecord waits for the next record and reads its first mark. What is left
// of a record before is discarded. No more than maxBytes bytes are accepted in
// all fragments together.
//
// The error is io.EOF if the peer closed the connection between records. After
// a missed deadline the call can be made again.
func (s *Stream) BeginRecord(maxBytes int) error {
	if err := s.EndRecord(); err != nil {
		return err
	}
	if err := s.fill(markLen); err != nil {
		return s.cleanEOF(err)
	}
	s.budget, s.frags = maxBytes, 0
	n, err := s.mark(s.r)
	s.r += markLen
	s.left = n
	return err
}

// cleanEOF turns an end between two records into io.EOF.
func (s *Stream) cleanEOF(err error) error {
	if err == io.ErrUnexpectedEOF && s.r == s.w {
		s.rerr = io.EOF
		return io.EOF
	}
	return err
}

// mark takes in the record mark at offset off of the buffer and returns the
// size of the fragment.
func (s *Stream) mark(off int) (int, error) {
	m := binary.BigEndian.Uint32(s.buf[off:])
	n := int(m &^ lastFrag)
	s.frags++
	switch {
	case n == 0:
		return 0, s.fail(ErrEmptyFragment)
	case n > s.budget:
		return 0, s.fail(ErrRecordTooLong)
	case s.frags > MaxFragments:
		return 0, s.fail(ErrManyFragments)
	}
	s.budget -= n
	s.last = m&lastFrag != 0
	return n, nil
}

// Buffered returns how many bytes were received and not consumed.
func (s *Stream) Buffered() int { return s.w - s.r }

// Reads returns how many times something was received: records between which it does not
// change arrived together.
func (s *Stream) Reads() uint64 { return s.reads }

// Full reports whether the last read from the socket filled all of the buffer that was
// free: there is probably more.
func (s *Stream) Full() bool { return s.w == len(s.buf) }

// SetBuffer gives the Stream another read buffer, with room for what is Buffered and at
// least MinBuffer bytes, and returns the one it had.
func (s *Stream) SetBuffer(buf []byte) (old []byte) {
	old = s.buf
	s.r, s.w, s.buf = 0, copy(buf, old[s.r:s.w]), buf
	return old
}

// Ready reports whether the next record is there in whole, so that taking it waits for
// nothing. If not sure it says no.
func (s *Stream) Ready() bool {
	if s.left > 0 || !s.last || s.w-s.r < markLen {
		return false
	}
	m := binary.BigEndian.Uint32(s.buf[s.r:])
	return m&lastFrag != 0 && s.w-s.r-markLen >= int(m&^lastFrag)
}

// RecordRemaining returns how many bytes of the record have not been consumed.
// If exact is false, they are those of one fragment and more fragments follow.
func (s *Stream) RecordRemaining() (n int, exact bool) { return s.left, s.last }

// EndRecord discards the rest of the record, if there is one.
func (s *Stream) EndRecord() error {
	for s.rerr == nil && (s.left > 0 || !s.last) {
		if err := s.Discard(max(s.left, 1)); err != nil {
			return err
		}
	}
	return s.rerr
}

// ReadFull fills p from the record. At its end the error is ErrRecordEnd.
func (s *Stream) ReadFull(p []byte) error {
	for len(p) > 0 {
		n, err := s.fragment(len(p))
		if err != nil {
			return err
		}
		if err := s.read(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// ReadVec fills all of bufs from the record, in order, directly from the
// socket but for what has been read ahead. The slices are not changed, nor kept.
func (s *Stream) ReadVec(bufs [][]byte) error {
	c := vecCursor{bufs: bufs}
	for c.skip() {
		n, err := s.fragment(len(c.head()))
		if err != nil {
			return err
		}
		if err := s.readVec(&c, n); err != nil {
			return err
		}
	}
	return nil
}

// readVec moves c on by what is buffered, at most the n bytes that the fragment
// has for the current range, or else by what one system call returns.
func (s *Stream) readVec(c *vecCursor, n int) error {
	if s.r < s.w {
		n = copy(c.head()[:n], s.buf[s.r:s.w])
		s.r += n
		s.left -= n
		c.advance(n)
		return nil
	}
	want := s.in.gather(*c, s.left)
	got, err := s.readAhead(want)
	s.left -= got
	c.advance(got)
	return err
}

// Discard consumes n bytes of the record. At its end the error is ErrRecordEnd.
func (s *Stream) Discard(n int) error {
	for n > 0 {
		k, err := s.fragment(n)
		if err != nil {
			return err
		}
		if s.r == s.w {
			if err := s.fill(1); err != nil {
				return err
			}
		}
		k = min(k, s.w-s.r)
		s.r += k
		s.left -= k
		n -= k
	}
	return nil
}

// Peek returns the next n bytes of the record in one piece without consuming
// them; they are valid until the next call that reads. If the record has fewer,
// it returns those and ErrRecordEnd. n is at most the size of the buffer less 4
// bytes, or else the error is ErrPeekTooLong.
func (s *Stream) Peek(n int) ([]byte, error) {
	if n > len(s.buf)-markLen {
		return nil, ErrPeekTooLong
	}
	n = max(n, 0)
	for s.left < n && !s.last {
		if err := s.join(); err != nil {
			return nil, err
		}
	}
	k := min(n, s.left)
	if err := s.fill(k); err != nil {
		return nil, err
	}
	if k < n {
		return s.buf[s.r : s.r+k], ErrRecordEnd
	}
	return s.buf[s.r : s.r+k], nil
}

// join makes the fragment and the next one into one: the mark between them
// gives way to the bytes before it.
func (s *Stream) join() error {
	if err := s.fill(s.left + markLen); err != nil {
		return err
	}
	n, err := s.mark(s.r + s.left)
	if err != nil {
		return err
	}
	copy(s.buf[s.r+markLen:], s.buf[s.r:s.r+s.left])
	s.r += markLen
	s.left += n
	return nil
}

// fragment returns how many of n > 0 bytes the current fragment has, at least
// one; if it is used up, the next one becomes current.
func (s *Stream) fragment(n int) (int, error) {
	if s.rerr != nil {
		return 0, s.rerr
	}
	if s.left == 0 && s.last {
		return 0, ErrRecordEnd
	}
	if s.left == 0 {
		if err := s.join(); err != nil {
			return 0, err
		}
	}
	return min(n, s.left), nil
}

// read fills p, of at most s.left bytes, from the buffer, then the socket.
func (s *Stream) read(p []byte) error {
	for len(p) > 0 {
		if s.r == s.w && len(p) < len(s.buf) {
			if err := s.fill(1); err != nil {
				return err
			}
		}
		n := copy(p, s.buf[s.r:s.w])
		s.r += n
		if n == 0 {
			var err error
			if n, err = s.readAhead(s.in.one(p)); err != nil {
				return err
			}
		}
		s.left -= n
		p = p[n:]
	}
	return nil
}

// readAhead reads into the want bytes that have been gathered and, behind them,
// into the buffer, which must be empty. It returns how many of want it got.
func (s *Stream) readAhead(want int) (int, error) {
	s.r, s.w = 0, 0
	s.in.add(s.buf)
	n, err := s.receive()
	s.w = max(n-want, 0)
	return min(n, want), err
}

// fill reads until the buffer holds n bytes, at most its size.
func (s *Stream) fill(n int) error {
	if s.rerr != nil {
		return s.rerr
	}
	s.compact(n)
	for s.w-s.r < n {
		s.in.one(s.buf[s.w:])
		got, err := s.receive()
		if err != nil {
			return err
		}
		s.w += got
	}
	return nil
}

// compact makes room for n bytes from s.r on.
func (s *Stream) compact(n int) {
	if s.r == s.w {
		s.r, s.w = 0, 0
	}
	if len(s.buf)-s.r < n {
		s.w = copy(s.buf, s.buf[s.r:s.w])
		s.r = 0
	}
}

// receive reads once into what has been gathered, and waits for it. It returns
// at least one byte or an error.
func (s *Stream) receive() (int, error) {
	n, err := s.in.finish(s.raw.Read(s.in.try))
	s.reads++
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, s.fail(err)
	}
	return n, nil
}

// fail remembers err, the end of all reading, and returns it.
func (s *Stream) fail(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		s.rerr = err
	}
	return err
}

// WriteVec writes all of bufs, in order, record marks and all: see BeginRecord
// and EndRecord. The slices are not changed, nor kept. After an error it is not
// known how much was written, and all further calls fail.
func (s *Stream) WriteVec(bufs [][]byte) error {
	c := vecCursor{bufs: bufs}
	for s.werr == nil && c.skip() {
		s.out.gather(c, maxWrite)
		n, err := s.out.finish(s.raw.Write(s.out.try))
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		s.werr = err
		c.advance(n)
	}
	return s.werr
}

// TryWriteVec is WriteVec without waiting: it writes what the socket takes at
// once and returns how many bytes that was. The caller writes the rest.
func (s *Stream) TryWriteVec(bufs [][]byte) (int, error) {
	c := vecCursor{bufs: bufs}
	if s.werr != nil || !c.skip() {
		return 0, s.werr
	}
	s.out.gather(c, maxWrite)
	n, err := s.out.finish(s.raw.Write(s.out.once))
	if err == syscall.EAGAIN {
		return 0, nil
	}
	s.werr = err
	return n, err
}
