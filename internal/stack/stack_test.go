package stack

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"go.uber.org/goleak"

	"loopnfs/fusefs"
	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
	"loopnfs/nfsclient"
	"loopnfs/nfsserver"
)

// loopback is a server and its client on one memory, mounted.
type loopback struct {
	mem    *Memory
	server *Server
	client *Client
	dir    string // the mount point
	back   string // the backing directory
}

func startLoopback(t *testing.T, bytes int64) *loopback {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root: run make test")
	}
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	mem, err := NewMemory(DefaultMemory(bytes))
	if err != nil {
		t.Fatal(err)
	}
	l := &loopback{mem: mem, dir: t.TempDir(), back: t.TempDir()}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	mem.Start()
	t.Cleanup(mem.Stop)
	l.server, err = StartServer(mem, ServerConfig{
		Exports: []ExportConfig{{Dir: l.back, Name: "/back", Squash: nfsserver.SquashNone}}, StateDir: t.TempDir(), Listen: "127.0.0.1:0",
		Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, l.server.Stop) })
	l.client, err = StartClient(t.Context(), mem, ClientConfig{
		NFS:  nfsclient.Config{Addr: l.server.Addr().String(), Export: "/back"},
		Door: fusefs.DoorConfig{Mountpoint: l.dir, FsName: "127.0.0.1:/back"}, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, l.client.Stop) })
	return l
}

func stop(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Error(err)
	}
}

// sh runs a script in another process, which may use the mount.
func (l *loopback) sh(t *testing.T, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
	cmd.Env = append(os.Environ(), "M="+l.dir, "B="+l.back)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// Sixteen times the memory goes in, comes out, and is on disk after close.
func TestLoopback(t *testing.T) {
	l := startLoopback(t, 8<<20)
	l.sh(t, `dd if=/dev/urandom of=$M/f bs=1M count=128 2>/dev/null
		cmp $M/f $B/f
		mkdir $M/d; for i in 1 2 3; do cp $M/f $M/d/$i & done; wait
		for i in 1 2 3; do cmp $M/f $M/d/$i; done
		rm -r $M/d`)
	if n := l.client.BDI().Pages(); n != 0 {
		t.Errorf("%d pages are not clean after the last close", n)
	}
}

// With Locks the status monitor answers over UDP on the port of the server, and the list
// of clients is in the state directory; after Stop nothing is left.
func TestLocks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the store needs root: run make test")
	}
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	mem, err := NewMemory(DefaultMemory(8 << 20))
	if err != nil {
		t.Fatal(err)
	}
	mem.Start()
	t.Cleanup(mem.Stop)
	state := t.TempDir()
	s, err := StartServer(mem, ServerConfig{Exports: []ExportConfig{{Dir: t.TempDir(), Name: "/e"}}, StateDir: state, Listen: "127.0.0.2:0", Locks: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s.Stop) })
	if b, err := os.ReadFile(filepath.Join(state, "locks", "state")); err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(s.Locks.State()) {
		t.Errorf("%q, %v; the state is %d", b, err, s.Locks.State())
	}
	at := s.Addr().(*net.TCPAddr)
	statOverUDP(t, at.AddrPort())
	statOverUDP(t, netip.AddrPortFrom(loopBack, uint16(at.Port))) // where rpc.statd calls
}

// statOverUDP calls SM_STAT.
func statOverUDP(t *testing.T, at netip.AddrPort) {
	t.Helper()
	u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	var e xdr.Encoder
	sunrpc.EncodeCall(&e, &sunrpc.Call{XID: 7, Prog: nlm4.StatusProgram, Vers: nlm4.StatusVersion, Proc: nlm4.StatusProcStat})
	(&nlm4.StatArgs{Name: []byte("c")}).Encode(&e)
	b := make([]byte, 100)
	if _, err := u.Write(e.Buf); err != nil {
		t.Fatal(err)
	}
	if err := u.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := u.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	d := xdr.NewDecoder(b[:n])
	if r, err := sunrpc.DecodeReply(&d); err != nil || r.XID != 7 {
		t.Errorf("%+v, %v", r, err)
	}
}

// What is stopped while it is in use ends all the same, and loses nothing that
// was written.
func TestStopInUse(t *testing.T) {
	l := startLoopback(t, 8<<20)
	cmd := exec.Command("sh", "-c", `exec 9>$M/held; echo data >&9; echo ready; read line; echo more >&9`)
	cmd.Env = append(os.Environ(), "M="+l.dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(out, new(string)); err != nil {
		t.Fatal(err)
	}
	stop(t, l.client.Stop)
	in.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("a write after the end of the mount succeeded")
	}
	if b, err := os.ReadFile(filepath.Join(l.back, "held")); err != nil || string(b) != "data\n" {
		t.Errorf("on disk is %q, %v", b, err)
	}
	if m, err := fusefs.FindMount(l.dir); m != nil || err != nil {
		t.Errorf("still mounted: %v, %v", m, err)
	}
}

// posixEnv tells a child of TestPosix where the mount is.
const posixEnv = "STACK_POSIX_DIR"

// notOurs are the tests of go-fuse's suite for what NFSv3 does not do; fusefs
// says more.
var notOurs = []string{
	"Fallocate", "FallocateKeepSize", "Tmpfile", "XAttr", "XAttrLarge",
	"FcntlFlockLocksFile", "RenameOpenDir", "OpenSymlinkRace",
	"FstatDeleted", "NlinkZero", // a file removed while open has another name until it is closed
}

// TestPosix runs go-fuse's suite on the client's mount.
func TestPosix(t *testing.T) {
	l := startLoopback(t, 16<<20)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPosixChild$", "-test.v")
	cmd.Env = append(os.Environ(), posixEnv+"="+l.dir, "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "--- PASS: TestPosixChild/"); n < len(posixtest.All)-len(notOurs) {
		t.Errorf("only %d tests passed:\n%s", n, out)
	}
}

func TestPosixChild(t *testing.T) {
	dir := os.Getenv(posixEnv)
	if dir == "" {
		t.Skip("it is run by TestPosix")
	}
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		if slices.Contains(notOurs, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			sub := filepath.Join(dir, name)
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			posixtest.All[name](t, sub)
		})
	}
}

func TestServerConfigErrors(t *testing.T) {
	dir := t.TempDir()
	ok := ExportConfig{Dir: dir}
	for _, c := range []struct {
		cfg  ServerConfig
		want string
	}{
		{ServerConfig{StateDir: dir}, "nothing to serve"},
		{ServerConfig{Exports: []ExportConfig{ok}}, "--state"},
		{ServerConfig{StateDir: dir, Exports: []ExportConfig{{Dir: dir, Name: "x"}}}, "absolute"},
		{ServerConfig{StateDir: dir, Exports: []ExportConfig{ok, ok}}, "two exports"},
		{ServerConfig{StateDir: dir, Exports: []ExportConfig{ok, {Dir: dir, Name: "/b"}}, Fuse: dir}, "exactly one"},
	} {
		if err := c.cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
	cfg := ServerConfig{StateDir: dir, Exports: []ExportConfig{{Dir: "/"}, ok}}
	if err := cfg.Validate(); err != nil || cfg.Exports[0].Name != "/" || cfg.Exports[1].Name != "/"+filepath.Base(dir) {
		t.Errorf("names: %+v, %v", cfg.Exports, err)
	}
}
