package fusefs

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
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
	clear(a.events[:]) // touched, as the rest is
	for i := range a.cbs {
		a.cbs[i], a.list[i] = iocb{}, &a.cbs[i]
	}
	if _, err := a.reap(0); err != nil {
		a.end()
		return nil
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
// the kernel did not take, and does not give it more when may returns an error.
func (a *aio) run(got []int64, may func() error) {
	for left := a.submit(may); left > 0; {
		n, err := a.reap(left)
		if err != nil {
			panic("fusefs: io_getevents: " + err.Error()) // the kernel may still read the pages
		}
		for _, ev := range a.events[:n] {
			got[ev.data] = ev.res
		}
		left -= n
	}
}

// submit starts what was added and returns how many of it the kernel has taken.
func (a *aio) submit(may func() error) (taken int) {
	for taken < a.n && may() == nil {
		m, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, a.ctx, uintptr(a.n-taken), uintptr(unsafe.Pointer(&a.list[taken])))
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

// reap waits for n writes to end, and returns how many have: those in events.
func (a *aio) reap(n int) (int, error) {
	for {
		m, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.ctx, uintptr(n), uintptr(n), uintptr(unsafe.Pointer(&a.events)), 0, 0)
		if e != unix.EINTR {
			return int(m), errnoOf(e)
		}
	}
}

// startAIO fills the pool with n, if AIO works with the backing file system. That takes a
// write, to a file without a name: the first one to a file system has the kernel start a
// thread, for which somebody may have to reclaim memory and wait for us. So nobody waits for
// it, and nothing that is waited for is in hand.
func (s *Store) startAIO(n int) {
	fd, err := unix.Openat(s.rootFD, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		s.log.Debug("no AIO: write-out gives the device one run at a time", "type", s.fsType, "error", err)
		return
	}
	s.aio.filling.Go(func() {
		defer unix.Close(fd)
		s.fillAIO(fd, n)
	})
}

// fillAIO fills the pool with n that can write to fd, an empty file.
func (s *Store) fillAIO(fd, n int) {
	for i := range n {
		a := newAIO()
		if a == nil {
			return
		}
		if i == 0 && !s.tryAIO(a, fd) {
			s.log.Debug("no AIO: write-out gives the device one run at a time", "type", s.fsType)
			a.end()
			return
		}
		s.aio.put(a)
	}
}

// tryAIO writes a page to fd, and reports whether that works.
func (s *Store) tryAIO(a *aio, fd int) bool {
	page, err := unix.Mmap(-1, 0, alloc.PageSize, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Munmap(page) }()
	if s.held() != nil || ftruncate(fd, alloc.PageSize) != nil { // what makes a file longer is waited for
		return false
	}
	got := []int64{0}
	a.add(0, fd, []unix.Iovec{{Base: &page[0], Len: alloc.PageSize}}, 0)
	a.run(got, s.held)
	a.clear()
	return got[0] == alloc.PageSize
}

// aioPool has the few that are made ahead: a store writes out with so many at once. Until
// filling has ended there may be fewer.
type aioPool struct {
	filling sync.WaitGroup

	mu     sync.Mutex
	free   []*aio
	closed bool
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
	if p.closed {
		a.end()
		return
	}
	p.free = append(p.free, a)
}

// end waits for nobody: who fills the pool may wait for the kernel.
func (p *aioPool) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.free {
		a.end()
	}
	p.free, p.closed = nil, true
}
