package fusefs

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// aio writes to several places of a file at once (io_submit(2)).
type aio struct {
	ctx    uintptr
	cbs    [maxRuns]iocb
	list   [maxRuns]*iocb
	events [maxRuns]ioEvent
	n      int // of cbs in use
}

// iocb is struct iocb of linux/aio_abi.h.
type iocb struct {
	data   uint64
	_, _   uint32 // key, flags of the write
	opcode uint16
	_      int16 // priority
	fd     uint32
	buf    unsafe.Pointer
	nbytes uint64
	offset int64
	_      uint64
	_, _   uint32 // other flags, eventfd
}

// ioEvent is struct io_event.
type ioEvent struct {
	data uint64
	_    uint64 // the iocb
	res  int64
	_    int64
}

const iocbPwritev = 8 // IOCB_CMD_PWRITEV

// newAIO returns an aio, which end ends, or nil where there is none to be had
// (/proc/sys/fs/aio-max-nr).
func newAIO() *aio {
	a := &aio{}
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, maxRuns, uintptr(unsafe.Pointer(&a.ctx)), 0); e != 0 {
		return nil
	}
	for i := range a.cbs {
		a.list[i] = &a.cbs[i]
	}
	return a
}

func (a *aio) end() { _, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, a.ctx, 0, 0) }

// add has run write iov to off in fd, as number i. The memory stays the caller's; nothing but
// pages of the arena, which never move, may be in iov, and iov must not be on a stack.
func (a *aio) add(i, fd int, iov []unix.Iovec, off uint64) {
	a.cbs[a.n] = iocb{
		data: uint64(i), opcode: iocbPwritev, fd: uint32(fd),
		buf: unsafe.Pointer(unsafe.SliceData(iov)), nbytes: uint64(len(iov)), offset: int64(off),
	}
	a.n++
}

// clear forgets what was added.
func (a *aio) clear() {
	clear(a.cbs[:a.n])
	a.n = 0
}

// run writes, and sets got[i] to how many bytes of number i are written. It leaves alone what
// the kernel did not take.
func (a *aio) run(got []int64) {
	left := a.submit(a.n)
	for left > 0 {
		m, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.ctx, uintptr(left), uintptr(left), uintptr(unsafe.Pointer(&a.events)), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			panic("fusefs: io_getevents: " + e.Error()) // the kernel may still read the pages
		}
		for _, ev := range a.events[:m] {
			got[ev.data] = ev.res
		}
		left -= int(m)
	}
}

// submit starts the first n writes and returns how many the kernel has taken.
func (a *aio) submit(n int) (taken int) {
	for taken < n {
		m, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, a.ctx, uintptr(n-taken), uintptr(unsafe.Pointer(&a.list[taken])))
		if e == unix.EINTR {
			continue
		}
		if e != 0 || m == 0 {
			break
		}
		taken += int(m)
	}
	return taken
}

// aioPool has the few that are made ahead: a store writes out with so many at once.
type aioPool struct {
	mu   sync.Mutex
	free []*aio
}

func (p *aioPool) init(n int) {
	for range n {
		if a := newAIO(); a != nil {
			p.free = append(p.free, a)
		}
	}
}

// get returns nil if all are in use.
func (p *aioPool) get() (a *aio) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free) - 1; n >= 0 {
		a, p.free = p.free[n], p.free[:n]
	}
	return a
}

func (p *aioPool) put(a *aio) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, a)
}

func (p *aioPool) end() {
	for _, a := range p.free {
		a.end()
	}
	p.free = nil
}
