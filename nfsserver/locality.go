package nfsserver

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Locality decides whether a client runs on this host. It is asked once per
// connection, from several goroutines.
type Locality interface {
	// IsLocal is given the addresses of both ends; IPv4 is never mapped into
	// IPv6.
	IsLocal(peer, here netip.Addr) bool
}

// NeverLocal is a world without loop-back detection.
type NeverLocal struct{}

// IsLocal implements Locality.
func (NeverLocal) IsLocal(_, _ netip.Addr) bool { return false }

// addressesFor is how long the list of this host's addresses is trusted.
const addressesFor = time.Second

// HostAddresses knows a client by its address: a loop-back address, the address
// that it connected to, or any other address of this host, which may have moved
// here a moment ago (sock_is_loopback in the kernel's nfsd). The zero value is
// ready.
type HostAddresses struct {
	mu    sync.Mutex
	addrs map[netip.Addr]struct{}
	asked time.Time
}

// IsLocal implements Locality.
func (h *HostAddresses) IsLocal(peer, here netip.Addr) bool {
	return peer.IsLoopback() || peer == here || h.has(peer)
}

func (h *HostAddresses) has(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.addrs == nil || now.Sub(h.asked) > addressesFor {
		h.addrs, h.asked = hostAddresses(), now
	}
	_, ok := h.addrs[a]
	return ok
}

// hostAddresses returns the addresses of all interfaces. If the system cannot
// tell, nobody is local: a client that is treated as remote is only slower.
func hostAddresses() map[netip.Addr]struct{} {
	set := map[netip.Addr]struct{}{}
	nets, _ := net.InterfaceAddrs()
	for _, n := range nets {
		if p, err := netip.ParsePrefix(n.String()); err == nil {
			set[p.Addr().Unmap().WithZone("")] = struct{}{}
		}
	}
	return set
}

// addrPort returns the address of one end of a TCP connection in plain form.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
}
