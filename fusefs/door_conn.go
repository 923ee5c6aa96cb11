package fusefs

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// doorListeners is how many goroutines wait for requests at once, while some of
	// these leave them. Each more costs: the kernel wakes the one that has waited longest,
	// which the scheduler of Go has taken for one that waits for long.
	doorListeners = 2
	// calmAfter is the number of requests, none of which left, after which one listens.
	calmAfter = 64
	// maxParked bounds the goroutines that are kept for a rush of requests that is over.
	maxParked = 16
	// maxIdleBufs bounds the buffers that are.
	maxIdleBufs = 4
	// maxDoorSlots bounds the requests in work.
	maxDoorSlots = 4096
	// smallRequest is the size of requests, in bytes, that are copied out of the buffer
	// they were read into.
	smallRequest = 8 << 10
	// inlineData is up to how many bytes whoever listens reads and writes himself.
	inlineData = 128 << 10
	// askAgain is how long the answer to an early INTERRUPT waits.
	askAgain = 50 * time.Microsecond
	// A buffer has room for the header and arguments of WRITE before the data.
	writeHead = 4096

	fuseMajor, fuseMinor = 7, 40
	// minFuseMinor is what Linux 4.20 has, where requests can have more than 32 pages.
	minFuseMinor = 28
)

// doorConn is the connection to the kernel. Some goroutines listen: they wait for a
// request, and serve it, if that takes no waiting. Before one waits for anything, it
// leaves the listeners (leave), and sees to it that there is another. So a request is
// mostly served by the thread that was woken for it, and none delays others.
type doorConn struct {
	fd int
	fs *doorFS

	bufSize, maxBufs int
	minor            uint32        // of the kernel's version
	over             chan struct{} // closed when the kernel has given up
	calm             atomic.Uint64 // requests since one left the listeners

	mu        sync.Mutex
	wake      sync.Cond // for those who are parked
	listening int
	parked    int
	slots     int
	bufs      [][]byte // idle ones
	made      int      // buffers in all
	ended     bool     // the kernel has given up
	watching  bool     // watchCallers runs
	inWork    map[uint64]*doorSlot

	running sync.WaitGroup
}

// newDoorConn takes over fd and answers the first request, INIT.
func newDoorConn(fd int, cfg *DoorConfig, fs *doorFS) (*doorConn, error) {
	size := cfg.MaxWrite + writeHead
	c := &doorConn{
		fd: fd, fs: fs, bufSize: size, maxBufs: max(cfg.MaxInflightBytes/size, 1),
		inWork: map[uint64]*doorSlot{}, over: make(chan struct{}),
	}
	c.wake.L = &c.mu
	fs.conn = c
	if err := c.handshake(cfg); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("the kernel's side of FUSE: %w", err)
	}
	return c, nil
}

// handshake agrees on a version and on what is used of it.
func (c *doorConn) handshake(cfg *DoorConfig) error {
	buf := make([]byte, c.bufSize)
	n, err := c.read(buf)
	if err != nil {
		return err
	}
	in := (*fuse.InitIn)(unsafe.Pointer(&buf[0]))
	if n < int(unsafe.Offsetof(in.Flags2)) || in.Opcode != fuseInit {
		return fmt.Errorf("its first request is number %d, not INIT", in.Opcode)
	}
	if in.Major != fuseMajor || in.Minor < minFuseMinor {
		return fmt.Errorf("it speaks version %d.%d, and this needs %d.%d: Linux 4.20 or newer", in.Major, in.Minor, fuseMajor, minFuseMinor)
	}
	c.minor = in.Minor
	s := c.fs.newSlot()
	defer s.close()
	out := (*fuse.InitOut)(s.wire.body())
	*out = fuse.InitOut{
		Major: fuseMajor, Minor: min(in.Minor, fuseMinor), MaxReadAhead: min(in.MaxReadAhead, readAhead),
		Flags: in.Flags & (fuse.CAP_ASYNC_READ | fuse.CAP_BIG_WRITES | fuse.CAP_FILE_OPS | fuse.CAP_READDIRPLUS |
			fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_PARALLEL_DIROPS | fuse.CAP_MAX_PAGES | fuse.CAP_AUTO_INVAL_DATA),
		MaxBackground: maxBackground, CongestionThreshold: maxBackground * 3 / 4,
		MaxWrite: uint32(cfg.MaxWrite), MaxPages: uint16(cfg.MaxWrite / pageBytes), TimeGran: 1,
	}
	return c.send(&s.wire, in.Unique, 0, int(unsafe.Sizeof(*out)), nil)
}

