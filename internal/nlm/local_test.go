package nlm

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"loopnfs/internal/nlm4"
	"loopnfs/internal/portmap"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// lookAfter has m look after a registration with the portmapper of c, at a port where
// nobody listens.
func lookAfter(t *testing.T, m *Manager, c *fakeClient) (own uint16) {
	t.Helper()
	own = 1
	c.set(func() {
		if c.ports == nil {
			c.ports = map[uint32]uint16{nlm4.StatusProgram: own}
		}
		c.ports[nlm4.Program] = own
	})
	r, err := portmap.Register(c.l.Addr().String(), int(own), Programs())
	if err != nil {
		t.Fatal(err)
	}
	m.LookAfter(r)
	return own
}

// remoteLock is a lock of a client on another host.
func remoteLock(m *Manager, svid uint32, f func(Peer, *nlm4.LockArgs) nlm4.Status) nlm4.Status {
	peer := Peer{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.1")}
	return f(peer, &nlm4.LockArgs{Exclusive: true, State: 3, Lock: lockOf(svid, 0, 10)})
}

// smNotify makes the call of a status monitor at from, about the host that priv is for.
func smNotify(m *Manager, from string, state uint32, priv [nlm4.PrivSize]byte) error {
	var b, e xdr.Encoder
	sunrpc.EncodeCall(&b, &sunrpc.Call{XID: 7, Prog: nlm4.Program, Vers: nlm4.Version, Proc: nlm4.ProcSMNotify})
	(&nlm4.ChangeArgs{NotifyArgs: nlm4.NotifyArgs{Name: []byte("192.0.2.7"), State: state}, Priv: priv}).Encode(&b)
	m.answerStatus(&e, b.Buf, netip.MustParseAddrPort(from))
	d := xdr.NewDecoder(e.Buf)
	_, err := sunrpc.DecodeReply(&d)
	return err
}

// The status monitor of this host is told of clients on others, and tells when they have
// started again.
func TestTracked(t *testing.T) {
	c := startClient(t, 1, 0)
	m := manager(t, c, t.TempDir(), nil)
	want(t, "before there is a registration", remoteLock(m, 1, m.Lock), nlm4.Granted)
	want(t, "of this host", c.lock(m, 9, false), nlm4.Denied)
	c.set(func() { c.ports = map[uint32]uint16{nlm4.StatusProgram: c.port()} })
	lookAfter(t, m, c)
	mon := receive(t, c.tracked)
	priv := netip.MustParseAddr("192.0.2.7").As16()
	if mon != (trackCall{nlm4.StatusProcMon, nlm4.Program, nlm4.Version, nlm4.ProcSMNotify, "192.0.2.7", priv}) {
		t.Errorf("SM_MON: %+v", mon)
	}
	for _, from := range []string{"127.0.0.1:2000", "192.0.2.9:700"} {
		if err := smNotify(m, from, 5, priv); !errors.Is(err, sunrpc.ProcUnavail) {
			t.Errorf("SM_NOTIFY from %s: %v", from, err)
		}
	}
	want(t, "nobody has started again", remoteLock(m, 2, m.Lock), nlm4.Denied)
	if err := smNotify(m, "127.0.0.1:700", 3, priv); err != nil {
		t.Error(err)
	}
	want(t, "with the same state", remoteLock(m, 2, m.Lock), nlm4.Denied)
	if err := smNotify(m, "[::ffff:127.0.0.1]:700", 5, priv); err != nil {
		t.Error(err)
	}
	want(t, "after SM_NOTIFY", remoteLock(m, 2, m.Lock), nlm4.Granted)

	remoteUnlock := func(p Peer, a *nlm4.LockArgs) nlm4.Status {
		return m.Unlock(p, &nlm4.UnlockArgs{Lock: a.Lock})
	}
	want(t, "unlock", remoteLock(m, 2, remoteUnlock), nlm4.Granted)
	m.prune()
	if mon = receive(t, c.tracked); mon.proc != nlm4.StatusProcUnmon || mon.name != "192.0.2.7" || mon.called != nlm4.ProcSMNotify {
		t.Errorf("SM_UNMON: %+v", mon)
	}
	want(t, "lock again", remoteLock(m, 3, m.Lock), nlm4.Granted)
	if mon = receive(t, c.tracked); mon.proc != nlm4.StatusProcMon {
		t.Errorf("SM_MON again: %+v", mon)
	}
}

// A status monitor that fails is asked again, a few times.
func TestTrackedAgain(t *testing.T) {
	c := startClient(t, 1, 0)
	m := manager(t, c, "", func(cfg *Config) { cfg.Tries = 3 })
	c.set(func() { c.deny, c.ports = nlm4.Denied, map[uint32]uint16{nlm4.StatusProgram: c.port()} })
	want(t, "lock", remoteLock(m, 1, m.Lock), nlm4.Granted)
	lookAfter(t, m, c)
	for range 3 {
		receive(t, c.tracked)
	}
	eventually(t, "it is given up", func() bool {
		m.statd.mu.Lock()
		defer m.statd.mu.Unlock()
		return len(m.statd.queued) == 0
	})
	if len(c.tracked) > 0 {
		t.Errorf("%d calls more", len(c.tracked))
	}
}

// The lock manager of this host's kernel is found by its version 3, and this server is no
// client of itself.
func TestKernelOfThisHost(t *testing.T) {
	c := startClient(t, 1, 0)
	m := manager(t, c, "", nil)
	m.Mounting() // nothing is registered
	own := lookAfter(t, m, c)
	m.Mounting()
	want(t, "first", c.lock(m, 1, true), nlm4.Granted)
	want(t, "second", c.lock(m, 2, true), nlm4.Blocked)
	want(t, "unlock", c.unlock(m, 1), nlm4.Granted)
	if a := receive(t, c.called); a.Lock.SVID != 2 {
		t.Errorf("GRANTED: %+v", a)
	}
	w := &worker{callbacks: &m.calls, buf: make([]byte, callBuf)}
	local := &job{entry: entry{Client{Addr: c.peer.Addr}, c.peer.Here}, kind: notify}
	if port, err := w.port(t.Context(), &net.Dialer{}, local, local.program()); !errors.Is(err, errSelf) {
		t.Errorf("the status monitor is at %d (this server is at %d), %v", port, own, err)
	}
	if len(c.tracked) > 0 {
		t.Error("the status monitor is told of this host, or is this server")
	}
}

// A status monitor that hangs does not keep clients that mount by the same address from
// being called.
func TestTrackedHangs(t *testing.T) {
	c := startClient(t, 1, 0)
	release := make(chan struct{})
	c.set(func() { c.hang, c.ports = release, map[uint32]uint16{nlm4.StatusProgram: c.port()} })
	m := manager(t, c, "", func(cfg *Config) { cfg.CallTime = soon })
	lookAfter(t, m, c)
	want(t, "first", c.lock(m, 1, true), nlm4.Granted)
	want(t, "second", c.lock(m, 2, true), nlm4.Blocked)
	want(t, "elsewhere", remoteLock(m, 9, func(p Peer, a *nlm4.LockArgs) nlm4.Status {
		a.Lock.Handle = []byte("other")
		return m.Lock(p, a)
	}), nlm4.Granted)
	eventually(t, "the status monitor is called", func() bool { return c.hanging.Load() > 0 })
	want(t, "unlock", c.unlock(m, 1), nlm4.Granted)
	start := time.Now()
	receive(t, c.called)
	if d := time.Since(start); d > soon/2 {
		t.Errorf("GRANTED was called after %v", d)
	}
	close(release)
}

// Clients that come and go faster than the status monitor is told do not keep it from
// hearing of others.
func TestTrackedFlood(t *testing.T) {
	c := startClient(t, 1, 0)
	release := make(chan struct{})
	c.set(func() { c.hang, c.ports = release, map[uint32]uint16{nlm4.StatusProgram: c.port()} })
	m := manager(t, c, "", func(cfg *Config) { cfg.CallTime, cfg.Limits.Clients = soon, 4 })
	lookAfter(t, m, c)
	at := func(n byte, f func(Peer, *nlm4.LockArgs) nlm4.Status) nlm4.Status {
		peer := Peer{netip.AddrFrom4([4]byte{192, 0, 2, n}), netip.MustParseAddr("192.0.2.1")}
		return f(peer, &nlm4.LockArgs{State: 3, Lock: lockOf(1, 0, 10)})
	}
	unlock := func(p Peer, a *nlm4.LockArgs) nlm4.Status { return m.Unlock(p, &nlm4.UnlockArgs{Lock: a.Lock}) }
	eventually(t, "the status monitor is there", func() bool {
		m.statd.mu.Lock()
		defer m.statd.mu.Unlock()
		return m.statd.there
	})
	const last = 20
	for n := byte(10); n <= last; n++ {
		want(t, "lock", at(n, m.Lock), nlm4.Granted)
		if n < last {
			want(t, "unlock", at(n, unlock), nlm4.Granted)
		}
	}
	m.statd.mu.Lock()
	if n := len(m.statd.queued); n > 2*4 {
		t.Errorf("%d calls wait", n)
	}
	m.statd.mu.Unlock()
	close(release)
	for mon := receive(t, c.tracked); mon.proc != nlm4.StatusProcMon || mon.name != "192.0.2.20"; mon = receive(t, c.tracked) {
	}
}

// A status monitor that is slow, as rpc.statd is without a name server, is called once.
func TestTrackedSlow(t *testing.T) {
	c := startClient(t, 1, 0)
	release := make(chan struct{})
	c.set(func() { c.hang, c.ports = release, map[uint32]uint16{nlm4.StatusProgram: c.port()} })
	m := manager(t, c, "", func(cfg *Config) { cfg.CallTime = 2 * time.Second })
	lookAfter(t, m, c)
	want(t, "lock", remoteLock(m, 1, m.Lock), nlm4.Granted)
	eventually(t, "the status monitor is called", func() bool { return c.hanging.Load() > 0 })
	time.Sleep(m.cfg.CallTime + m.cfg.CallTime/2)
	close(release)
	receive(t, c.tracked)
	if n := c.hanging.Load(); n != 1 {
		t.Errorf("it was called %d times", n)
	}
}

// Whatever is reclaimed, and when, no two owners have what excludes each other.
func TestReclaimsExclude(t *testing.T) {
	c := startClient(t, 1, 0)
	c.set(func() { c.absent = true })
	m := manager(t, c, "", nil)
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			p := Peer{netip.AddrFrom4([4]byte{192, 0, 2, byte(n / 2)}), netip.MustParseAddr("192.0.2.100")}
			for range 3000 {
				l := lockOf(uint32(n), uint64(rand.N(20)), uint64(1+rand.N(10)))
				switch rand.N(6) {
				case 0, 1:
					m.Lock(p, &nlm4.LockArgs{Exclusive: rand.N(2) == 0, Block: rand.N(2) == 0, State: uint32(rand.N(3)), Lock: l})
				case 2, 3:
					m.Lock(p, &nlm4.LockArgs{Exclusive: rand.N(2) == 0, Reclaim: true, Lock: l})
				case 4:
					m.Unlock(p, &nlm4.UnlockArgs{Lock: l})
				case 5:
					m.Rebooted(p.Addr, []byte("c"), uint32(rand.N(3)))
				}
				m.mu.Lock()
				for _, f := range m.table.files {
					for _, h := range f.held {
						if x := f.conflict(h.owner, h.exclusive, h.start, h.last); x != nil {
							t.Errorf("%+v and %+v", h, *x)
						}
					}
				}
				m.mu.Unlock()
			}
		})
	}
	wg.Wait()
}
