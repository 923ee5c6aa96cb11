package nfsserver

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/nlm"
	"loopnfs/internal/nlm4"
	rpcbind "loopnfs/internal/portmap"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// serveLocks is serve with a lock manager.
func serveLocks(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	return serve(t, func(cfg *Config) {
		cfg.Locks = newLocks(t)
		if change != nil {
			change(cfg)
		}
	})
}

// newLocks starts a lock manager whose clients have no portmapper.
func newLocks(t testing.TB) *nlm.Manager {
	t.Helper()
	m := startLocks(t, t.TempDir())
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func startLocks(t testing.TB, dir string) *nlm.Manager {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	m, err := nlm.New(nlm.Config{Dir: dir, PortmapPort: uint16(l.Addr().(*net.TCPAddr).Port), RetryFirst: time.Hour, RetryMost: time.Hour})
	check(t, err)
	return m
}

// tryProgram makes a call of any program.
func (c *rpcClient) tryProgram(prog, vers, proc uint32, args encoder, res decoder) error {
	ch := make(chan []byte, 1)
	c.mu.Lock()
	c.xid++
	h := sunrpc.Call{XID: c.xid, Prog: prog, Vers: vers, Proc: proc, Cred: c.cred}
	c.waiting[h.XID] = ch
	c.mu.Unlock()
	c.sendMu.Lock()
	c.nc.Write(callRecord(&h, args, nil))
	c.sendMu.Unlock()
	d, err := c.wait(ch)
	if err == nil && res != nil {
		err = res.Decode(d)
	}
	if err == nil && d.Remaining() != 0 {
		err = errors.New("something is left of the reply")
	}
	return err
}

func (c *rpcClient) nlm(proc uint32, args encoder, res decoder) {
	c.t.Helper()
	if err := c.tryProgram(nlm4.Program, nlm4.Version, proc, args, res); err != nil {
		c.t.Fatalf("%s: %v", nlm4.ProcName(proc), err)
	}
}

func lockFor(h nfs3.FileHandle, svid uint32) nlm4.Lock {
	return nlm4.Lock{Caller: []byte("c"), Handle: h.Bytes(), Owner: []byte("o"), SVID: svid, Range: nlm4.Range{Len: 10}}
}

func (c *rpcClient) lock(h nfs3.FileHandle, svid uint32, exclusive, block bool) nlm4.Status {
	c.t.Helper()
	var res nlm4.Result
	c.nlm(nlm4.ProcLock, &nlm4.LockArgs{Cookie: []byte("abc"), Exclusive: exclusive, Block: block, Lock: lockFor(h, svid)}, &res)
	if string(res.Cookie) != "abc" {
		c.t.Errorf("cookie %q", res.Cookie)
	}
	return res.Status
}

func (c *rpcClient) create(name string, mode uint32) nfs3.FileHandle {
	c.t.Helper()
	var made nfs3.CreateResult
	c.call(nfs3.ProcCreate, &nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: c.root(), Name: []byte(name)},
		Set: vfs.SetAttr{SetMode: true, Mode: mode}}, &made)
	if made.Status != nfs3.StatusOK {
		c.t.Fatal("CREATE:", made.Status)
	}
	return made.Handle.Handle
}

