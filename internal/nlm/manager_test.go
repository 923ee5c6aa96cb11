package nlm

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const soon = 20 * time.Second

// fakeClient is a host that locks: its portmapper, its lock manager and its status
// monitor, all on one port.
type fakeClient struct {
	peer Peer
	l    net.Listener
	wg   sync.WaitGroup

	mu       sync.Mutex
	silent   int               // so many calls of the lock manager get no reply
	absent   bool              // the portmapper knows of nothing
	deny     nlm4.Status       // what GRANTED is answered with
	hang     chan struct{}     // the status monitor answers SM_MON once it is closed
	hanging  atomic.Int32      // such calls
	ports    map[uint32]uint16 // by program, of version 4 if it has more, and others than that of the client
	called   chan nlm4.TestArgs
	tracked  chan trackCall
	notified chan nlm4.NotifyArgs
	answers  chan nlm4.Result
}

// trackCall is SM_MON or SM_UNMON.
type trackCall struct {
	proc, prog, vers, called uint32
	name                     string
	priv                     [nlm4.PrivSize]byte
}

// startClient starts a client at 127.0.0.n, with the port of the first if there is one.
func startClient(t *testing.T, n int, port uint16) *fakeClient {
	addr := netip.AddrFrom4([4]byte{127, 0, 0, byte(n)})
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	c := &fakeClient{peer: Peer{addr, netip.MustParseAddr("127.0.0.1")}, l: l, called: make(chan nlm4.TestArgs, 100),
		notified: make(chan nlm4.NotifyArgs, 100), answers: make(chan nlm4.Result, 100),
		tracked: make(chan trackCall, 100)}
	c.wg.Go(func() {
		for nc, err := l.Accept(); err == nil; nc, err = l.Accept() {
			c.wg.Go(func() { c.answer(t, nc) })
		}
	})
	t.Cleanup(func() { l.Close(); c.wg.Wait() })
	return c
}

func (c *fakeClient) port() uint16 { return uint16(c.l.Addr().(*net.TCPAddr).Port) }

func (c *fakeClient) answer(t *testing.T, nc net.Conn) {
	defer nc.Close()
	var head [4]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return
	}
	d := xdr.NewDecoder(head[:])
	b := make([]byte, d.Uint32()&^(1<<31))
	if _, err := io.ReadFull(nc, b); err != nil {
		return
	}
	d = xdr.NewDecoder(b)
	var call sunrpc.Call
	if err := sunrpc.DecodeCall(&d, &call); err != nil {
		t.Error(err)
		return
	}
	c.mu.Lock()
	hang := c.hang
	c.mu.Unlock()
	if hang != nil && call.Prog == nlm4.StatusProgram {
		c.hanging.Add(1)
		<-hang
	}
	var e xdr.Encoder
	mark := sunrpc.BeginRecord(&e)
	sunrpc.ReplySuccess(&e, call.XID)
	if !c.carryOut(t, &call, &d, &e) {
		return
	}
	sunrpc.EndRecord(&e, mark, 0)
	nc.Write(e.Buf)
}

