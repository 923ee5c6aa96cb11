package nfsserver

import (
	"net"
	"net/netip"
	"sync/atomic"

	"loopnfs/internal/hostaddr"
)

// Locality decides whether a client runs on this host. It is asked once per connection,
// from several goroutines, and again if it has a Generation and that changes.
type Locality interface {
	// IsLocal is given the addresses of both ends; IPv4 is never mapped into
	// IPv6.
	IsLocal(peer, here netip.Addr) bool
}

// mover is a Locality whose answers change; hostaddr.Watcher is one.
type mover interface {
	// Generation is another one if an answer of IsLocal may be.
	Generation() uint64
}

// place is where the client of a connection is: whether that is this host, and by which
// generation of the Locality.
type place struct{ bits atomic.Uint64 }

func (p *place) set(gen uint64, local bool) (was bool) {
	bits := gen << 1
	if local {
		bits |= 1
	}
	return p.bits.Swap(bits)&1 == 1
}

// watchAddresses has the addresses of this host decide, now and when they change.
func (s *Server) watchAddresses() {
	w, err := hostaddr.Watch(s.moved)
	if err != nil {
		s.cfg.Logger.Warn("the kernel does not tell when addresses of this host change", "error", err,
			"costs", "a client whose address comes here later is treated as a remote one until it connects again", "remedy", "allow netlink sockets (AF_NETLINK) to this process")
		s.cfg.Locality = &hostaddr.Addresses{}
		return
	}
	s.cfg.Locality, s.mover, s.addresses = w, w, w
}

// moved is called when addresses of this host have changed: clients may have come or gone
// by that, and waiters may be served.
func (s *Server) moved() {
	s.mu.Lock()
	for c := range s.conns {
		c.isLocal()
	}
	s.mu.Unlock()
	s.adm.wq.Wake()
}

// generation returns that of the Locality.
func (s *Server) generation() uint64 {
	if s.mover == nil {
		return 0
	}
	return s.mover.Generation()
}

// isLocal reports whether the client runs on this host now.
func (c *conn) isLocal() bool {
	gen := c.srv.generation()
	if bits := c.place.bits.Load(); bits>>1 == gen {
		return bits&1 == 1
	}
	local := c.srv.cfg.Locality.IsLocal(c.peer.Addr(), c.here)
	if c.place.set(gen, local) == local {
		return local
	}
	c.srv.count.moved.Add(1)
	c.srv.cfg.Logger.Info("an address has moved", "client", c.peer.String(), "on_this_host", local)
	if local {
		_ = c.control(boundBuffers) // the connection may have ended
	}
	return local
}

// control calls f with the socket.
func (c *conn) control(f func(fd int)) error {
	raw, err := c.nc.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}

// NeverLocal is a world without loop-back detection.
type NeverLocal struct{}

// IsLocal implements Locality.
func (NeverLocal) IsLocal(_, _ netip.Addr) bool { return false }

// addrPort returns the address of one end of a TCP connection in plain form.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(hostaddr.Plain(p.Addr()), p.Port())
}
