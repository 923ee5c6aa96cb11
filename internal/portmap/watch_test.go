package portmap

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	soon   = 20 * time.Second
	server = 2049
	kernel = 36297
)

var (
	nlmTCP  = Program{Number: 100021, Version: 4, Claim: Seize}
	nlmUDP  = Program{Number: 100021, Version: 4, UDP: true, Claim: Seize}
	nlm3TCP = Program{Number: 100021, Version: 3}
	nsmTCP  = Program{Number: 100024, Version: 1, Claim: Yield}
)

// rpcbind is a portmapper: version 2 over TCP, and what seize needs of version 3 over a
// local socket.
type rpcbind struct {
	addr, socket string
	wg           sync.WaitGroup

	mu     sync.Mutex
	ports  map[Program]uint32 // without Claim
	conns  map[net.Conn]bool
	silent bool // no replies
	reset  bool // connections end with a reset
	mute   bool // no replies over the local socket
	refuse bool // UNSET is not for this caller
	asked  int
}

func startRPCBind(t *testing.T) *rpcbind {
	b := &rpcbind{socket: filepath.Join(t.TempDir(), "sock"), ports: map[Program]uint32{}, conns: map[net.Conn]bool{}}
	for _, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", b.socket}} {
		l, err := net.Listen(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		if at[0] == "tcp" {
			b.addr = l.Addr().String()
		}
		b.wg.Go(func() {
			for nc, err := l.Accept(); err == nil; nc, err = l.Accept() {
				b.mu.Lock()
				b.conns[nc] = true
				b.mu.Unlock()
				b.wg.Go(func() { b.serve(nc) })
			}
		})
		defer t.Cleanup(func() { l.Close(); b.hangUp() })
	}
	t.Cleanup(b.wg.Wait)
	return b
}

// hangUp closes all connections, as one does that starts again.
func (b *rpcbind) hangUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for nc := range b.conns {
		nc.Close()
	}
	clear(b.conns)
}

func (b *rpcbind) serve(nc net.Conn) {
	var head [4]byte
	for {
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return
		}
		b.mu.Lock()
		if t, ok := nc.(*net.TCPConn); ok && b.reset {
			t.SetLinger(0)
			t.Close()
		}
		mute := b.mute && nc.LocalAddr().Network() == "unix"
		b.mu.Unlock()
		d := xdr.NewDecoder(head[:])
		msg := make([]byte, d.Uint32()&^(1<<31))
		if _, err := io.ReadFull(nc, msg); err != nil {
			return
		}
		d = xdr.NewDecoder(msg)
		var c sunrpc.Call
		if sunrpc.DecodeCall(&d, &c) != nil {
			return
		}
		var e xdr.Encoder
		mark := sunrpc.BeginRecord(&e)
		sunrpc.ReplySuccess(&e, c.XID)
		if !b.carryOut(&c, &d, &e) || mute {
			continue
		}
		sunrpc.EndRecord(&e, mark, 0)
		nc.Write(e.Buf)
	}
}

func (b *rpcbind) carryOut(c *sunrpc.Call, d *xdr.Decoder, e *xdr.Encoder) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	p := Program{Number: d.Uint32(), Version: d.Uint32()}
	switch {
	case c.Vers == version:
		p.UDP = d.Uint32() == protoUDP
		there := b.ports[p]
		switch {
		case c.Proc == procPort:
			e.Uint32(there)
		case c.Proc == procSet && there == 0:
			b.ports[p] = d.Uint32()
			e.Bool(true)
		case c.Proc == procUnset: // whatever it is served over
			for _, p.UDP = range []bool{false, true} {
				delete(b.ports, p)
			}
			e.Bool(true)
		default:
			e.Bool(false)
		}
	case c.Proc == procDump:
		for p, port := range b.ports {
			e.Bool(true)
			e.Uint32(p.Number)
			e.Uint32(p.Version)
			netid := map[bool]string{false: "tcp", true: "udp"}[p.UDP]
			for _, s := range []string{netid, fmt.Sprintf("0.0.0.0.%d.%d", port>>8, port&0xff), "superuser"} {
				e.String(s)
			}
		}
		e.Bool(false)
	default: // UNSET
		p.UDP = string(d.String(maxReply)) == "udp"
		if !b.refuse {
			delete(b.ports, p)
		}
		e.Bool(!b.refuse)
	}
	return !b.silent
}

