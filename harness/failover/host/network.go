package host

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
)

// Switch is a bridge, in a host of its own, to which the others are connected. This
// machine's network sees nothing of it. It has an address itself: what everybody reaches
// whose link is up.
type Switch struct {
	*Host
	network netip.Prefix

	mu    sync.Mutex
	n     int               // ports so far
	ports map[string]string // of hosts, by their names
}

// StartSwitch starts a switch for a network, in which it has the address of prefix.
func StartSwitch(c Config, prefix netip.Prefix, argv ...string) (*Switch, error) {
	h, err := Start(c, "", argv...)
	if err != nil {
		return nil, err
	}
	s := &Switch{Host: h, network: prefix, ports: map[string]string{}}
	// No delay before a port forwards: nobody is connected in a circle.
	err = s.batch("link add lan type bridge forward_delay 0", "addr add "+prefix.String()+" dev lan", "link set lan up")
	if err != nil {
		s.Kill()
	}
	return s, err
}

// batch has ip(8) carry out commands.
func (s *Switch) batch(lines ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	_, err := s.RunWith(ctx, strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
	return err
}

// Connect gives a host an interface eth0 with an address. The interface has the same
// hardware address each time, as a machine's has.
func (s *Switch) Connect(h *Host, addr netip.Addr) error {
	s.mu.Lock()
	s.n++
	port := fmt.Sprintf("p%d-%s", s.n, h.Name)
	s.ports[h.Name] = port
	s.mu.Unlock()
	b := addr.As4()
	mac := fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
	// From outside, as only here both hosts have a number.
	ip := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", s.PID()),
		"ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", fmt.Sprint(h.PID()))
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("connect %s: %w: %s", h.Name, err, out)
	}
	if err := s.batch("link set "+port+" master lan", "link set "+port+" up"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	_, err := h.RunWith(ctx, fmt.Sprintf("addr add %s/%d dev eth0\nlink set eth0 up\n", addr, s.network.Bits()), "ip", "-batch", "-")
	return err
}

// Plug pulls the cable of a host, or puts it back.
func (s *Switch) Plug(name string, in bool) error {
	s.mu.Lock()
	port, ok := s.ports[name]
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("no host %s is connected", name)
	}
	return s.batch(fmt.Sprintf("link set %s %s", port, map[bool]string{true: "up", false: "down"}[in]))
}

// Separate keeps two hosts from hearing of each other by UDP, which is how a cluster
// talks, while everybody else hears both.
func (s *Switch) Separate(a, b netip.Addr) error {
	rules := fmt.Sprintf(`table bridge separate {
	chain forward {
		type filter hook forward priority 0;
		ip saddr %[1]s ip daddr %[2]s ip protocol udp drop
		ip saddr %[2]s ip daddr %[1]s ip protocol udp drop
	}
}
`, a, b)
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	_, err := s.RunWith(ctx, rules, "nft", "-f", "-")
	return err
}

// Join undoes Separate.
func (s *Switch) Join() error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	_, err := s.Run(ctx, "sh", "-c", "! nft list table bridge separate >/dev/null 2>&1 || nft delete table bridge separate")
	return err
}