func wantLock(t *testing.T, what string, got, want nlm4.Status) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestLocks(t *testing.T) {
	f := serveLocks(t, nil)
	c := dial(t, f.addr)
	h := c.create("f", 0o644)
	var res nlm4.Result
	c.nlm(nlm4.ProcNull, nil, nil)
	wantLock(t, "LOCK", c.lock(h, 1, true, false), nlm4.Granted)
	wantLock(t, "LOCK by another", c.lock(h, 2, true, false), nlm4.Denied)
	wantLock(t, "LOCK that waits", c.lock(h, 2, true, true), nlm4.Blocked)
	var test nlm4.TestResult
	c.nlm(nlm4.ProcTest, &nlm4.TestArgs{Cookie: []byte("x"), Lock: lockFor(h, 3)}, &test)
	if test.Status != nlm4.Denied || test.Holder.SVID != 1 || string(test.Cookie) != "x" {
		t.Errorf("TEST: %+v", test)
	}
	c.nlm(nlm4.ProcCancel, &nlm4.CancelArgs{Block: true, Exclusive: true, Lock: lockFor(h, 2)}, &res)
	wantLock(t, "CANCEL", res.Status, nlm4.Granted)
	c.nlm(nlm4.ProcUnlock, &nlm4.UnlockArgs{Lock: lockFor(h, 1)}, &res)
	wantLock(t, "UNLOCK", res.Status, nlm4.Granted)
	c.nlm(nlm4.ProcTest, &nlm4.TestArgs{Exclusive: true, Lock: lockFor(h, 3)}, &test)
	wantLock(t, "TEST of what is free", test.Status, nlm4.Granted)
	c.nlm(nlm4.ProcNMLock, &nlm4.LockArgs{Exclusive: true, Lock: lockFor(h, 4)}, &res)
	wantLock(t, "NM_LOCK", res.Status, nlm4.Granted)
	c.nlm(nlm4.ProcFreeAll, &nlm4.NotifyArgs{Name: []byte("c")}, nil)
	wantLock(t, "LOCK after FREE_ALL", c.lock(h, 5, true, false), nlm4.Granted)

	var share nlm4.ShareResult
	args := nlm4.ShareArgs{Caller: []byte("c"), Handle: h.Bytes(), Owner: []byte("a"), Deny: nlm4.ShareWrite, Access: nlm4.ShareRead}
	c.nlm(nlm4.ProcShare, &args, &share)
	wantLock(t, "SHARE", share.Status, nlm4.Granted)
	args.Owner, args.Access = []byte("b"), nlm4.ShareWrite
	c.nlm(nlm4.ProcShare, &args, &share)
	wantLock(t, "SHARE by another", share.Status, nlm4.Denied)
	args.Owner = []byte("a")
	c.nlm(nlm4.ProcUnshare, &args, &share)
	wantLock(t, "UNSHARE", share.Status, nlm4.Granted)

	c.nlm(nlm4.ProcUnlockMsg, &nlm4.UnlockArgs{Lock: lockFor(h, 5)}, nil)
	wantLock(t, "LOCK after UNLOCK_MSG", c.lock(h, 6, true, false), nlm4.Granted)

	big := lockFor(h, 1)
	big.Range = nlm4.Range{Start: 1 << 63, Len: 1<<63 + 1}
	c.nlm(nlm4.ProcLock, &nlm4.LockArgs{Lock: big}, &res)
	wantLock(t, "LOCK past the end of all files", res.Status, nlm4.TooBig)
	if n := f.srv.Stats().LockCalls; n < 10 {
		t.Errorf("%d calls were counted", n)
	}
}

func TestLockHandles(t *testing.T) {
	f := serveLocks(t, nil)
	c := dial(t, f.addr)
	h := c.create("f", 0o644)
	wantLock(t, "LOCK", c.lock(h, 1, true, false), nlm4.Granted)
	var gone nfs3.RemoveResult
	c.call(nfs3.ProcRemove, &nfs3.RemoveArgs{Dir: c.root(), Name: []byte("f")}, &gone)
	wantLock(t, "LOCK of a file that is gone", c.lock(h, 1, true, false), nlm4.StaleHandle)
	var res nlm4.Result
	c.nlm(nlm4.ProcUnlock, &nlm4.UnlockArgs{Lock: lockFor(h, 1)}, &res)
	wantLock(t, "UNLOCK of it", res.Status, nlm4.Granted)
	for _, b := range [][]byte{nil, {1}, make([]byte, 64), make([]byte, 65), make([]byte, nlm4.MaxObject)} {
		l := lockFor(h, 1)
		l.Handle = b
		c.nlm(nlm4.ProcLock, &nlm4.LockArgs{Lock: l}, &res)
		wantLock(t, "LOCK by no handle", res.Status, nlm4.StaleHandle)
		c.nlm(nlm4.ProcUnlock, &nlm4.UnlockArgs{Lock: l}, &res)
		wantLock(t, "UNLOCK by no handle", res.Status, nlm4.StaleHandle)
	}
}