// carryOut returns false if there is to be no reply.
func (c *fakeClient) carryOut(t *testing.T, call *sunrpc.Call, d *xdr.Decoder, e *xdr.Encoder) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch call.Prog {
	case 100000:
		port, ok := c.ports[d.Uint32()]
		vers := d.Uint32()
		switch {
		case call.Proc == 1: // SET: it is there already
			e.Bool(false)
		case c.absent:
			e.Uint32(0)
		case ok && vers != 3:
			e.Uint32(uint32(port))
		default:
			e.Uint32(uint32(c.port()))
		}
	case nlm4.StatusProgram:
		if call.Proc == nlm4.StatusProcMon || call.Proc == nlm4.StatusProcUnmon {
			b := slices.Concat(d.Rest(), make([]byte, nlm4.PrivSize)) // SM_UNMON has none
			var a nlm4.MonArgs
			more := xdr.NewDecoder(b)
			if err := a.Decode(&more); err != nil {
				t.Error(err)
			}
			c.tracked <- trackCall{call.Proc, a.Prog, a.Vers, a.Proc, string(a.Name), a.Priv}
			if call.Proc == nlm4.StatusProcMon {
				(&nlm4.StatResult{Failed: c.deny != 0, State: 5}).Encode(e)
			} else {
				e.Uint32(5)
			}
			return true
		}
		var a nlm4.NotifyArgs
		if err := a.Decode(d); err != nil || call.Proc != nlm4.StatusProcNotify {
			t.Error(call.Proc, err)
		}
		if c.silent > 0 {
			c.silent--
			return false
		}
		c.notified <- a
	case nlm4.Program:
		if call.Proc != nlm4.ProcGranted {
			var a nlm4.Result
			if err := a.Decode(d); err != nil {
				t.Error(err)
			}
			c.answers <- a
			return true
		}
		var a nlm4.TestArgs
		if err := a.Decode(d); err != nil {
			t.Error(call.Proc, err)
		}
		c.called <- a
		if c.silent > 0 {
			c.silent--
			return false
		}
		res := nlm4.Result{Cookie: a.Cookie, Status: c.deny}
		res.Encode(e)
	}
	return true
}

func (c *fakeClient) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// manager starts a lock manager that is quick to call again.
func manager(t *testing.T, c *fakeClient, dir string, change func(*Config)) *Manager {
	t.Helper()
	cfg := Config{
		Dir: dir, PortmapPort: c.port(), Grace: time.Hour, RetryFirst: 10 * time.Millisecond, RetryMost: 50 * time.Millisecond,
		Tries: 5, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func lockOf(svid uint32, start, n uint64) nlm4.Lock {
	return nlm4.Lock{Caller: []byte("c"), Handle: []byte("file"), Owner: []byte("o"), SVID: svid, Range: nlm4.Range{Start: start, Len: n}}
}

func (c *fakeClient) lock(m *Manager, svid uint32, block bool) nlm4.Status {
	return m.Lock(c.peer, &nlm4.LockArgs{Block: block, Exclusive: true, Lock: lockOf(svid, 0, 10)})
}

func (c *fakeClient) unlock(m *Manager, svid uint32) nlm4.Status {
	return m.Unlock(c.peer, &nlm4.UnlockArgs{Lock: lockOf(svid, 0, 10)})
}

func want(t *testing.T, what string, got, want nlm4.Status) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func receive[T any](t *testing.T, ch chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(soon):
		t.Fatal("the client was not called")
	}
	return v
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to this:", what)
		}
	}
}

func (m *Manager) telling() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.waiting
}

func TestGrantedIsCalled(t *testing.T) {
	c := startClient(t, 1, 0)
	m := manager(t, c, "", nil)
	want(t, "first", c.lock(m, 1, true), nlm4.Granted)
	want(t, "second", c.lock(m, 2, true), nlm4.Blocked)
	want(t, "second, once more", c.lock(m, 2, true), nlm4.Blocked)
	want(t, "third", c.lock(m, 3, false), nlm4.Denied)
	var res nlm4.TestResult
	m.Test(c.peer, &nlm4.TestArgs{Exclusive: true, Lock: lockOf(2, 5, 0)}, &res)
	if res.Status != nlm4.Denied || res.Holder.SVID != 1 || !res.Holder.Exclusive || res.Holder.Range != (nlm4.Range{Len: 10}) {
		t.Errorf("TEST: %+v", res)
	}
	want(t, "unlock", c.unlock(m, 1), nlm4.Granted)
	got := receive(t, c.called)
	if l := lockOf(2, 0, 10); got.Lock.SVID != 2 || string(got.Lock.Handle) != "file" || string(got.Lock.Owner) != "o" || got.Lock.Range != l.Range || !got.Exclusive {
		t.Errorf("GRANTED: %+v", got)
	}
	eventually(t, "the client has been told", func() bool { return m.telling() == 0 })
	want(t, "third, then", c.lock(m, 3, false), nlm4.Denied)
	if len(c.called) > 0 {
		t.Error("GRANTED was called twice")
	}
}

