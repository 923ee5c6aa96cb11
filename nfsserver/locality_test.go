package nfsserver

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// inOwnNetwork runs the rest of the test in a process with a network of its own, and
// reports whether this is it.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	const env = "NFSSERVER_TEST_NETWORK"
	if os.Getenv(env) != "" {
		return true
	}
	if _, err := exec.LookPath("ip"); os.Geteuid() != 0 || err != nil {
		t.Skip("it needs root and ip(8)")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// inAnotherHost runs f with a network of its own, at the other end of veth pair "out".
func inAnotherHost(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread is thrown away
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// A client's address comes to this host and leaves it again, under a connection that
// stays: its calls are those of a local client, and no more.
func TestAddressThatMoves(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	ip(t, "link set lo up")
	ip(t, "link add out type veth peer name in")
	ip(t, "addr add 10.9.0.1/24 dev out")
	ip(t, "link set out up")
	// What is for the client goes to its host, also while its address is here, so that
	// the connection stays.
	for _, set := range []string{"all", "out"} {
		for _, key := range []string{"accept_local", "rp_filter"} {
			v := map[string]string{"accept_local": "1", "rp_filter": "0"}[key]
			check(t, os.WriteFile(filepath.Join("/proc/sys/net/ipv4/conf", set, key), []byte(v), 0))
		}
	}
	ip(t, "route add 10.9.0.9 dev out table 100")
	ip(t, "rule add pref 5 to 10.9.0.9 iif lo lookup 100")
	ip(t, "rule add pref 10 lookup local")
	ip(t, "rule del pref 0")

	arena := newArena(t, 8<<20)
	fs := newMemFS(arena)
	fs.put(t, rootNode, "file", nil)
	srv, addr := startOn(t, Config{Arena: arena, Exports: []Export{{Name: "/data", FS: fs, Squash: SquashNone}}}, "10.9.0.1:0")
	pid := os.Getpid()
	here, err := os.Open("/proc/self/ns/net")
	check(t, err)
	defer here.Close()
	var nc net.Conn
	inAnotherHost(t, func() {
		tid := unix.Gettid()
		ip := func(args string) { ip(t, args) }
		// This thread forks, so ip(8) is in its network.
		out, err := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", pid, here.Fd()), "ip", "link", "set", "in", "netns", fmt.Sprintf("/proc/%d/task/%d/ns/net", pid, tid)).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
			return
		}
		ip("addr add 10.9.0.9/24 dev in")
		ip("link set in up")
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 9, 0, 9)}, Timeout: 10 * time.Second}
		if nc, err = d.Dial("tcp", addr); err != nil {
			t.Error(err)
		}
	})
	if nc == nil {
		t.Fatal("no connection")
	}
	c := newRPCClient(t, nc)
	h := c.file("file")
	write := func() bool {
		var local atomic.Bool
		fs.onWrite.set(func(op *vfs.Op) error {
			local.Store(op.Local && op.Scope.IsLocalThrottle() && op.Scope.IsMemalloc() && op.Scope.Mask(gfp.Kernel) != 0)
			return nil
		})
		if res := c.write(nfs3.WriteArgs{Handle: h}, pattern(10)); res.Status != nfs3.StatusOK {
			t.Fatal(res.Status)
		}
		return local.Load()
	}
	if write() || srv.Stats().LocalConns != 0 {
		t.Error("a client on another host is local")
	}
	for i := range 3 {
		ip(t, "addr add 10.9.0.9/32 dev lo")
		began := time.Now()
		eventually(t, "the client is here", func() bool { return srv.Stats().LocalConns == 1 })
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("it took %v to see that the address is here", took)
		}
		if !write() {
			t.Error("its calls are those of a remote client")
		}
		ip(t, "addr del 10.9.0.9/32 dev lo")
		eventually(t, "the client has gone", func() bool { return srv.Stats().LocalConns == 0 })
		if write() {
			t.Error("its calls are those of a local client")
		}
		if st := srv.Stats(); st.Moved != uint64(2*i+2) || st.AddressChanges < st.Moved {
			t.Errorf("moved %d times, %d changes of addresses", st.Moved, st.AddressChanges)
		}
	}
}

// everywhere is a Locality that says what it is told.
type everywhere struct {
	gen, asked atomic.Uint64
}

func (e *everywhere) IsLocal(_, _ netip.Addr) bool { e.asked.Add(1); return e.gen.Load()%2 == 1 }
func (e *everywhere) Generation() uint64           { return e.gen.Load() }

// As long as nothing moves, nobody is asked, and nothing is allocated.
func TestLocalityIsCached(t *testing.T) {
	var e everywhere
	f := serve(t, func(cfg *Config) { cfg.Locality = &e })
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	for range 3 {
		asked := e.asked.Load()
		for range 10 {
			c.write(nfs3.WriteArgs{Handle: h}, pattern(10))
		}
		if n := e.asked.Load() - asked; n > 1 {
			t.Errorf("asked %d times", n)
		}
		e.gen.Add(1)
	}
	f.srv.mu.Lock()
	defer f.srv.mu.Unlock()
	for conn := range f.srv.conns {
		conn.isLocal()
		if n := testing.AllocsPerRun(100, func() { conn.isLocal() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