// set changes what is registered.
func (b *rpcbind) set(port uint32, progs ...Program) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range progs {
		p.Claim = Exclusive
		if b.ports[p] = port; port == 0 {
			delete(b.ports, p)
		}
	}
}

func (b *rpcbind) port(p Program) uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.Claim = Exclusive
	return b.ports[p]
}

func (b *rpcbind) is(t *testing.T, p Program, port uint32) {
	t.Helper()
	if got := b.port(p); got != port {
		t.Errorf("%+v is registered at %d, want %d", p, got, port)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to this:", what)
		}
	}
}

// changes are the ports that were reported, and lines what was logged.
type changes struct {
	mu    sync.Mutex
	ports map[Program][]uint16
	lines strings.Builder
}

func (c *changes) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines.Write(b)
}

func (c *changes) logged(s string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(c.lines.String(), s)
}

func (c *changes) of(p Program) []uint16 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ports[p])
}

// watch registers progs with b and looks after them.
func watch(t *testing.T, b *rpcbind, settle time.Duration, progs ...Program) (*Watch, *changes) {
	t.Helper()
	r := &Registration{addr: b.addr, sockets: []string{b.socket + ".not", b.socket}, port: server}
	if err := r.registerAll(progs); err != nil {
		t.Fatal(err)
	}
	c := &changes{ports: map[Program][]uint16{}}
	w := newWatch(r, slog.New(slog.NewTextHandler(c, nil)), func(p Program, port uint16) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ports[p] = append(c.ports[p], port)
	})
	w.every, w.settle = 10*time.Millisecond, settle
	w.start()
	t.Cleanup(w.Close)
	w.Check(soon)
	return w, c
}

// The lock manager of the kernel comes and goes.
func TestWatchSeizes(t *testing.T) {
	b := startRPCBind(t)
	b.set(kernel, nlmTCP, nlm3TCP)
	w, c := watch(t, b, 50*time.Millisecond, nlmTCP, nlmUDP)
	b.is(t, nlmTCP, server) // what was there at the start
	for range 3 {
		b.set(kernel, nlmTCP, nlmUDP, nlm3TCP)
		w.Check(soon)
		b.is(t, nlmTCP, server)
		b.is(t, nlmUDP, server)
		b.is(t, nlm3TCP, kernel)
	}
	b.set(0, nlmTCP, nlmUDP, nlm3TCP)
	eventually(t, "both are registered again", func() bool { return b.port(nlmTCP) == server && b.port(nlmUDP) == server })
	if got := c.of(nlmTCP); !slices.Equal(got[:3], []uint16{server, kernel, server}) {
		t.Errorf("ports that were seen: %v", got)
	}
}

// Who removes what is there is about to register: nobody gets in between.
func TestWatchWaits(t *testing.T) {
	b := startRPCBind(t)
	w, c := watch(t, b, time.Hour, nlmTCP)
	b.set(0, nlmTCP)
	for range 3 {
		w.Check(soon)
	}
	b.is(t, nlmTCP, 0)
	if got := c.of(nlmTCP); !slices.Equal(got, []uint16{server, 0}) {
		t.Errorf("ports that were seen: %v", got)
	}
}

// A status monitor has its place for as long as it is there.
func TestWatchYields(t *testing.T) {
	b := startRPCBind(t)
	b.set(700, nsmTCP)
	w, c := watch(t, b, 30*time.Millisecond, nsmTCP)
	for range 3 {
		w.Check(soon)
	}
	b.is(t, nsmTCP, 700)
	b.set(0, nsmTCP)
	eventually(t, "it takes the place", func() bool { return b.port(nsmTCP) == server })
	eventually(t, "all is reported", func() bool { return slices.Equal(c.of(nsmTCP), []uint16{700, 0, server}) })
	if err := w.reg.Close(); err != nil {
		t.Error(err)
	}
}

// A local socket that belongs to another network is left alone, and what goes wrong is
// said once.
func TestSeizeElsewhere(t *testing.T) {
	b, other := startRPCBind(t), startRPCBind(t)
	other.set(kernel+1, nlmTCP)
	b.socket = other.socket
	w, c := watch(t, b, time.Hour, nlmTCP)
	b.set(kernel, nlmTCP)
	for range 3 {
		w.Check(soon)
	}
	b.is(t, nlmTCP, kernel)
	other.is(t, nlmTCP, kernel+1)
	if !c.logged("another network") || strings.Count(c.lines.String(), "WARN") != 1 {
		t.Errorf("logged: %s", c.lines.String())
	}
}

