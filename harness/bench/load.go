package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
)

// call is the next call of a load: a complete record whose XID the connection fills in,
// and bytes that follow it on the wire. Both are only read until the next call is asked
// for, and head is copied.
type call struct{ head, payload []byte }

// load is what a connection is kept busy with.
type load struct {
	// window is how many calls are outstanding.
	window int
	// next returns the n-th call; false if there are no more.
	next func(n uint64) (call, bool)
	// until is when no more calls are made; zero for when next has no more.
	until time.Time
	// allowed says which status besides NFS3_OK is none of an error.
	allowed nfs3.Status
	// noStatus is set if results do not begin with a status (NULL).
	noStatus bool
}

// tally is what was measured of a load.
type tally struct {
	calls   uint64
	bytes   uint64 // of the records both ways, without TCP
	elapsed time.Duration
	latency histogram
}

func (t *tally) add(o *tally) {
	t.calls += o.calls
	t.bytes += o.bytes
	t.elapsed = max(t.elapsed, o.elapsed)
	t.latency.add(&o.latency)
}

// rate is calls per second.
func (t *tally) rate() float64 { return float64(t.calls) / t.elapsed.Seconds() }

const (
	inBytes = 4 << 20
	// coalesce is up to which size a payload is copied behind its head.
	coalesce = 16 << 10
	// headBytes is how much of a reply is looked at: up to the status, after a
	// verifier that is empty, or short.
	headBytes = 4 + 24 + 4
)

// conn is a connection that has many calls outstanding, and costs little: one system
// call sends all that the window allows, one receives all that is there.
type conn struct {
	fd   int
	in   []byte
	out  []byte
	have int // bytes of in that were received and not looked at
	skip int // bytes to come of a reply that was looked at

	sent []int64 // when the call of a slot was sent; the slot is its XID modulo the window
	free []uint32
	made uint32 // calls; their XIDs never come again, since servers know them again
}

// dial connects to a server; blocking system calls on the socket itself are cheaper than
// a net.Conn, and there is nothing else for the thread to do.
func dial(addr string) (*conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	sa := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()}
	err = errors.Join(unix.Connect(fd, sa), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}))
	if err != nil {
		unix.Close(fd)
		return nil, &net.OpError{Op: "connect", Net: "tcp", Err: fmt.Errorf("%s: %w", addr, err)}
	}
	return &conn{fd: fd, in: make([]byte, inBytes), out: make([]byte, 0, 1<<20)}, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// run carries out a load and waits for all replies.
func (c *conn) run(l *load) (*tally, error) {
	t := &tally{}
	c.sent = make([]int64, l.window)
	c.free = c.free[:0]
	for i := range l.window {
		c.free = append(c.free, uint32(i))
	}
	start, n, more := time.Now(), uint64(0), true
	for {
		now := time.Since(start)
		for more && len(c.free) > 0 {
			if !l.until.IsZero() && start.Add(now).After(l.until) {
				more = false
				break
			}
			var k call
			if k, more = l.next(n); more {
				n++
				if err := c.queue(k, now); err != nil {
					return nil, err
				}
			}
		}
		if err := c.flush(); err != nil {
			return nil, err
		}
		t.bytes += uint64(len(c.out))
		c.out = c.out[:0]
		if len(c.free) == l.window {
			t.elapsed = time.Since(start)
			return t, nil
		}
		if err := c.receive(l, start, t); err != nil {
			return nil, err
		}
	}
}

// queue puts a call into the buffer, or on the wire if it is large.
func (c *conn) queue(k call, now time.Duration) error {
	slot := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	c.sent[slot] = int64(now)
	at := len(c.out)
	c.out = append(c.out, k.head...)
	c.made++
	binary.BigEndian.PutUint32(c.out[at+4:], c.made*uint32(len(c.sent))+slot)
	if len(k.payload) <= coalesce {
		c.out = append(c.out, k.payload...)
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	return writeAll(c.fd, k.payload)
}

func (c *conn) flush() error {
	err := writeAll(c.fd, c.out)
	c.out = c.out[:0]
	return err
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// read reads what is there, at least one byte unless the peer has closed.
func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR { // the runtime's signals
			return n, err
		}
	}
}

// receive reads what is there, at least one byte, and settles the replies in it.
func (c *conn) receive(l *load, start time.Time, t *tally) error {
	n, err := read(c.fd, c.in[c.have:])
	switch {
	case err == unix.EAGAIN:
		return errors.New("no reply for a minute")
	case err != nil:
		return fmt.Errorf("receive: %w", err)
	case n == 0:
		return errors.New("the server closed the connection")
	}
	t.bytes += uint64(n)
	c.have += n
	now := int64(time.Since(start))
	b := c.in[:c.have]
	for {
		d := min(c.skip, len(b))
		c.skip -= d
		b = b[d:]
		if len(b) < 4 {
			break
		}
		size := int(binary.BigEndian.Uint32(b) &^ (1 << 31))
		if len(b) < min(4+size, headBytes) {
			break
		}
		slot, err := l.check(b[4:min(4+size, len(b))])
		if err != nil {
			return err
		}
		t.calls++
		t.latency.note(now - c.sent[slot])
		c.free = append(c.free, slot)
		c.skip = 4 + size
	}
	c.have = copy(c.in, b)
	return nil
}

var errBadReply = errors.New("a reply that is none")

// check looks at the beginning of a reply.
func (l *load) check(b []byte) (slot uint32, err error) {
	if len(b) < 24 {
		return 0, errBadReply
	}
	slot = binary.BigEndian.Uint32(b) % uint32(l.window)
	verifier := binary.BigEndian.Uint32(b[16:])
	if binary.BigEndian.Uint32(b[4:]) != 1 || verifier != 0 {
		return 0, errBadReply
	}
	if how := binary.BigEndian.Uint32(b[20:]); binary.BigEndian.Uint32(b[8:]) != 0 || how != 0 {
		return 0, fmt.Errorf("the call was not accepted: %d", how)
	}
	if l.noStatus {
		return slot, nil
	}
	if len(b) < 28 {
		return 0, errBadReply
	}
	if st := nfs3.Status(binary.BigEndian.Uint32(b[24:])); st != nfs3.StatusOK && st != l.allowed {
		return 0, fmt.Errorf("%v", st)
	}
	return slot, nil
}