// serve starts the listeners, and p, and returns when the last request has been served.
func (c *doorConn) serve(p *pruner) {
	c.mu.Lock()
	for range doorListeners {
		c.startSlot()
	}
	c.mu.Unlock()
	c.running.Go(p.run)
	c.running.Wait()
	unix.Close(c.fd)
}

// startSlot starts a goroutine. mu is held.
func (c *doorConn) startSlot() {
	c.slots++
	c.running.Go(func() { c.run(c.fs.newSlot()) })
}

func (c *doorConn) run(s *doorSlot) {
	for c.listen(s) {
		n, err := c.read(s.wire.buf)
		if err != nil {
			c.end(err)
			break
		}
		s.serve(n)
	}
	s.close()
	c.mu.Lock()
	c.slots--
	c.drop(s)
	c.mu.Unlock()
}

// listen makes s one of those who listen, with a buffer; it parks s while there are
// enough. It returns false if s is not needed any more.
func (c *doorConn) listen(s *doorSlot) bool {
	if s.wire.listens && c.calm.Add(1) != calmAfter {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.wire.listens {
		s.wire.listens = false
		c.listening--
	}
	for !c.ended {
		if c.listening < c.wanted() && c.take(s) {
			c.listening++
			s.wire.listens = true
			return true
		}
		c.drop(s)
		if c.parked >= maxParked {
			return false
		}
		c.parked++
		c.wake.Wait()
		c.parked--
	}
	return false
}

// wanted is how many should listen.
func (c *doorConn) wanted() int {
	if c.calm.Load() >= calmAfter {
		return 1
	}
	return doorListeners
}

// take gives s a buffer to read into, unless there are none. mu is held.
func (c *doorConn) take(s *doorSlot) bool {
	switch n := len(c.bufs); {
	case s.wire.buf != nil:
	case n > 0:
		s.wire.buf, c.bufs = c.bufs[n-1], c.bufs[:n-1]
	case c.made < c.maxBufs:
		c.made++
		s.wire.buf = make([]byte, c.bufSize)
	default:
		return false
	}
	return true
}

// drop takes back the buffer of s. mu is held.
func (c *doorConn) drop(s *doorSlot) {
	switch {
	case s.wire.buf == nil:
	case len(c.bufs) < maxIdleBufs:
		c.bufs = append(c.bufs, s.wire.buf)
	default:
		c.made--
	}
	s.wire.buf = nil
}

// leave is called before s may wait: for a lock, memory, a disk or a server. If nobody
// listens then, somebody else does.
func (s *doorSlot) leave() {
	if !s.wire.listens {
		return
	}
	c := s.fs.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	s.wire.listens = false
	c.listening--
	c.calm.Store(0)
	c.inWork[s.wire.unique] = s
	if !s.wire.large {
		c.drop(s)
	}
	if c.ended {
		s.cancelNow()
	}
	buffer := len(c.bufs) > 0 || c.made < c.maxBufs
	switch {
	case c.listening > 0:
	case buffer && c.parked > 0:
		c.wake.Signal()
	case buffer && c.slots < maxDoorSlots:
		c.startSlot()
	default:
		c.watchCallers()
	}
}

// watchCallers looks after those who wait while nobody can listen, as WRITEs that wait
// have all buffers, or requests all slots: the kernel cannot tell of signals then. mu is
// held.
func (c *doorConn) watchCallers() {
	if c.watching {
		return
	}
	c.watching = true
	go func() {
		tick := time.NewTicker(deathWatch)
		defer tick.Stop()
		for range tick.C {
			waiting := c.waiting()
			if waiting == nil {
				return
			}
			for unique, pid := range waiting {
				if c.fs.abandoned(pid) {
					c.cancel(unique)
				}
			}
		}
	}()
}

// waiting returns the callers of requests in work; nil when somebody listens again.
func (c *doorConn) waiting() map[uint64]uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listening > 0 || c.ended {
		c.watching = false
		return nil
	}
	pids := make(map[uint64]uint32, len(c.inWork))
	for unique, s := range c.inWork {
		pids[unique] = s.pid
	}
	return pids
}

// cancel cancels a request if it is still in work.
func (c *doorConn) cancel(unique uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.inWork[unique]; s != nil {
		s.cancelNow()
	}
}

