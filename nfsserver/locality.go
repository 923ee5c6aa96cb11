package nfsserver

import (
	"net"
	"net/netip"

	"loopnfs/internal/hostaddr"
)

// Locality decides whether a client runs on this host. It is asked once per
// connection, from several goroutines. hostaddr.Addresses is one.
type Locality interface {
	// IsLocal is given the addresses of both ends; IPv4 is never mapped into
	// IPv6.
	IsLocal(peer, here netip.Addr) bool
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
