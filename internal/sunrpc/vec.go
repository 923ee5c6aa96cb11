package sunrpc

import (
	"sync"
	"syscall"
	"unsafe"
)

// maxWrite is the most that one system call is given, in bytes: below the
// 0x7ffff000 at which Linux cuts.
const maxWrite = 1 << 30

// vecCursor is a position in a list of ranges that it leaves unchanged.
type vecCursor struct {
	bufs [][]byte // from the range of the position on
	off  int      // in bufs[0]
}

// skip passes empty ranges and reports whether any bytes are left.
func (c *vecCursor) skip() bool {
	for len(c.bufs) > 0 && c.off == len(c.bufs[0]) {
		c.bufs, c.off = c.bufs[1:], 0
	}
	return len(c.bufs) > 0
}

// head returns the rest of the current range. Precondition: skip was true.
func (c *vecCursor) head() []byte { return c.bufs[0][c.off:] }

// advance moves n bytes on; there are as many.
func (c *vecCursor) advance(n int) {
	for n > 0 && c.skip() {
		k := min(n, len(c.head()))
		c.off += k
		n -= k
	}
}

// vecIO makes one vectored system call at a time.
type vecIO struct {
	trap uintptr // SYS_READV or SYS_WRITEV
	// try makes the call and reports whether it is done, for RawConn. It is
	// made once, as a new closure for each call would be an allocation.
	try func(fd uintptr) bool
	// once makes the call and never waits.
	once func(fd uintptr) bool
	// gate, if not nil, reports whether data may pass: sent, or be seen.
	gate func() bool

	iov   []syscall.Iovec // few, or a batch
	niov  int
	few   [few]syscall.Iovec
	n     int
	errno syscall.Errno
}

// few is how many ranges a Stream has room for of its own: enough for small records, and
// to wait for one. Others are lent for one system call, since most connections are idle.
const few = 4

var batches = sync.Pool{New: func() any { return new([iovBatch]syscall.Iovec) }}

func (v *vecIO) init(trap uintptr) {
	v.trap, v.iov = trap, v.few[:]
	v.try = v.call
	v.once = func(fd uintptr) bool {
		v.call(fd)
		return true
	}
}

// call makes the system call; false means wait until fd is ready.
func (v *vecIO) call(fd uintptr) bool {
	if v.trap == syscall.SYS_WRITEV && v.closed() {
		return true
	}
	for {
		n, _, errno := syscall.Syscall(v.trap, fd, uintptr(unsafe.Pointer(&v.iov[0])), uintptr(v.niov))
		if errno == syscall.EINTR {
			continue
		}
		v.n, v.errno = int(n), errno
		if v.trap == syscall.SYS_READV && errno == 0 {
			v.closed()
		}
		return errno != syscall.EAGAIN
	}
}

// closed makes the call fail if the gate is shut.
func (v *vecIO) closed() bool {
	if v.gate == nil || v.gate() {
		return false
	}
	v.n, v.errno = 0, ErrGate
	return true
}

// finish returns the outcome of the call that RawConn ended with err, and lets
// go of the ranges.
func (v *vecIO) finish(err error) (int, error) {
	n, errno := v.n, v.errno
	clear(v.iov[:v.niov])
	if len(v.iov) == iovBatch {
		batches.Put((*[iovBatch]syscall.Iovec)(v.iov))
		v.iov = v.few[:]
	}
	v.niov, v.n, v.errno = 0, 0, 0
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// gather takes up to limit bytes from c, which is a copy, as far as there is
// room, and returns how many. One range stays free, for add.
func (v *vecIO) gather(c vecCursor, limit int) int {
	total := 0
	for total < limit && v.niov < iovBatch-1 && c.skip() {
		b := c.head()
		b = b[:min(len(b), limit-total)]
		v.add(b)
		c.advance(len(b))
		total += len(b)
	}
	return total
}

// one takes b alone and returns its length.
func (v *vecIO) one(b []byte) int {
	v.add(b)
	return len(b)
}

// add takes b, which is not empty. What lies behind the last range becomes part of it.
func (v *vecIO) add(b []byte) {
	if v.niov > 0 {
		last := &v.iov[v.niov-1]
		if uintptr(unsafe.Pointer(last.Base))+uintptr(last.Len) == uintptr(unsafe.Pointer(&b[0])) {
			last.SetLen(int(last.Len) + len(b))
			return
		}
	}
	if v.niov == few && len(v.iov) == few {
		v.iov = batches.Get().(*[iovBatch]syscall.Iovec)[:]
		copy(v.iov, v.few[:])
		clear(v.few[:])
	}
	v.iov[v.niov].Base = &b[0]
	v.iov[v.niov].SetLen(len(b))
	v.niov++
}
