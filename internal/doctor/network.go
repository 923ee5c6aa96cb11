package doctor

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// nfsPort is where NFS is when nobody says otherwise.
const nfsPort = 2049

// maxNamespaces of a kind are looked at.
const maxNamespaces = 512

// network is a network namespace.
type network struct {
	name  string // of the namespace; empty for our own if it cannot be seen
	local []netip.Prefix
	// sockets that wait for clients, of TCP and UDP.
	sockets []socket
}

type socket struct {
	proto string // "tcp" or "udp"
	addr  netip.AddrPort
	inode string
}

// networks returns the network namespaces of all processes, our own first.
func (h *Host) networks(procs []process, f *Facts) []network {
	own := h.link("proc/self/ns/net")
	nets := []network{h.network(own, "proc/self/net")}
	seen := map[string]bool{"": true, own: true}
	for _, p := range procs {
		if p.kernel || seen[p.net] {
			continue
		}
		seen[p.net] = true
		if len(nets) == maxNamespaces {
			f.unseen("network namespaces beyond the first %d", maxNamespaces)
			break
		}
		nets = append(nets, h.network(p.net, proc(p.pid, "net")))
	}
	return nets
}

// network reads a directory like /proc/net. What is missing there, like IPv6,
// the namespace does not have.
func (h *Host) network(name, dir string) network {
	n := network{name: name}
	_ = h.lines(path.Join(dir, "fib_trie"), fibTrie(&n.local))
	_ = h.lines(path.Join(dir, "if_inet6"), func(line string) bool {
		b, err := hex.DecodeString(firstField(line))
		if a, ok := netip.AddrFromSlice(b); ok && err == nil {
			n.local = append(n.local, netip.PrefixFrom(a, a.BitLen()))
		}
		return true
	})
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6"} {
		_ = h.lines(path.Join(dir, file), func(line string) bool {
			if s, ok := parseSocket(file[:3], line); ok {
				n.sockets = append(n.sockets, s)
			}
			return true
		})
	}
	return n
}

func firstField(line string) string {
	if f := strings.Fields(line); len(f) > 0 {
		return f[0]
	}
	return ""
}

// fibTrie collects the local addresses of /proc/net/fib_trie:
//
//	|-- 127.0.0.0
//	   /8 host LOCAL
func fibTrie(local *[]netip.Prefix) func(line string) bool {
	var at string
	return func(line string) bool {
		line = strings.TrimSpace(line)
		if a, ok := strings.CutPrefix(line, "|-- "); ok {
			at = a
		} else if bits, ok := strings.CutSuffix(line, " host LOCAL"); ok {
			if p, err := netip.ParsePrefix(at + bits); err == nil {
				*local = append(*local, p)
			}
		}
		return true
	}
}

// parseSocket takes a line of /proc/net/tcp or its like, if it is of a socket
// that waits for clients.
func parseSocket(proto, line string) (s socket, ok bool) {
	const local, state, inode = 1, 3, 9
	f := strings.Fields(line)
	if len(f) <= inode {
		return s, false
	}
	const tcpListen, udpUnconnected = "0A", "07"
	if f[state] != tcpListen && (proto != "udp" || f[state] != udpUnconnected) {
		return s, false
	}
	addr, ok := parseHexAddr(f[local])
	return socket{proto, addr, f[inode]}, ok
}

// parseHexAddr reads "0100007F:0801": words in the byte order of the machine.
func parseHexAddr(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	p, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), ok && err == nil
}

// has reports whether a is an address of the namespace.
func (n *network) has(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	for _, p := range n.local {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// listeners returns the sockets that a client which connects to addr reaches.
func (n *network) listeners(proto string, addr netip.AddrPort) []socket {
	var found []socket
	for _, s := range n.sockets {
		same := s.addr.Addr() == addr.Addr() ||
			s.addr.Addr().IsUnspecified() && (s.addr.Addr().Is6() || addr.Addr().Is4())
		if s.proto == proto && s.addr.Port() == addr.Port() && same {
			found = append(found, s)
		}
	}
	return found
}
