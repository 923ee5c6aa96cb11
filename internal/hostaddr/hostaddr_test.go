package hostaddr

import (
	"net/netip"
	"testing"
)

func TestAddresses(t *testing.T) {
	var h Addresses
	for addr := range ofInterfaces() {
		if !h.IsLocal(addr, netip.Addr{}) {
			t.Errorf("%v is an address of this host", addr)
		}
	}
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true,
		"192.0.2.1": false, "2001:db8::1": false,
	} {
		if got := h.IsLocal(netip.MustParseAddr(addr), netip.MustParseAddr("198.51.100.7")); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
	if a := netip.MustParseAddr("192.0.2.1"); !h.IsLocal(a, a) {
		t.Error("whoever calls from the address that it calls is on this host")
	}
}

func TestPlain(t *testing.T) {
	for addr, want := range map[string]string{
		"::ffff:192.0.2.1": "192.0.2.1", "fe80::1%eth0": "fe80::1", "192.0.2.1": "192.0.2.1",
	} {
		if got := Plain(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}