// Reading suffices for a shared lock, and the owner may lock in spite of the mode.
func TestLockRights(t *testing.T) {
	dir, state := diskDirs(t)
	m, err := nlm.New(nlm.Config{})
	check(t, err)
	t.Cleanup(func() { m.Close() })
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0", func(cfg *Config) { cfg.Locks = m })
	c := dial(t, s.addr)
	as := func(uid uint32) {
		c.cred = sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: sunrpc.AuthSysCred{UID: uid, GID: uid}}
	}
	as(1000)
	open, secret, readOnly := c.create("open", 0o644), c.create("secret", 0o600), c.create("readonly", 0o444)
	for _, tt := range []struct {
		name      string
		uid       uint32
		h         nfs3.FileHandle
		exclusive bool
		want      nlm4.Status
	}{
		{"shared, who may read", 1001, open, false, nlm4.Granted},
		{"exclusive, who may only read", 1001, open, true, nlm4.Denied},
		{"shared, who may not read", 1001, secret, false, nlm4.Denied},
		{"exclusive, owner", 1000, secret, true, nlm4.Granted},
		{"exclusive, owner without the mode", 1000, readOnly, true, nlm4.Granted},
	} {
		as(tt.uid)
		wantLock(t, tt.name, c.lock(tt.h, 1, tt.exclusive, false), tt.want)
	}
}

// A client asks once to have its locks back: want of memory does not refuse it.
func TestReclaimWhenMemoryIsShort(t *testing.T) {
	dir := t.TempDir()
	last := startLocks(t, dir)
	before := serve(t, func(cfg *Config) { cfg.Locks = last })
	c := dial(t, before.addr)
	h := c.create("f", 0o644)
	wantLock(t, "LOCK", c.lock(h, 1, true, false), nlm4.Granted)
	check(t, last.Close())

	next := startLocks(t, dir)
	defer next.Close()
	f := serve(t, func(cfg *Config) { cfg.Locks = next })
	f.fs.onGetAttr.set(func(*vfs.Op) error { return vfs.ErrJukebox })
	c = dial(t, f.addr)
	h = c.root() // of a file that is there
	var res nlm4.Result
	c.nlm(nlm4.ProcLock, &nlm4.LockArgs{Exclusive: true, Reclaim: true, Lock: lockFor(h, 1)}, &res)
	wantLock(t, "a reclaim", res.Status, nlm4.Granted)
	c.nlm(nlm4.ProcLock, &nlm4.LockArgs{Exclusive: true, Lock: lockFor(h, 2)}, &res)
	wantLock(t, "another lock", res.Status, nlm4.DeniedGracePeriod)
}

func TestLocksOfReadOnlyExport(t *testing.T) {
	f := serveLocks(t, nil)
	c := dial(t, f.addr)
	h := c.create("f", 0o644)
	check(t, f.srv.SetExports([]Export{{Name: "/data", FS: f.fs, Squash: SquashNone, ReadOnly: true}}))
	wantLock(t, "exclusive", c.lock(h, 1, true, false), nlm4.ReadOnly)
	wantLock(t, "shared", c.lock(h, 1, false, false), nlm4.Granted)
}

