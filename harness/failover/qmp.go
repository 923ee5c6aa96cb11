package failover

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"
)

// monitors is the power switch of nodes that are guests of QEMU: for each, where its
// monitor listens. It goes with the guest, so that an address of this machine's that
// refuses is the proof that the guest is gone; one that is silent proves nothing.
type monitors map[string]string

// monitorsPrefix marks a device that names monitors: qmp:n1=10.0.0.254:4001,n2=…
const monitorsPrefix = "qmp:"

func parseMonitors(list string) (monitors, error) {
	m := monitors{}
	for entry := range strings.SplitSeq(list, ",") {
		node, addr, ok := strings.Cut(entry, "=")
		if _, _, err := net.SplitHostPort(addr); !ok || err != nil {
			return nil, fmt.Errorf("%q names no monitor: give NODE=ADDRESS:PORT", entry)
		}
		m[node] = addr
	}
	return m, nil
}

func (m monitors) String() string {
	var list []string
	for _, node := range slices.Sorted(maps.Keys(m)) {
		list = append(list, node+"="+m[node])
	}
	return monitorsPrefix + strings.Join(list, ",")
}

const (
	// monitorLimit is how long a monitor may need for an answer.
	monitorLimit = 5 * time.Second
	// offLimit is how long a guest may need to be gone.
	offLimit = 15 * time.Second
)

// perform does what a fencing agent is asked to.
func (m monitors) perform(action, node string) error {
	if action == "list" {
		return nil
	}
	addr, ok := m[node]
	switch {
	case !ok:
		return fmt.Errorf("there is no node %q", node)
	case action == "off":
		return switchOff(addr, offLimit)
	case action == "status":
		if gone, err := refused(addr); gone || err != nil {
			return errors.Join(err, fmt.Errorf("%s is off", node))
		}
		return nil
	}
	return fmt.Errorf("guests cannot be switched %s from here", action)
}

// switchOff has QEMU end at once, and returns when it has: when nobody listens any more.
func switchOff(addr string, within time.Duration) error {
	var last error
	for limit := time.Now().Add(within); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) {
		gone, err := refused(addr)
		if gone {
			return nil
		}
		if last = err; err == nil {
			last = quit(addr)
		}
	}
	return fmt.Errorf("the monitor at %s does not go away within %v: %w", addr, within, last)
}

// refused reports whether nobody listens at addr. It is an error if that cannot be told.
func refused(addr string) (bool, error) {
	nc, err := net.DialTimeout("tcp", addr, monitorLimit)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, nc.Close()
}

// quit asks QEMU to end. That the connection ends is no proof that it has.
func quit(addr string) error {
	nc, err := net.DialTimeout("tcp", addr, monitorLimit)
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(monitorLimit)); err != nil {
		return err
	}
	in := bufio.NewReader(nc)
	if _, err := in.ReadString('\n'); err != nil { // its greeting
		return err
	}
	for _, command := range []string{"qmp_capabilities", "quit"} {
		if err := json.NewEncoder(nc).Encode(map[string]string{"execute": command}); err != nil {
			return err
		}
		if _, err := in.ReadString('\n'); err != nil {
			return err
		}
	}
	return nil
}