// A call whose reply is lost is made again; even if the client denies that, since it
// waits no more, it has the lock.
func TestLostGranted(t *testing.T) {
	c := startClient(t, 1, 0)
	m := manager(t, c, "", nil)
	c.lock(m, 1, true)
	c.lock(m, 2, true)
	c.set(func() { c.silent, c.deny = 1, nlm4.Denied })
	c.unlock(m, 1)
	receive(t, c.called)
	receive(t, c.called)
	eventually(t, "the client has been told", func() bool { return m.telling() == 0 })
	want(t, "somebody else", c.lock(m, 3, false), nlm4.Denied)
	want(t, "the client asks again", c.lock(m, 2, true), nlm4.Granted)
}

// A client that does not want the lock any more does not keep it from the next.
func TestDeniedGranted(t *testing.T) {
	c, d := startClient(t, 1, 0), (*fakeClient)(nil)
	d = startClient(t, 2, c.port())
	m := manager(t, c, "", nil)
	c.lock(m, 1, true)
	c.set(func() { c.deny = nlm4.Denied })
	want(t, "second", c.lock(m, 2, true), nlm4.Blocked)
	want(t, "third", d.lock(m, 1, true), nlm4.Blocked)
	c.unlock(m, 1)
	receive(t, c.called)
	receive(t, d.called)
	eventually(t, "all have been told", func() bool { return m.telling() == 0 })
	want(t, "the holder", d.lock(m, 1, false), nlm4.Granted)
}

// One that cannot be reached loses the grant, and others are called meanwhile.
func TestUnreachable(t *testing.T) {
	c := startClient(t, 1, 0)
	d := startClient(t, 2, c.port())
	c.set(func() { c.absent = true })
	m := manager(t, c, "", func(cfg *Config) { cfg.Workers = 1 })
	d.lock(m, 1, true)
	want(t, "waiter that is gone", c.lock(m, 1, true), nlm4.Blocked)
	want(t, "waiter behind it", d.lock(m, 2, true), nlm4.Blocked)
	d.unlock(m, 1)
	if got := receive(t, d.called); got.Lock.SVID != 2 {
		t.Errorf("%+v", got)
	}
	if len(c.called) > 0 {
		t.Error("it was reached")
	}
}

func TestCancel(t *testing.T) {
	c := startClient(t, 1, 0)
	c.set(func() { c.absent = true })
	m := manager(t, c, "", func(cfg *Config) { cfg.RetryFirst, cfg.RetryMost = time.Hour, time.Hour })
	cancel := func(svid uint32) nlm4.Status {
		return m.Cancel(c.peer, &nlm4.CancelArgs{Block: true, Exclusive: true, Lock: lockOf(svid, 0, 10)})
	}
	c.lock(m, 1, true)
	c.lock(m, 2, true)
	c.lock(m, 3, true)
	want(t, "waiter", cancel(2), nlm4.Granted)
	want(t, "nobody", cancel(2), nlm4.Denied)
	want(t, "holder", cancel(1), nlm4.Denied)
	c.unlock(m, 1)
	want(t, "granted, not told", cancel(3), nlm4.Granted)
	want(t, "free", c.lock(m, 4, false), nlm4.Granted)
}

func TestAnswerToMsg(t *testing.T) {
	c := startClient(t, 1, 0)
	m := manager(t, c, "", nil)
	var e xdr.Encoder
	(&nlm4.Result{Cookie: []byte("abcd"), Status: nlm4.Deadlock}).Encode(&e)
	m.Answer(c.peer, nlm4.ProcLockRes, e.Buf)
	if got := receive(t, c.answers); string(got.Cookie) != "abcd" || got.Status != nlm4.Deadlock {
		t.Errorf("%+v", got)
	}
}

