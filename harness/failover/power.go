package failover

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness"
)

// power is the power switch of the nodes, which fence_loopnfs asks over a socket: a line
// with what to do and the node, answered with "ok" or why not. It is reached whatever
// has happened to the network.
//
// One request after the other is carried out. That of a node which has been switched off
// meanwhile is not: its connection has ended.
type power struct {
	l     net.Listener
	off   func(node string) error // returns when the node is gone
	isOn  func(node string) (on, known bool)
	event func(format string, args ...any)

	one sync.Mutex // carries out a request

	mu      sync.Mutex
	blocked chan struct{} // closed when requests go on; nil if they do
	conns   sync.WaitGroup
}

// powerSocket is where the switch is in dir.
const powerSocket = "power"

func startPower(dir string, p *power) (*power, error) {
	l, err := net.Listen("unix", filepath.Join(dir, powerSocket))
	if err != nil {
		return nil, err
	}
	p.l = l
	go p.accept()
	return p, nil
}

func (p *power) close() {
	p.unblock()
	p.l.Close()
	p.conns.Wait()
}

func (p *power) accept() {
	for {
		nc, err := p.l.Accept()
		if err != nil {
			return
		}
		p.conns.Go(func() {
			defer nc.Close()
			p.answer(nc)
		})
	}
}

func (p *power) answer(nc net.Conn) {
	line, err := bufio.NewReader(nc).ReadString('\n')
	if err != nil {
		return
	}
	action, node, _ := strings.Cut(strings.TrimSpace(line), " ")
	text := "ok"
	if err := p.perform(nc, action, node); err != nil {
		text = "error: " + err.Error()
	}
	fmt.Fprintln(nc, text)
}

func (p *power) perform(nc net.Conn, action, node string) error {
	if action == "list" {
		return nil
	}
	on, known := p.isOn(node)
	switch {
	case !known:
		return fmt.Errorf("there is no node %q", node)
	case action == "status" && !on:
		return fmt.Errorf("%s is off", node)
	case action == "status":
		return nil
	case action == "on":
		return fmt.Errorf("%s is switched on by who runs the drill", node)
	case action != "off":
		return fmt.Errorf("unknown request %q", action)
	}
	p.event("fencing of %s is requested", node)
	if err := p.await(nc); err != nil {
		return err
	}
	p.one.Lock()
	defer p.one.Unlock()
	if ended(nc) {
		return nil
	}
	if err := p.off(node); err != nil {
		p.event("%s cannot be switched off: %v", node, err)
		return err
	}
	p.event("%s"+harness.SwitchedOff, node)
	return nil
}

// await waits as long as the switch is blocked, and the node that asked is there.
func (p *power) await(nc net.Conn) error {
	p.mu.Lock()
	blocked := p.blocked
	p.mu.Unlock()
	if blocked == nil {
		return nil
	}
	p.event("the power switch does not react")
	for !ended(nc) {
		select {
		case <-blocked:
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	return os.ErrClosed
}

// ended reports whether the other end of a connection is gone. It asks the kernel: a read
// with a deadline asks nobody if the deadline is over before it begins.
func ended(nc net.Conn) bool {
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	_ = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && err != unix.EAGAIN && err != unix.EINTR
	})
	return gone
}

// block has the switch do nothing until unblock.
func (p *power) block() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocked == nil {
		p.blocked = make(chan struct{})
	}
}

func (p *power) unblock() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocked != nil {
		close(p.blocked)
		p.blocked = nil
	}
}

// Power asks the power switch at the socket device, or the monitors of guests that it
// names, to do something, and returns when it is done.
func Power(device, action, node string) error {
	if list, ok := strings.CutPrefix(device, monitorsPrefix); ok {
		m, err := parseMonitors(list)
		if err != nil {
			return err
		}
		return m.perform(action, node)
	}
	nc, err := net.Dial("unix", device)
	if err != nil {
		return fmt.Errorf("no power switch at %s: %w", device, err)
	}
	defer nc.Close()
	if _, err := fmt.Fprintf(nc, "%s %s\n", action, node); err != nil {
		return err
	}
	line, err := bufio.NewReader(nc).ReadString('\n')
	if err != nil {
		return fmt.Errorf("the power switch gave no answer: %w", err)
	}
	if text := strings.TrimSpace(line); text != "ok" {
		return fmt.Errorf("the power switch: %s", text)
	}
	return nil
}