func TestSeizeRefused(t *testing.T) {
	b := startRPCBind(t)
	b.refuse = true
	b.set(kernel, nlmTCP)
	r := &Registration{addr: b.addr, sockets: []string{b.socket}, port: server}
	if err := r.registerAll([]Program{nlmTCP}); err == nil || !strings.Contains(err.Error(), "only root") {
		t.Errorf("got %v", err)
	}
}

// A portmapper that starts again, and one that does not answer.
func TestWatchPortmapper(t *testing.T) {
	b := startRPCBind(t)
	w, c := watch(t, b, 0, nlmTCP)
	b.set(0, nlmTCP)
	b.hangUp()
	eventually(t, "it is registered again", func() bool { return b.port(nlmTCP) == server })
	if c.logged("WARN") {
		t.Errorf("logged: %s", c.lines.String())
	}
	b.mu.Lock()
	b.silent = true
	b.mu.Unlock()
	var wg sync.WaitGroup
	start := time.Now()
	for range 10 * maxChecks {
		wg.Go(func() { w.Check(20 * time.Millisecond) })
	}
	wg.Wait()
	w.Close()
	if d := time.Since(start); d > callTime {
		t.Errorf("Check and Close took %v", d)
	}
	w.Check(time.Hour) // after Close it does not wait
}

// Nobody takes the lock manager's place from a server that has taken that of NFS: its
// clients lock there. Programs that come after one that goes wrong are looked at, too.
func TestWatchOtherServer(t *testing.T) {
	b := startRPCBind(t)
	nfs := Program{Number: 100003, Version: 3}
	w, c := watch(t, b, time.Hour, nfs, nlmTCP, nsmTCP)
	b.set(20049, nfs)
	b.set(kernel, nlmTCP)
	b.set(700, nsmTCP)
	for range 3 {
		w.Check(soon)
	}
	b.is(t, nfs, 20049)
	b.is(t, nlmTCP, kernel)
	if got := c.of(nsmTCP); !slices.Equal(got, []uint16{server, 700}) {
		t.Errorf("ports of the status monitor that were seen: %v", got)
	}
	if !c.logged("program 100003") || !c.logged("port 20049") || strings.Count(c.lines.String(), "WARN") != 1 {
		t.Errorf("logged: %s", c.lines.String())
	}
	b.set(server, nfs)
	w.Check(soon)
	b.is(t, nlmTCP, server)
}

// What the portmapper lets nobody do keeps nothing else from being put right.
func TestWatchGoesOn(t *testing.T) {
	b := startRPCBind(t)
	w, _ := watch(t, b, 0, nlmTCP, nsmTCP)
	b.mu.Lock()
	b.refuse = true
	b.mu.Unlock()
	b.set(kernel, nlmTCP)
	b.set(0, nsmTCP)
	w.Check(soon)
	w.Check(soon)
	b.is(t, nlmTCP, kernel)
	b.is(t, nsmTCP, server)
}

// One thing that is wrong is logged once, though each connection has another port.
func TestWatchLogsOnce(t *testing.T) {
	b := startRPCBind(t)
	w, c := watch(t, b, time.Hour, nlmTCP)
	b.mu.Lock()
	b.reset = true
	b.mu.Unlock()
	for range 5 {
		w.Check(soon)
	}
	if n := strings.Count(c.lines.String(), "WARN"); n != 1 {
		t.Errorf("%d warnings: %s", n, c.lines.String())
	}
}

// Close waits for no call, whatever it is about.
func TestWatchClosesAtOnce(t *testing.T) {
	b := startRPCBind(t)
	w, _ := watch(t, b, time.Hour, nlmTCP)
	b.mu.Lock()
	b.mute = true
	b.mu.Unlock()
	b.set(kernel, nlmTCP)
	w.Check(100 * time.Millisecond)
	start := time.Now()
	w.Close()
	if d := time.Since(start); d > callTime/2 {
		t.Errorf("Close took %v", d)
	}
}

