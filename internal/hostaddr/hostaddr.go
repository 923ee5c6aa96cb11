// Package hostaddr tells whether the other end of a connection is on this host.
// Both ends of a mount ask: the server for each client, and whoever mounts for the
// server. The address decides, as in sock_is_loopback of the kernel's nfsd:
//
//	a loop-back address             ─┐
//	the address of the other end     ├─► on this host
//	an address of any interface here ─┘
//
// Addresses move: that of a cluster comes with its service. A Watcher hears of it at once,
// Addresses asks when it is asked, once a second at most.
//
// What addresses cannot tell, it does not know: whoever is behind address
// translation, or in a container with a network of its own, seems to be remote.
package hostaddr

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// trustedFor is how long the list of this host's addresses is trusted.
const trustedFor = time.Second

// Addresses are those of this host, which may move here or away at any time. The
// zero value is ready. It may be used from several goroutines.
type Addresses struct {
	mu    sync.Mutex
	addrs map[netip.Addr]struct{}
	asked time.Time
}

// IsLocal reports whether peer, the address of the other end of a connection, is
// on this host; here is the address of this end. Both are in the form of Plain.
func (h *Addresses) IsLocal(peer, here netip.Addr) bool {
	return peer.IsLoopback() || peer == here || h.has(peer)
}

func (h *Addresses) has(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.addrs == nil || now.Sub(h.asked) > trustedFor {
		h.addrs, h.asked = ofInterfaces(), now
	}
	_, ok := h.addrs[a]
	return ok
}

// ofInterfaces is listed, with nobody local if the system cannot tell: who is treated as
// remote is only slower.
func ofInterfaces() map[netip.Addr]struct{} {
	set, _ := listed()
	return set
}

// listed returns the addresses of all interfaces.
func listed() (map[netip.Addr]struct{}, error) {
	set := map[netip.Addr]struct{}{}
	nets, err := net.InterfaceAddrs()
	for _, n := range nets {
		if p, err := netip.ParsePrefix(n.String()); err == nil {
			set[Plain(p.Addr())] = struct{}{}
		}
	}
	return set, err
}

// Plain returns a without a zone, and as IPv4 if it is one mapped into IPv6.
func Plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