// A lock can be given up where none can be had any more: it must not stay.
func TestUnlockWithoutExport(t *testing.T) {
	for name, x := range map[string]Export{
		"export is away": {Name: "/other"}, "client is not allowed": {Name: "/data", Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
	} {
		t.Run(name, func(t *testing.T) {
			f := serveLocks(t, nil)
			c := dial(t, f.addr)
			h := c.create("f", 0o644)
			wantLock(t, "LOCK", c.lock(h, 1, true, false), nlm4.Granted)
			x.FS = f.fs
			check(t, f.srv.SetExports([]Export{x}))
			if st := c.lock(h, 1, true, false); st == nlm4.Granted {
				t.Error("LOCK was granted")
			}
			var res nlm4.Result
			c.nlm(nlm4.ProcUnlock, &nlm4.UnlockArgs{Lock: lockFor(h, 1)}, &res)
			wantLock(t, "UNLOCK", res.Status, nlm4.Granted)
			check(t, f.srv.SetExports([]Export{{Name: "/data", FS: f.fs, Squash: SquashNone}}))
			wantLock(t, "LOCK by another when it is as it was", c.lock(h, 2, true, false), nlm4.Granted)
		})
	}
}

func TestLockPrograms(t *testing.T) {
	with, without := dial(t, serveLocks(t, nil).addr), dial(t, serve(t, nil).addr)
	for _, tt := range []struct {
		name             string
		c                *rpcClient
		prog, vers, proc uint32
		want             error
	}{
		{"no lock manager", without, nlm4.Program, 4, 0, sunrpc.ProgUnavail},
		{"no status monitor", without, nlm4.StatusProgram, 1, 0, sunrpc.ProgUnavail},
		{"NLM 3", with, nlm4.Program, 3, 0, sunrpc.ProgMismatch},
		{"no procedure", with, nlm4.Program, 4, 16, sunrpc.ProcUnavail},
		{"GRANTED, which is for clients", with, nlm4.Program, 4, nlm4.ProcGranted, sunrpc.ProcUnavail},
		{"number too high", with, nlm4.Program, 4, 24, sunrpc.ProcUnavail},
		{"no arguments", with, nlm4.Program, 4, nlm4.ProcLock, sunrpc.GarbageArgs},
		{"no arguments, _MSG", with, nlm4.Program, 4, nlm4.ProcLockMsg, sunrpc.GarbageArgs},
		{"no name", with, nlm4.Program, 4, nlm4.ProcFreeAll, sunrpc.GarbageArgs},
		{"NSM", with, nlm4.StatusProgram, 1, 0, nil},
		{"SM_MON", with, nlm4.StatusProgram, 1, 2, sunrpc.ProcUnavail},
		{"SM_NOTIFY without a name", with, nlm4.StatusProgram, 1, nlm4.StatusProcNotify, sunrpc.GarbageArgs},
	} {
		if err := tt.c.tryProgram(tt.prog, tt.vers, tt.proc, nil, nil); err != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// SM_NOTIFY comes over TCP, too.
func TestNotifyFreesLocks(t *testing.T) {
	f := serveLocks(t, nil)
	c := dial(t, f.addr)
	h := c.create("f", 0o644)
	wantLock(t, "LOCK", c.lock(h, 1, true, false), nlm4.Granted)
	if err := c.tryProgram(nlm4.StatusProgram, 1, nlm4.StatusProcNotify, &nlm4.NotifyArgs{Name: []byte("c"), State: 7}, nil); err != nil {
		t.Fatal(err)
	}
	wantLock(t, "LOCK by another", c.lock(h, 2, true, false), nlm4.Granted)
	var res nlm4.StatResult
	if err := c.tryProgram(nlm4.StatusProgram, 1, nlm4.StatusProcStat, &nlm4.StatArgs{Name: []byte("c")}, &res); err != nil || !res.Failed || res.State%2 != 1 {
		t.Errorf("SM_STAT: %v, %+v", err, res)
	}
}

// More clients wait than there are workers, and others are served.
func TestWaitingTakesNoWorker(t *testing.T) {
	f := serveLocks(t, func(cfg *Config) { cfg.Workers = 2 })
	c := dial(t, f.addr)
	h := c.create("f", 0o644)
	wantLock(t, "LOCK", c.lock(h, 0, true, false), nlm4.Granted)
	for i := range uint32(20) {
		wantLock(t, "waiter", c.lock(h, i+1, true, true), nlm4.Blocked)
	}
	if res := c.getattr(h); res.Status != nfs3.StatusOK {
		t.Error(res.Status)
	}
}

// Whatever arguments a procedure gets, there is a reply, and the next call works.
func FuzzLockArgs(f *testing.F) {
	var e xdr.Encoder
	l := nlm4.LockArgs{Lock: nlm4.Lock{Caller: []byte("c"), Handle: make([]byte, 16)}}
	l.Encode(&e)
	for proc := range uint32(nlm4.NumProcs) {
		f.Add(true, proc, e.Buf)
	}
	m, err := nlm.New(nlm.Config{PortmapPort: 1, RetryFirst: time.Hour, RetryMost: time.Hour})
	check(f, err)
	f.Cleanup(func() { m.Close() })
	arena := newArena(f, 32<<20)
	_, addr := start(f, Config{Exports: []Export{{Name: "/data", FS: newMemFS(arena), Squash: SquashNone}}, Arena: arena, Locks: m})
	f.Fuzz(func(t *testing.T, locks bool, proc uint32, args []byte) {
		c := dial(t, addr)
		prog, vers := uint32(nlm4.StatusProgram), uint32(nlm4.StatusVersion)
		if locks {
			prog, vers = nlm4.Program, nlm4.Version
		}
		_ = c.tryProgram(prog, vers, proc, raw(args), nil)
		c.nlm(nlm4.ProcNull, nil, nil)
	})
}

// raw is arguments as they are.
type raw []byte

func (r raw) Encode(e *xdr.Encoder) { e.Buf = append(e.Buf, r[:min(len(r), maxArgs)]...) }

// FSINFO of a client on this host, the first call of a mount after its kernel has
// registered a lock manager, is answered once the portmapper was looked at.
func TestMountingHere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var asked atomic.Int32
	var serving sync.WaitGroup
	serving.Go(func() {
		for nc, err := l.Accept(); err == nil; nc, err = l.Accept() {
			for b, err := readRecord(nc); err == nil; b, err = readRecord(nc) {
				d := xdr.NewDecoder(b)
				var e xdr.Encoder
				mark := sunrpc.BeginRecord(&e)
				sunrpc.ReplySuccess(&e, d.Uint32())
				e.Uint32(2049)
				sunrpc.EndRecord(&e, mark, 0)
				asked.Add(1)
				nc.Write(e.Buf)
			}
			nc.Close()
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	locks := newLocks(t)
	f := serve(t, func(cfg *Config) { cfg.Locks = locks })
	r, err := rpcbind.Register(l.Addr().String(), 2049, []rpcbind.Program{{Number: nlm4.Program, Version: nlm4.Version, Claim: rpcbind.Seize}})
	check(t, err)
	locks.LookAfter(r)
	c := dial(t, f.addr)
	args, info := nfs3.FSInfoArgs{Handle: c.root()}, nfs3.FSInfoResult{}
	for range 3 {
		before := asked.Load()
		c.call(nfs3.ProcFSInfo, &args, &info)
		if info.Status != nfs3.StatusOK || asked.Load() == before {
			t.Errorf("FSINFO: %v, the portmapper was asked %d times", info.Status, asked.Load()-before)
		}
	}
	args.Handle, _ = nfs3.MakeHandle([]byte("none"))
	locks.Mounting() // nothing is asked meanwhile, other than once a second
	before, start := asked.Load(), time.Now()
	for range 100 {
		c.call(nfs3.ProcFSInfo, &args, &info)
	}
	if n, most := int(asked.Load()-before), 2+int(time.Since(start)/time.Second); info.Status != nfs3.StatusBadHandle || n > most {
		t.Errorf("FSINFO of handles that are none: %v, the portmapper was asked %d times", info.Status, n)
	}
}