// has reports whether a request is still in work.
func (c *doorConn) has(unique uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inWork[unique] != nil
}

// finished is called for a request that has its reply.
func (c *doorConn) finished(s *doorSlot) {
	if s.wire.listens {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.inWork, s.wire.unique)
	s.wire.renew()
}

// read returns the length of the next request. Those that somebody gave up before we
// got them are none.
func (c *doorConn) read(buf []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, buf)
		switch {
		case err == nil && n >= int(unsafe.Sizeof(fuse.InHeader{})):
			return n, nil
		case err == nil:
			return 0, fmt.Errorf("a request of %d bytes", n)
		case err == unix.ENOMEM || err == unix.EFAULT: // the caller has got EIO
			c.fs.logger.Error("fuse: cannot read a request", "error", err)
		case err != unix.EINTR && err != unix.ENOENT && err != unix.EAGAIN:
			return 0, err
		}
	}
}

// end is called when the kernel has given up the connection: nobody waits for any
// request any more.
func (c *doorConn) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended && !errors.Is(why, unix.ENODEV) && !errors.Is(why, unix.ECONNABORTED) {
		c.fs.logger.Error("fuse: cannot read requests any more", "error", why)
	}
	if !c.ended {
		close(c.over)
	}
	c.ended = true
	for _, s := range c.inWork {
		s.cancelNow()
	}
	c.wake.Broadcast()
}

// interrupt is the kernel's word that a caller has got a signal. A request that nobody
// has seen yet, or that is being served at once, has to be asked about again: the kernel
// does that before it tells of anything else, so whoever serves it gets some time.
func (c *doorConn) interrupt(unique uint64) fuse.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.inWork[unique]
	if s == nil {
		c.mu.Unlock()
		time.Sleep(askAgain)
		c.mu.Lock()
		if s = c.inWork[unique]; s == nil {
			return fuse.EAGAIN
		}
	}
	switch {
	case s.wire.signalled:
	case s.wire.guarded:
		s.watchCaller()
	default:
		s.cancelNow()
	}
	s.wire.signalled = true
	return fuse.OK
}

// invalidate has the kernel ask for a node's attributes again.
func (c *doorConn) invalidate(node uint64) {
	msg := struct {
		fuse.OutHeader
		fuse.NotifyInvalInodeOut
	}{
		fuse.OutHeader{Status: notifyInvalInode},
		fuse.NotifyInvalInodeOut{Ino: node, Off: -1},
	}
	msg.OutHeader.Length = uint32(unsafe.Sizeof(msg))
	// It fails if the kernel has no such inode any more, and then there is nothing to forget.
	_, _ = unix.Write(c.fd, unsafe.Slice((*byte)(unsafe.Pointer(&msg)), unsafe.Sizeof(msg)))
}

// goOn is asked after the file system gave up with EINTR. If a signal was the
// reason and the caller lives on, the request may be tried again, with a Cancel
// that is closed when the caller dies.
func (s *doorSlot) goOn() bool {
	select {
	case <-s.op.Cancel:
	default:
		return false // it had a reason of its own
	}
	if s.wire.guarded || s.fs.abandoned(s.pid) {
		return false
	}
	s.guardCancel()
	return true
}

// guardCancel has Cancel closed only when the caller dies or the connection ends. The
// request has left the listeners.
func (s *doorSlot) guardCancel() {
	c := s.fs.conn
	if c == nil || s.wire.guarded {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.wire.guarded = true
	if s.wire.signalled && !c.ended {
		s.wire.cancel, s.wire.cancelled = make(chan struct{}), false
		s.op.Cancel = s.wire.cancel
		s.watchCaller()
	}
}

// cancelNow closes Cancel. The connection's mu is held.
func (s *doorSlot) cancelNow() {
	if !s.wire.cancelled {
		s.wire.cancelled = true
		close(s.wire.cancel)
	}
}

// watchCaller looks after the caller of a request until it has its reply. The
// connection's mu is held.
func (s *doorSlot) watchCaller() {
	c, unique, pid := s.fs.conn, s.wire.unique, s.pid
	go func() {
		tick := time.NewTicker(deathWatch)
		defer tick.Stop()
		for range tick.C {
			if c.fs.abandoned(pid) {
				c.cancel(unique)
				return
			}
			if !c.has(unique) {
				return
			}
		}
	}()
}