// What was locked can be had by its owner alone, first by saying so.
func TestGraceAndReclaim(t *testing.T) {
	dir := t.TempDir()
	c := startClient(t, 1, 0)
	one := manager(t, c, dir, nil)
	if one.State()%2 != 1 {
		t.Errorf("state %d", one.State())
	}
	want(t, "reclaim, with nothing to reclaim", one.Lock(c.peer, &nlm4.LockArgs{Reclaim: true, Lock: lockOf(1, 0, 10)}), nlm4.DeniedGracePeriod)
	want(t, "lock", c.lock(one, 1, false), nlm4.Granted)
	// one is not closed: the server was killed.
	c.set(func() { c.silent = 2 })
	two := manager(t, c, dir, nil)
	two.Notify()
	if got := receive(t, c.notified); got.State != two.State() || got.State != one.State()+2 || string(got.Name) != two.name {
		t.Errorf("SM_NOTIFY %+v, the states are %d and %d", got, one.State(), two.State())
	}
	want(t, "somebody else", c.lock(two, 2, true), nlm4.DeniedGracePeriod)
	want(t, "reclaim", two.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, Reclaim: true, Lock: lockOf(1, 0, 10)}), nlm4.Granted)
	want(t, "reclaim of what is not free", two.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, Reclaim: true, Lock: lockOf(2, 0, 10)}), nlm4.Denied)
	two.mu.Lock()
	two.graceEnd = time.Now()
	two.mu.Unlock()
	want(t, "after the grace period", c.lock(two, 2, false), nlm4.Denied)
	for _, tt := range []struct {
		svid      uint32
		exclusive bool
		n         uint64
		want      nlm4.Status
	}{{1, true, 10, nlm4.Granted}, {1, true, 11, nlm4.DeniedGracePeriod}, {1, false, 10, nlm4.DeniedGracePeriod}, {2, true, 10, nlm4.DeniedGracePeriod}} {
		want(t, fmt.Sprintf("a late reclaim, %+v", tt), two.Lock(c.peer, &nlm4.LockArgs{Exclusive: tt.exclusive, Reclaim: true, Lock: lockOf(tt.svid, 0, tt.n)}), tt.want)
	}
	want(t, "unlock", c.unlock(two, 1), nlm4.Granted)
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	three := manager(t, c, dir, nil)
	want(t, "nobody had locks", c.lock(three, 2, false), nlm4.Granted)
}

// A client that did not come back in the grace period is not on the list afterwards.
func TestGraceEnds(t *testing.T) {
	dir := t.TempDir()
	c := startClient(t, 1, 0)
	c.lock(manager(t, c, dir, nil), 1, false)
	two := manager(t, c, dir, func(cfg *Config) { cfg.Grace = 50 * time.Millisecond })
	eventually(t, "the list is empty", func() bool { return len(two.list.all()) == 0 })
	want(t, "somebody else", c.lock(two, 2, false), nlm4.Granted)
	if names := files(t, dir); len(names) != 2 {
		t.Errorf("%q", names)
	}
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		names = append(names, f.Name())
	}
	return names
}

// Whatever a crash, or somebody else, left in the directory, what is whole is used.
func TestDamagedList(t *testing.T) {
	dir := t.TempDir()
	c := startClient(t, 1, 0)
	one := manager(t, c, dir, nil)
	c.lock(one, 1, false)
	for name, text := range map[string]string{
		hostPrefix + "x": "", hostPrefix + "y": "a\nb\nc\n", hostPrefix + "z.tmp": "127.0.0.1\n", "other": "x",
		hostPrefix + "w":   "127.0.0.9\n127.0.0.1\n\"c\"\n", // another client's name
		hostPrefix + "v":   strings.Repeat("y", 3*maxEntry),
		stateFile + ".tmp": "7",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	two := manager(t, c, dir, nil)
	if all := two.list.all(); len(all) != 1 || all[0].Client != (Client{c.peer.Addr, "c"}) || all[0].here != c.peer.Here {
		t.Errorf("%+v", all)
	}
	for _, name := range files(t, dir) {
		if strings.HasSuffix(name, tmpSuffix) {
			t.Errorf("%s stays", name)
		}
	}
	if two.State() != one.State()+2 {
		t.Errorf("states %d and %d", one.State(), two.State())
	}
}

// No lock before its client is on the list.
func TestListCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	c := startClient(t, 1, 0)
	m := manager(t, c, dir, nil)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	want(t, "lock", c.lock(m, 1, false), nlm4.DeniedNoLocks)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	want(t, "lock", c.lock(m, 1, false), nlm4.Granted)
	if n := len(files(t, dir)); n != 1 {
		t.Errorf("%d files", n)
	}
}