// A portmapper that does not answer holds up one round of Check, not all of them.
func TestCheckWaitsOnce(t *testing.T) {
	b := startRPCBind(t)
	w, _ := watch(t, b, time.Hour, nlmTCP)
	b.mu.Lock()
	b.silent = true
	b.mu.Unlock()
	w.Check(50 * time.Millisecond)
	start := time.Now()
	for range 10 {
		w.Check(callTime / 10)
	}
	if d := time.Since(start); d > callTime/2 {
		t.Errorf("10 more took %v", d)
	}
	b.mu.Lock()
	b.silent = false
	b.mu.Unlock()
	b.hangUp()
	eventually(t, "it is waited for again", func() bool {
		b.set(kernel, nlmTCP)
		w.Check(soon)
		return b.port(nlmTCP) == server
	})
}

// A registration is taken back from a portmapper that hangs in the time of one call.
func TestCloseSilent(t *testing.T) {
	b := startRPCBind(t)
	r := &Registration{addr: b.addr, port: server}
	if err := r.registerAll([]Program{nlmTCP, nlmUDP, nsmTCP}); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.silent = true
	b.mu.Unlock()
	start := time.Now()
	if err := r.Close(); !errors.Is(err, errSilent) {
		t.Error(err)
	}
	if d := time.Since(start); d > 2*callTime {
		t.Errorf("Close took %v", d)
	}
}

// A port that there cannot be is no port.
func TestWatchBadPort(t *testing.T) {
	b := startRPCBind(t)
	w, c := watch(t, b, time.Hour, nsmTCP)
	b.set(1<<16+server, nsmTCP)
	w.Check(soon)
	if got := c.of(nsmTCP); !slices.Equal(got, []uint16{server}) || !c.logged("WARN") {
		t.Errorf("ports that were seen: %v; logged: %s", got, c.lines.String())
	}
}

// A local socket that is not root's, nor this user's, is not rpcbind's: the abstract name
// is anybody's who comes first.
func TestSocketOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("takes root, to be another user")
	}
	b := startRPCBind(t)
	name := fmt.Sprintf("@loopnfs-test-%d", os.Getpid())
	bad := listenAs(t, 65534, name)
	r := &Registration{addr: b.addr, sockets: []string{name, b.socket}, port: server}
	b.set(kernel, nlmTCP)
	start := time.Now()
	if err := r.registerAll([]Program{nlmTCP}); err != nil || time.Since(start) > callTime/2 {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	b.is(t, nlmTCP, server)
	bad.Close()
}

// listenAs listens at a local socket as another user.
func listenAs(t *testing.T, uid int, socket string) net.Listener {
	var l net.Listener
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			err = e
			return
		}
		l, err = net.Listen("unix", socket)
	})
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Everything at once: the kernel comes and goes, the portmapper starts again, clients
// mount, and the server ends in the midst of it.
func TestWatchStorm(t *testing.T) {
	b := startRPCBind(t)
	w, _ := watch(t, b, 5*time.Millisecond, nlmTCP, nlmUDP, nsmTCP)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				switch rand.N(5) {
				case 0:
					b.set(kernel, nlmTCP, nlmUDP)
				case 1:
					b.set(0, nlmTCP, nsmTCP)
				case 2:
					b.hangUp()
				default:
					w.Check(time.Duration(rand.N(3)) * time.Millisecond)
				}
			}
		})
	}
	time.Sleep(time.Second)
	w.Close()
	close(stop)
	wg.Wait()
	b.set(server, w.reg.progs...)
	b.set(kernel, nlm3TCP)
	if err := w.reg.Close(); err != nil {
		t.Error(err)
	}
	b.is(t, nlm3TCP, kernel)
	for _, p := range w.reg.progs {
		if b.port(p) == server {
			t.Errorf("%+v is left", p)
		}
	}
}

// A server that has nothing registered yet comes by it.
func TestLater(t *testing.T) {
	b := startRPCBind(t)
	b.set(20048, nsmTCP)
	r := Later(b.addr, server, []Program{nlmTCP, nsmTCP})
	w := newWatch(r, slog.New(slog.DiscardHandler), func(Program, uint16) {})
	w.every, w.settle = 10*time.Millisecond, 30*time.Millisecond
	w.start()
	defer w.Close()
	eventually(t, "it is registered", func() bool { return b.port(nlmTCP) == server })
	b.is(t, nsmTCP, 20048)
}
