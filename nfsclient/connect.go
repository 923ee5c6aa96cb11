package nfsclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/sunrpc"
)

const (
	backoffMin = 50 * time.Millisecond
	backoffMax = time.Second
	// connectTimeout is how long an attempt may take, connectAgain each of the first
	// quickTries to come back. While nobody has the address, what is sent to it waits for
	// three seconds to be told where to (ARP), and is not sent again, though somebody has
	// it by then. The others get twice as long each time, for a server that is far away.
	connectTimeout = 5 * time.Second
	connectAgain   = 500 * time.Millisecond
	quickTries     = 10
	// userTimeout is how long sent data may stay unacknowledged.
	userTimeout = 60 * time.Second
	// keepAlive is how long the connection may be silent before the peer is asked whether it
	// still knows of it. A call that it has received, and forgot, is not sent again before.
	keepAlive = 3 * time.Second
	// recvBuffer is small: what of the data of a READ arrives with its header
	// is copied.
	recvBuffer = 4096
)

// conn is one connection to the server.
type conn struct {
	net.Conn
	stream *sunrpc.Stream
	port   uint16 // ours
	// replies counts the replies received on it, for the reader.
	replies uint64
}

// dial connects to addr from port, 0 for any, within limit. It starts no goroutine.
// hook gets what must be closed to end the attempt early, then nil.
func dial(addr netip.AddrPort, port uint16, limit time.Duration, buf []byte, hook func(closer)) (*conn, error) {
	f, err := connect(addr, port, limit, hook)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", addr, err)
	}
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	st, err := sunrpc.NewStream(nc, buf)
	if err != nil {
		nc.Close()
		return nil, err
	}
	c := &conn{Conn: nc, stream: st}
	if a, ok := nc.LocalAddr().(*net.TCPAddr); ok {
		c.port = uint16(a.Port)
	}
	if tc, ok := nc.(*net.TCPConn); ok {
		// FileConn has set others. The peer is given up after userTimeout, whatever the count.
		_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: int(userTimeout / keepAlive)})
	}
	return c, nil
}

// connect returns a connected socket. The standard library's dialer would start
// goroutines to watch over the attempt.
func connect(addr netip.AddrPort, port uint16, limit time.Duration, hook func(closer)) (*os.File, error) {
	fd, err := unix.Socket(family(addr), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "nfs")
	hook(f)
	defer hook(nil)
	setOptions(fd)
	if port != 0 {
		// A server's replay cache may know us by our port; if it cannot be
		// had, any other will do.
		bindPort(fd, addr, port)
	}
	if err := start(f, fd, addr, limit); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func family(addr netip.AddrPort) int {
	if addr.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if ifi, err := net.InterfaceByName(a.Addr().Zone()); err == nil {
		sa.ZoneId = uint32(ifi.Index)
	}
	return sa
}

func setOptions(fd int) {
	for _, o := range []struct{ level, opt, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds())},
	} {
		unix.SetsockoptInt(fd, o.level, o.opt, o.value) // each is only an improvement
	}
}

func bindPort(fd int, addr netip.AddrPort, port uint16) {
	any := netip.IPv4Unspecified()
	if !addr.Addr().Is4() {
		any = netip.IPv6Unspecified()
	}
	unix.Bind(fd, sockaddr(netip.AddrPortFrom(any, port)))
}

// start connects and waits until that has succeeded or failed, at most for limit.
func start(f *os.File, fd int, addr netip.AddrPort, limit time.Duration) error {
	err := unix.Connect(fd, sockaddr(addr))
	if err == nil {
		return nil
	}
	if err != unix.EINPROGRESS {
		return err
	}
	if err := f.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		var over bool
		over, result = connected(int(fd))
		return over
	})
	return errors.Join(err, result)
}

// connected reports whether the attempt is over, and how it ended.
func connected(fd int) (bool, error) {
	if code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
		return true, err
	} else if code != 0 {
		return true, unix.Errno(code)
	}
	_, err := unix.Getpeername(fd)
	return err == nil, nil
}

// runReader receives replies, and reconnects whenever the connection is lost,
// until the transport is closed. c is the first connection.
func (t *transport) runReader(c *conn) {
	var buf [recvBuffer]byte
	task := t.graph.NewTask("client")
	defer t.graph.Remove(task)
	wait := time.Duration(0)
	for c != nil {
		select {
		case t.next <- c:
		case <-t.stop:
			c.Close()
			return
		}
		err := t.receive(c)
		t.disconnected(c)
		if t.isDown() {
			return
		}
		if errors.Is(err, errDamaged) || errors.Is(err, sunrpc.ErrBadRecord) {
			t.log.Warn("damaged reply from the NFS server, connecting again", "server", t.addr, "err", err)
		}
		task.Begin("reconnect")
		task.Hold(t.connRes)
		if wait = backoff(wait); c.replies > 0 {
			wait = 0 // at once, the first time
		}
		c = t.reconnect(c.port, err, wait, buf[:])
		task.End()
	}
}

func (t *transport) isDown() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.down
}

// reconnect tries until there is a connection, or returns nil once the transport
// is closed. why is what ended the last one; wait is how long to wait first.
func (t *transport) reconnect(port uint16, why error, wait time.Duration, buf []byte) *conn {
	if errors.Is(why, io.EOF) {
		why = errors.New("closed by the server")
	}
	start := t.now()
	told, limit, tries := false, connectAgain, 0
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-t.stop:
			return nil
		case <-timer.C:
		}
		c, err := dial(t.addr, port, limit, buf, t.setDialer)
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) {
			c, err = dial(t.addr, 0, limit, buf, t.setDialer)
		}
		if err == nil {
			t.reconnects.Add(1)
			if told {
				t.log.Info("NFS server is back", "server", t.addr, "after", t.now().Sub(start).Round(time.Millisecond))
			}
			return c
		}
		if !told && !t.isDown() {
			told = true
			t.log.Warn("NFS server does not respond, still trying", "server", t.addr, "lost", why, "err", err)
		}
		if tries++; tries >= quickTries {
			limit = min(2*limit, connectTimeout)
		}
		wait = backoff(wait)
		timer.Reset(wait)
	}
}

// backoff returns how long to wait after having waited for d.
func backoff(d time.Duration) time.Duration { return min(max(2*d, backoffMin), backoffMax) }

// setDialer keeps what close must close to end an attempt.
func (t *transport) setDialer(c closer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dialer = c
	if t.down && c != nil {
		c.Close()
	}
}

// resolve returns the address of host:port.
func resolve(ctx context.Context, addr string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(addr); err == nil {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(ips[0].Unmap(), uint16(port)), nil
}