// A client that says it has started again loses what it had, but not what it locked since.
func TestRebooted(t *testing.T) {
	c := startClient(t, 1, 0)
	d := startClient(t, 2, c.port())
	m := manager(t, c, "", nil)
	old := nlm4.LockArgs{Exclusive: true, State: 3, Lock: lockOf(1, 0, 10)}
	want(t, "lock", m.Lock(c.peer, &old), nlm4.Granted)
	m.Rebooted(c.peer.Addr, []byte("c"), 3)
	want(t, "it had started before", d.lock(m, 1, true), nlm4.Blocked)
	m.Rebooted(d.peer.Addr, []byte("c"), 5)
	want(t, "another host", c.lock(m, 2, false), nlm4.Denied)
	want(t, "the waiter was freed", m.Cancel(d.peer, &nlm4.CancelArgs{Block: true, Exclusive: true, Lock: lockOf(1, 0, 10)}), nlm4.Denied)
	want(t, "waits again", d.lock(m, 1, true), nlm4.Blocked)
	m.Rebooted(c.peer.Addr, []byte("c.example.org"), 5)
	receive(t, d.called)
	d.unlock(m, 1)
	old.State = 5
	want(t, "lock", m.Lock(c.peer, &old), nlm4.Granted)
	m.Rebooted(c.peer.Addr, []byte("c"), 5) // sent again, for the first was not answered in time
	want(t, "what was locked since", d.lock(m, 1, false), nlm4.Denied)
	m.FreeAll(c.peer, []byte("other"))
	want(t, "another name", d.lock(m, 1, false), nlm4.Denied)
	m.FreeAll(c.peer, []byte("c"))
	want(t, "freed", d.lock(m, 1, false), nlm4.Granted)
}

// Over UDP, with whatever else arrives there.
func TestServeStatus(t *testing.T) {
	c := startClient(t, 1, 0)
	m := manager(t, c, "", nil)
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { m.ServeStatus(conn); close(served) }()
	defer func() { conn.Close(); <-served }()
	u, err := net.Dial("udp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	c.lock(m, 1, false)
	call := func(prog, vers, proc uint32, args []byte) error {
		var e xdr.Encoder
		sunrpc.EncodeCall(&e, &sunrpc.Call{XID: 7, Prog: prog, Vers: vers, Proc: proc})
		u.Write(append(e.Buf, args...))
		u.SetReadDeadline(time.Now().Add(soon))
		b := make([]byte, 1000)
		n, err := u.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		d := xdr.NewDecoder(b[:n])
		_, err = sunrpc.DecodeReply(&d)
		return err
	}
	var e xdr.Encoder
	(&nlm4.NotifyArgs{Name: []byte("c"), State: 9}).Encode(&e)
	u.Write(nil)
	u.Write([]byte("nonsense"))
	for i, tt := range []struct {
		prog, vers, proc uint32
		args             []byte
		want             error
	}{
		{nlm4.StatusProgram, 1, 0, nil, sunrpc.ProcUnavail}, // mount.nfs, which is to start rpc.statd
		{nlm4.StatusProgram, 1, nlm4.StatusProcStat, []byte("\x00\x00\x00\x01c\x00\x00\x00"), nil},
		{nlm4.StatusProgram, 1, nlm4.StatusProcNotify, []byte("\xff\xff\xff\xff"), sunrpc.GarbageArgs},
		{nlm4.StatusProgram, 1, 2, nil, sunrpc.ProcUnavail},
		{nlm4.StatusProgram, 2, 0, nil, sunrpc.ProgMismatch},
		{nlm4.Program, 4, 0, nil, nil},
		{nlm4.Program, 3, 0, nil, sunrpc.ProgMismatch},
		{nlm4.Program, 4, nlm4.ProcLock, nil, sunrpc.ProcUnavail},
		{100003, 3, 0, nil, sunrpc.ProgUnavail},
		{nlm4.StatusProgram, 1, nlm4.StatusProcNotify, e.Buf, nil},
	} {
		if err := call(tt.prog, tt.vers, tt.proc, tt.args); fmt.Sprint(err) != fmt.Sprint(tt.want) {
			t.Errorf("%d: %v, want %v", i, err, tt.want)
		}
	}
	want(t, "after SM_NOTIFY", c.lock(m, 2, false), nlm4.Granted)
}

// Many clients at once, with everything there is; in the end nothing is left.
func TestStress(t *testing.T) {
	c := startClient(t, 1, 0)
	clients := []*fakeClient{c, startClient(t, 2, c.port()), startClient(t, 3, c.port())}
	m := manager(t, c, t.TempDir(), nil)
	stop := make(chan struct{})
	var drain, wg sync.WaitGroup
	for _, c := range clients {
		drain.Go(func() {
			for {
				select {
				case <-c.called:
				case <-stop:
					return
				}
			}
		})
		for svid := range uint32(4) {
			wg.Go(func() {
				for i := range uint64(50) {
					l := lockOf(svid, i%7, 3)
					m.Lock(c.peer, &nlm4.LockArgs{Block: i%2 == 0, Exclusive: i%3 > 0, Lock: l})
					if i%5 == 0 {
						m.Cancel(c.peer, &nlm4.CancelArgs{Block: true, Exclusive: i%3 > 0, Lock: l})
					}
					m.Unlock(c.peer, &nlm4.UnlockArgs{Lock: lockOf(svid, i%4, 0)})
				}
				m.Unlock(c.peer, &nlm4.UnlockArgs{Lock: lockOf(svid, 0, 0)})
			})
		}
	}
	wg.Wait()
	eventually(t, "nobody waits and all are told", func() bool { return m.telling() == 0 })
	close(stop)
	drain.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.table.records != 0 || len(m.table.files) != 0 {
		t.Errorf("%d records, %d files", m.table.records, len(m.table.files))
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte("10.0.0.1\nfe80::1\n\"a\\nb\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := parseEntry(b)
		if !ok {
			return
		}
		if again, ok := parseEntry(e.format()); !ok || again != e {
			t.Fatalf("%+v comes back as %+v", e, again)
		}
	})
}

// The first LOCK of a client that has started again may arrive before its SM_NOTIFY.
func TestLockBeforeNotify(t *testing.T) {
	c := startClient(t, 1, 0)
	d := startClient(t, 2, c.port())
	m := manager(t, c, "", nil)
	want(t, "lock", m.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, State: 3, Lock: lockOf(1, 0, 10)}), nlm4.Granted)
	// The client starts again, with state 5; its first lock is of something else.
	want(t, "lock after the start", m.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, State: 5, Lock: lockOf(7, 100, 10)}), nlm4.Granted)
	m.Rebooted(c.peer.Addr, []byte("c"), 5)
	want(t, "what nobody has any more", d.lock(m, 1, false), nlm4.Granted)
}

// A disk that cannot be written does not keep a server from starting.
func TestStartOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	c := startClient(t, 1, 0)
	want(t, "lock", c.lock(manager(t, c, dir, nil), 1, false), nlm4.Granted)
	for i := 0; ; i++ {
		if os.WriteFile(filepath.Join(dir, fmt.Sprint("x", i)), make([]byte, 4096), 0o600) != nil {
			break
		}
	}
	m, err := New(Config{Dir: dir, PortmapPort: c.port()})
	if err != nil {
		t.Fatalf("no start on a full disk: %v", err)
	}
	defer m.Close()
	again, err := New(Config{Dir: dir, PortmapPort: c.port()})
	if err != nil || m.State() == again.State() {
		t.Errorf("the next start has the number of this one, %d: %v", m.State(), err)
	}
	again.Close()
}

// However much one client waits for, others can wait, too.
func TestNobodyTakesAllWaiting(t *testing.T) {
	c := startClient(t, 1, 0)
	d := startClient(t, 2, c.port())
	m := manager(t, c, "", nil)
	for f := range 4 {
		for svid := range uint32(300) {
			l := lockOf(svid, 0, 10)
			l.Handle = fmt.Append(nil, "file", f)
			m.Lock(c.peer, &nlm4.LockArgs{Block: true, Exclusive: true, Lock: l})
		}
	}
	want(t, "lock of another client", d.lock(m, 1, true), nlm4.Granted)
	want(t, "another client waits for itself", d.lock(m, 2, true), nlm4.Blocked)
}

// A client that has mounted by two addresses of the server heeds a call about a lock from the
// one where it has asked for it.
func TestGrantedFromWhereItWasAsked(t *testing.T) {
	c := startClient(t, 1, 0)
	m := manager(t, c, "", nil)
	c.lock(m, 1, true)
	want(t, "waits", c.lock(m, 2, true), nlm4.Blocked)
	other := Peer{c.peer.Addr, netip.MustParseAddr("127.0.0.99")}
	var res nlm4.TestResult
	m.Test(other, &nlm4.TestArgs{Lock: lockOf(9, 1000, 1)}, &res)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.table.files {
		if got := f.waiting[0].here; got != c.peer.Here {
			t.Errorf("GRANTED will come from %v, want %v", got, c.peer.Here)
		}
	}
}

// A grant on top of which the same process was granted something cannot be taken back: who
// cancels it is not told that it was.
func TestCancelOfFinal(t *testing.T) {
	c := startClient(t, 1, 0)
	c.set(func() { c.absent = true })
	m := manager(t, c, "", func(cfg *Config) { cfg.RetryFirst, cfg.RetryMost = time.Hour, time.Hour })
	lock := func(svid uint32, start uint64, block bool) nlm4.Status {
		return m.Lock(c.peer, &nlm4.LockArgs{Block: block, Exclusive: true, Lock: lockOf(svid, start, 10)})
	}
	m.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, Lock: lockOf(1, 0, 0)})
	want(t, "one thread", lock(2, 0, true), nlm4.Blocked)
	want(t, "another", lock(2, 5, true), nlm4.Blocked)
	m.Unlock(c.peer, &nlm4.UnlockArgs{Lock: lockOf(1, 0, 0)})
	want(t, "CANCEL", m.Cancel(c.peer, &nlm4.CancelArgs{Block: true, Exclusive: true, Lock: lockOf(2, 0, 10)}), nlm4.Denied)
	want(t, "the other thread unlocks", m.Unlock(c.peer, &nlm4.UnlockArgs{Lock: lockOf(2, 5, 10)}), nlm4.Granted)
	want(t, "what was not taken back", lock(3, 0, false), nlm4.Denied)
}

// A LOCK from before the client's start that was under way for long (UDP, or sent again) does
// not make its next LOCK free what it has locked since.
func TestLateLock(t *testing.T) {
	c := startClient(t, 1, 0)
	d := startClient(t, 2, c.port())
	m := manager(t, c, "", nil)
	want(t, "lock", m.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, State: 3, Lock: lockOf(1, 200, 10)}), nlm4.Granted)
	want(t, "lock after the start", m.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, State: 5, Lock: lockOf(7, 0, 10)}), nlm4.Granted)
	m.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, State: 3, Lock: lockOf(1, 200, 10)}) // late
	want(t, "another lock", m.Lock(c.peer, &nlm4.LockArgs{Exclusive: true, State: 5, Lock: lockOf(8, 100, 10)}), nlm4.Granted)
	want(t, "what a live process has", d.lock(m, 1, false), nlm4.Denied)
}
