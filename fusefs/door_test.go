package fusefs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim"
	"loopnfs/reclaim/writeback"
)

// faultFS is a file system with faults: each hook that is set is asked first,
// and an error it returns is that of the call. They may wait.
type faultFS struct {
	vfs.FS
	before  func(op *vfs.Op, call string) error
	after   func(op *vfs.Op, call string) error // what was done stays done
	readMax uint32                              // most that one Read returns, if not 0
	wrote   func(how vfs.Stable)
	synced  atomic.Int32

	refs, pins, opens atomic.Int64 // outstanding
}

func (f *faultFS) ask(op *vfs.Op, call string) error {
	switch {
	case f.before == nil:
		return nil
	case op.MustWait():
		return errWouldWait
	}
	return f.before(op, call)
}

// HeedsNoWait implements vfs.NoWaiter.
func (f *faultFS) HeedsNoWait() {}

func (f *faultFS) Lookup(op *vfs.Op, dir vfs.NodeID, name string) (vfs.Entry, error) {
	if err := f.ask(op, "lookup"); err != nil {
		return vfs.Entry{}, err
	}
	return f.got(f.FS.Lookup(op, dir, name))
}

func (f *faultFS) got(e vfs.Entry, err error) (vfs.Entry, error) {
	if err == nil {
		f.refs.Add(1)
	}
	return e, err
}

func (f *faultFS) Forget(node vfs.NodeID, n uint64) {
	f.refs.Add(-int64(n))
	f.FS.Forget(node, n)
}

func (f *faultFS) SetAttr(op *vfs.Op, node vfs.NodeID, set *vfs.SetAttr) (vfs.WCC, error) {
	if set.SetSize {
		if err := f.ask(op, "truncate"); err != nil {
			return vfs.WCC{}, err
		}
	}
	return f.FS.SetAttr(op, node, set)
}

func (f *faultFS) Mkdir(op *vfs.Op, dir vfs.NodeID, name string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	if err := f.ask(op, "mkdir"); err != nil {
		return vfs.Entry{}, vfs.WCC{}, err
	}
	e, wcc, err := f.FS.Mkdir(op, dir, name, set)
	if err == nil && f.after != nil {
		if err = f.after(op, "mkdir"); err != nil {
			f.FS.Forget(e.Node, 1)
		}
	}
	e, err = f.got(e, err)
	return e, wcc, err
}

func (f *faultFS) Create(op *vfs.Op, dir vfs.NodeID, name string, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (vfs.Entry, vfs.WCC, error) {
	e, wcc, err := f.FS.Create(op, dir, name, how, set, verf)
	e, err = f.got(e, err)
	return e, wcc, err
}

func (f *faultFS) Symlink(op *vfs.Op, dir vfs.NodeID, name, target string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	e, wcc, err := f.FS.Symlink(op, dir, name, target, set)
	e, err = f.got(e, err)
	return e, wcc, err
}

func (f *faultFS) Mknod(op *vfs.Op, dir vfs.NodeID, name string, typ vfs.FileType, major, minor uint32, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	e, wcc, err := f.FS.Mknod(op, dir, name, typ, major, minor, set)
	e, err = f.got(e, err)
	return e, wcc, err
}

func (f *faultFS) Read(op *vfs.Op, node vfs.NodeID, off uint64, count uint32, v *vfs.Vec, attr *vfs.Attr) (bool, error) {
	if err := f.ask(op, "read"); err != nil {
		return false, err
	}
	short := f.readMax > 0 && count > f.readMax
	if short {
		count = f.readMax
	}
	eof, err := f.FS.Read(op, node, off, count, v, attr)
	if err == nil && v.Owner != nil {
		f.pins.Add(int64(len(v.Pins)))
		v.Owner = countingPinner{v.Owner, f}
	}
	return eof, err
}

type countingPinner struct {
	vfs.Pinner
	f *faultFS
}

func (c countingPinner) Unpin(pins []uint32) {
	c.f.pins.Add(-int64(len(pins)))
	c.Pinner.Unpin(pins)
}

func (f *faultFS) Write(op *vfs.Op, node vfs.NodeID, off uint64, v *vfs.Vec, how vfs.Stable, res *vfs.WriteResult) error {
	if err := f.ask(op, "write"); err != nil {
		return err
	}
	err := f.FS.Write(op, node, off, v, how, res)
	if f.wrote != nil && !(op.NoWait && op.Waits) {
		f.wrote(how)
	}
	return err
}

func (f *faultFS) Open(op *vfs.Op, node vfs.NodeID, write bool) error {
	err := f.FS.Open(op, node, write)
	if err == nil {
		f.opens.Add(1)
	}
	return err
}

func (f *faultFS) Close(node vfs.NodeID) {
	f.opens.Add(-1)
	f.FS.Close(node)
}

func (f *faultFS) Sync(op *vfs.Op, node vfs.NodeID) error {
	f.synced.Add(1)
	return f.FS.Sync(op, node)
}

// mounted is a store behind a door.
type mounted struct {
	*faultFS
	door *Door
	dir  string // the mount point
}

// mountTest mounts a store. configure may change what is mounted and how. At the
// end of the test the mount is gone, whatever happened, and so is everything
// that the door held.
func mountTest(t *testing.T, configure func(*faultFS, *DoorConfig)) *mounted {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root: run make test")
	}
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	m := &mounted{faultFS: &faultFS{FS: newTestStore(t)}, dir: t.TempDir()}
	// Users other than root come here too.
	for d := m.dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cfg := DoorConfig{FS: m.faultFS, Mountpoint: m.dir, FsName: "test", Graph: waitfor.New(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if configure != nil {
		configure(m.faultFS, &cfg)
	}
	var err error
	if m.door, err = MountFS(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.end(t) })
	return m
}

func (m *mounted) end(t *testing.T) {
	if err := m.door.Unmount(); err != nil {
		if !errors.Is(err, errElsewhere) || !m.elsewhere() {
			t.Errorf("unmount: %v", err)
		}
		if err := m.door.Abort(); err != nil {
			t.Errorf("abort: %v", err)
		}
	}
	select {
	case <-m.door.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("requests are still in work long after the mount is gone")
	}
	if mp, err := FindMount(m.dir); mp != nil || err != nil {
		t.Errorf("still mounted: %v, %v", mp, err)
	}
	if n := m.refs.Load(); n != 0 {
		t.Errorf("%d references were not given back", n)
	}
	if n := m.opens.Load(); n != 0 {
		t.Errorf("%d files are still open", n)
	}
	if n := m.pins.Load(); n != 0 {
		t.Errorf("%d pages are still pinned", n)
	}
}

// elsewhere reports whether another mount namespace has the mount, or has just let it go:
// tests of other packages run hosts meanwhile.
func (m *mounted) elsewhere() bool {
	all, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, mounts := range all {
		b, _ := os.ReadFile(mounts)
		if bytes.Contains(b, fmt.Appendf(nil, " 0:%d ", m.door.dev.ID)) {
			return true
		}
	}
	select {
	case <-m.door.Done():
		return true
	case <-time.After(time.Second):
		return false
	}
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

// newTestStore returns a store over a new directory, and everything that it
// needs.
func newTestStore(t testing.TB) *Store {
	t.Helper()
	arena, err := alloc.New(alloc.Config{Bytes: 16 << 20, Policy: alloc.DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	rec := reclaim.New(arena)
	cache := pagecache.New(arena, rec)
	dom, err := writeback.NewDomain(writeback.Config{Pages: arena.Total(), DirtyRatio: 20, BackgroundRatio: 10, Throttle: writeback.LocalThrottle{}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStore(StoreConfig{Dir: t.TempDir(), StateDir: t.TempDir(), Cache: cache, Domain: dom})
	if err != nil {
		t.Fatal(err)
	}
	rec.Start(cache, nil, s.BDI())
	s.Start()
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Errorf("store: %v", err)
		}
		dom.Close()
		arena.Close()
		rec.Stop()
	})
	return s
}

func TestDoorFiles(t *testing.T) {
	m := mountTest(t, nil)
	inChild(t, "files", m.dir)
	inChild(t, "dir", m.path("dir"))
	inChild(t, "append", m.path("append"))
	inChild(t, "bigfile", m.path("big"))
	inChild(t, "mmap", m.path("mapped"))
}

// The file system may return less than was asked for; the kernel would take that
// for the end of the file.
func TestDoorReadsOnAfterShortRead(t *testing.T) {
	m := mountTest(t, func(f *faultFS, _ *DoorConfig) { f.readMax = 3 * alloc.PageSize })
	inChild(t, "bigfile", m.path("big"))
}

func TestDoorAsksOnceForAttributesThatAreNot(t *testing.T) {
	m := mountTest(t, nil)
	inChild(t, "write1000", m.path("f"))
	n := m.door.Counts()
	if n["write"] < 1000 {
		t.Fatalf("%d writes counted, want 1000", n["write"])
	}
	if n["getxattr"] > 1 {
		t.Errorf("%d GETXATTR requests during 1000 writes, want at most 1", n["getxattr"])
	}
}

// The kernel sends requests of a MiB, and reads ahead as much.
func TestDoorLargeRequests(t *testing.T) {
	m := mountTest(t, nil)
	inChild(t, "large", m.path("f"))
	n := m.door.Counts()
	if n["write"] > 10 || n["read"] > 20 {
		t.Errorf("8 MiB took %d writes and %d reads", n["write"], n["read"])
	}
}

func TestDoorErrors(t *testing.T) {
	m := mountTest(t, nil)
	errno := func(e syscall.Errno) string { return fmt.Sprint(int(e)) }
	inChild(t, "errno", "stat", m.path("nothing"), errno(unix.ENOENT))
	inChild(t, "errno", "stat", m.path(strings.Repeat("x", 256)), errno(unix.ENAMETOOLONG))
	inChild(t, "errno", "fallocate", m.path("f"), errno(unix.EOPNOTSUPP))
	inChild(t, "errno", "ioctl", m.path("f"), errno(unix.ENOTTY))
	inChild(t, "errno", "getxattr", m.path("f"), errno(unix.EOPNOTSUPP))
}

func TestDoorErrnoTable(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.EDQUOT, syscall.EDQUOT},
		{fmt.Errorf("wrapped: %w", syscall.ENOSPC), syscall.ENOSPC},
		{vfs.ErrStale, syscall.ESTALE},
		{vfs.ErrBadCookie, syscall.ESTALE},
		{fmt.Errorf("x: %w", alloc.ErrNoMemory), syscall.ENOMEM},
		{context.Canceled, syscall.EINTR},
		{syscall.ENOSYS, syscall.EOPNOTSUPP}, // FUSE would never ask again
		{errors.New("anything"), syscall.EIO},
	} {
		if got := doorErrno(c.err); got != c.want {
			t.Errorf("%v becomes %v, want %v", c.err, got, c.want)
		}
	}
}

// Somebody else changes a file while the kernel believes for an hour what it
// knows; who opens it sees the change.
func TestDoorCloseToOpen(t *testing.T) {
	m := mountTest(t, func(_ *faultFS, c *DoorConfig) { c.AttrTimeout, c.EntryTimeout = time.Hour, time.Hour })
	op := &vfs.Op{Scope: gfp.For(nil)}
	e, _, err := m.FS.Create(op, vfs.RootID, "f", vfs.Unchecked, &vfs.SetAttr{SetMode: true, Mode: 0o600}, vfs.Verifier{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.FS.Forget(e.Node, 1)
	for _, content := range []string{"short", "rather longer", "brief"} {
		if _, err := m.FS.SetAttr(op, e.Node, &vfs.SetAttr{SetSize: true}); err != nil {
			t.Fatal(err)
		}
		var res vfs.WriteResult
		if err := m.FS.Write(op, e.Node, 0, &vfs.Vec{Bufs: [][]byte{[]byte(content)}}, vfs.Unstable, &res); err != nil {
			t.Fatal(err)
		}
		inChild(t, "read-is", m.path("f"), content)
		inChild(t, "stat", m.path("f")) // reading has made the attributes old
	}
	if n := m.door.Counts()["lookup"]; n > 2 {
		t.Errorf("%d look-ups: the name was not cached, so this has shown nothing", n)
	}
}

// The kernel has the name in its cache; that must not let anybody in who may not
// search the directory.
func TestDoorSearchPermission(t *testing.T) {
	m := mountTest(t, func(_ *faultFS, c *DoorConfig) { c.EntryTimeout = time.Hour })
	op := &vfs.Op{Scope: gfp.For(nil)}
	for name, mode := range map[string]uint32{"private": 0o700, "public": 0o755} {
		d, _, err := m.FS.Mkdir(op, vfs.RootID, name, &vfs.SetAttr{SetMode: true, Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		e, _, err := m.FS.Create(op, d.Node, "f", vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: 0o644}, vfs.Verifier{})
		if err != nil {
			t.Fatal(err)
		}
		var res vfs.WriteResult
		if err := m.FS.Write(op, e.Node, 0, &vfs.Vec{Bufs: [][]byte{[]byte("secret")}}, vfs.Unstable, &res); err != nil {
			t.Fatal(err)
		}
		m.FS.Forget(e.Node, 1)
		m.FS.Forget(d.Node, 1)
	}
	inChild(t, "open-as", "0,0", m.path("private/f"), "0")
	inChild(t, "open-as", "1000,1000", m.path("private/f"), fmt.Sprint(int(unix.EACCES)))
	inChild(t, "open-as", "1000,1000", m.path("public/f"), "0")
}

func TestDoorSupplementaryGroups(t *testing.T) {
	m := mountTest(t, nil)
	op := &vfs.Op{Scope: gfp.For(nil)}
	d, _, err := m.FS.Mkdir(op, vfs.RootID, "team", &vfs.SetAttr{SetMode: true, Mode: 0o770})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.FS.SetAttr(op, d.Node, &vfs.SetAttr{SetGID: true, GID: 4242}); err != nil {
		t.Fatal(err)
	}
	m.FS.Forget(d.Node, 1)
	inChild(t, "create-as", "1000,1000,7,4242", m.path("team/a"), "0")
	inChild(t, "create-as", "1000,1000,7", m.path("team/b"), fmt.Sprint(int(unix.EACCES)))
}

// What O_SYNC, O_DSYNC and fsync ask for reaches the file system.
func TestDoorDurability(t *testing.T) {
	var mu sync.Mutex
	var hows []vfs.Stable
	m := mountTest(t, func(f *faultFS, _ *DoorConfig) {
		f.wrote = func(how vfs.Stable) { mu.Lock(); hows = append(hows, how); mu.Unlock() }
	})
	inChild(t, "sync", m.path("f"))
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(hows) != fmt.Sprint([]vfs.Stable{vfs.FileSync, vfs.DataSync}) {
		t.Errorf("writes were %v", hows)
	}
	if m.synced.Load() == 0 {
		t.Error("fsync did not reach the file system")
	}
}

// slow makes some calls wait until they are cancelled, at most d.
func slow(d time.Duration, calls ...string) func(*vfs.Op, string) error {
	return func(op *vfs.Op, call string) error {
		if !slices.Contains(calls, call) {
			return nil
		}
		select {
		case <-op.Cancel:
			return syscall.EINTR
		case <-time.After(d):
			return nil
		}
	}
}

// A signal with a handler interrupts nothing. A directory that was made must not
// be made again, and a file not truncated again.
func TestDoorSignalsDoNotInterrupt(t *testing.T) {
	var truncated atomic.Int32
	m := mountTest(t, func(f *faultFS, _ *DoorConfig) {
		delay := slow(50*time.Millisecond, "read", "write", "truncate")
		f.before = func(op *vfs.Op, call string) error {
			if call == "truncate" {
				truncated.Add(1)
			}
			return delay(op, call)
		}
		f.after = slow(50*time.Millisecond, "mkdir")
	})
	inChild(t, "signals", m.dir)
	if n := truncated.Load(); n != signalRounds {
		t.Errorf("%d truncations for %d", n, signalRounds)
	}
}

// stuck makes writes wait until they are cancelled, and tells when one does.
func stuck(reached chan<- struct{}) func(*vfs.Op, string) error {
	return func(op *vfs.Op, call string) error {
		if call != "write" {
			return nil
		}
		select {
		case reached <- struct{}{}:
		default:
		}
		<-op.Cancel
		return syscall.EINTR
	}
}

// startStuck starts a child that hangs in a write.
func startStuck(t *testing.T, path string, reached <-chan struct{}) *childProcess {
	t.Helper()
	c := startHold(t, path)
	c.release()
	select {
	case <-reached:
	case <-time.After(10 * time.Second):
		t.Fatal("the write did not come")
	}
	return c
}

// childProcess is a child that holds a file open.
type childProcess struct {
	kill    func() error
	release func() // makes it write
	let     func() // lets it end
	done    chan error
}

func startHold(t *testing.T, path string) *childProcess {
	t.Helper()
	cmd := childCommand("hold", path)
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
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "open\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	c := &childProcess{kill: cmd.Process.Kill, done: make(chan error, 1)}
	c.release = func() { in.Write([]byte{'\n'}) }
	c.let = func() { in.Close() }
	go func() {
		said, _ := r.ReadString('\n')
		if err := cmd.Wait(); err != nil {
			c.done <- fmt.Errorf("%w: %s", err, said)
			return
		}
		c.done <- nil
	}()
	return c
}

func (c *childProcess) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-c.done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the child does not end")
		return nil
	}
}

// Who is killed does not wait for a server that is gone.
func TestDoorKilledCallerGoes(t *testing.T) {
	reached := make(chan struct{}, 1)
	m := mountTest(t, func(f *faultFS, _ *DoorConfig) { f.before = stuck(reached) })
	c := startStuck(t, m.path("f"), reached)
	if err := c.kill(); err != nil {
		t.Fatal(err)
	}
	c.wait(t)
}

// A mount namespace that was made meanwhile keeps the mount: who unmounts is told, and does
// not wait for it.
func TestDoorMountedElsewhere(t *testing.T) {
	m := mountTest(t, nil)
	other := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "60")
	if err := other.Start(); err != nil {
		t.Skip(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	own, _ := os.Readlink("/proc/self/ns/mnt")
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", other.Process.Pid))
		if err == nil && its != own {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("it has no mount namespace of its own")
		}
	}
	time.Sleep(100 * time.Millisecond) // and makes it private
	if err := m.door.Unmount(); !errors.Is(err, errElsewhere) || !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmounted with a copy in another namespace: %v, want EBUSY", err)
	}
	if err := m.door.Abort(); err != nil {
		t.Error(err)
	}
	within(t, "the door", m.door.Done())
}

// After an abort nobody hangs, and the mount is gone though it was in use.
func TestDoorAbort(t *testing.T) {
	reached := make(chan struct{}, 1)
	m := mountTest(t, func(f *faultFS, _ *DoorConfig) { f.before = stuck(reached) })
	c := startStuck(t, m.path("f"), reached)
	if err := m.door.Unmount(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmount in use: %v, want EBUSY", err)
	}
	if err := m.door.Abort(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.door.Dead():
	case <-time.After(10 * time.Second):
		t.Error("the end of the connection was not noticed")
	}
	select {
	case <-m.door.Done(): // though the caller lives
	case <-time.After(10 * time.Second):
		t.Error("the request in work did not end")
	}
	c.let()
	if err := c.wait(t); err == nil {
		t.Error("the write in work succeeded")
	}
	if err := m.door.Abort(); err != nil {
		t.Errorf("second abort: %v", err)
	}
}

// A connection can be aborted where fusectl is not mounted.
func TestDoorAbortWithoutFusectl(t *testing.T) {
	m := mountTest(t, nil)
	if err := m.door.dev.abortByOwn(); err != nil {
		t.Skip("no fusectl: ", err)
	}
	within(t, "the connection", m.door.Dead())
}

// The number of a connection goes to the next mount when it is free: what is not
// mounted any more must not be aborted.
func TestDetachWhatIsGone(t *testing.T) {
	const control = "/sys/fs/fuse/connections"
	if all, _ := os.ReadDir(control); len(all) == 0 {
		if err := unix.Mount("none", control, "fusectl", 0, ""); err != nil {
			t.Skip("no fusectl: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(control, unix.MNT_DETACH) })
	}
	m := mountTest(t, nil)
	gone := MountPoint{Path: filepath.Join(t.TempDir(), "gone"), Source: "x", Type: "fuse.loopnfs", ID: m.door.dev.ID}
	if _, err := os.Stat(fmt.Sprintf("%s/%d/abort", control, gone.ID)); err != nil {
		t.Fatal(err)
	}
	if err := gone.Detach(); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadDir(m.path(".")); err != nil {
		t.Errorf("another mount was taken down: %v", err)
	}
}

func TestDoorUnmountBusyThenFree(t *testing.T) {
	m := mountTest(t, nil)
	c := startHold(t, m.path("f"))
	if err := m.door.Unmount(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmount in use: %v, want EBUSY", err)
	}
	c.release()
	c.let()
	if err := c.wait(t); err != nil {
		t.Error(err)
	}
}

// A request that meets a shortage is tried again until it is served.
func TestDoorTriesAgain(t *testing.T) {
	var left atomic.Int32
	left.Store(5)
	m := mountTest(t, func(f *faultFS, _ *DoorConfig) {
		f.before = func(_ *vfs.Op, call string) error {
			if (call == "mkdir" || call == "write") && left.Add(-1) >= 0 {
				return vfs.ErrJukebox
			}
			return nil
		}
	})
	inChild(t, "errno", "mkdir", m.path("d"), "0")
	left.Store(3)
	inChild(t, "write1000", m.path("f"))
	if left.Load() >= 0 {
		t.Error("the fault did not happen")
	}
}

// A panic is one request's error, and the next one is served.
func TestDoorPanic(t *testing.T) {
	var once sync.Once
	m := mountTest(t, func(f *faultFS, _ *DoorConfig) {
		f.before = func(_ *vfs.Op, call string) error {
			if call == "mkdir" {
				once.Do(func() { panic("for the test") })
			}
			return nil
		}
	})
	inChild(t, "errno", "mkdir", m.path("d"), fmt.Sprint(int(unix.EIO)))
	inChild(t, "errno", "mkdir", m.path("d"), "0")
}

// The graph shows requests in work, and none when there are none.
func TestDoorShowsWaits(t *testing.T) {
	reached := make(chan struct{}, 1)
	graph := waitfor.New()
	m := mountTest(t, func(f *faultFS, c *DoorConfig) {
		c.Graph = graph
		hang := stuck(reached)
		f.before = func(op *vfs.Op, call string) error {
			if call == "write" {
				op.Scope.Task().Wait("", "the end of the test", 0, waitfor.Resource{Kind: waitfor.Worker, ID: 99})
				defer op.Scope.Task().Done()
			}
			return hang(op, call)
		}
	})
	c := startStuck(t, m.path("f"), reached)
	if w := graph.Waits(); len(w) != 1 || w[0] != "fuse: write waits for the end of the test" {
		t.Errorf("waits: %q", w)
	}
	c.kill()
	c.wait(t)
}

func TestDoorMountpoint(t *testing.T) {
	m := mountTest(t, nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"":                                     "no mount point",
		filepath.Join(t.TempDir(), "nonsense"): "create it with mkdir",
		file:                                   "is not a directory",
		m.dir:                                  "is in use: test (fuse.loopnfs) is mounted there",
	} {
		d, err := MountFS(DoorConfig{FS: m.FS, Mountpoint: path})
		if err == nil {
			d.Unmount()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mounting %q: %v, want %q", path, err, want)
		}
	}
}

// What a killed process has left at the mount point is replaced by the same thing
// again, and by nothing else.
func TestDoorReplacesADeadMount(t *testing.T) {
	m := mountTest(t, nil)
	busy, err := os.Open(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_ = unix.Unmount(m.dir, unix.MNT_FORCE) // ends the connection, although it is busy
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err != unix.ENOTCONN {
		t.Fatalf("the mount is not dead: %v", err)
	}
	if d, err := MountFS(DoorConfig{FS: m.FS, Mountpoint: m.dir, FsName: "other"}); err == nil {
		d.Unmount()
		t.Error("something else took its place")
	}
	d, err := MountFS(DoorConfig{FS: m.FS, Mountpoint: m.dir, FsName: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Unmount()
	if _, err := os.Stat(m.dir); err != nil {
		t.Error(err)
	}
}

func TestDoorConnectionID(t *testing.T) {
	m := mountTest(t, nil)
	var want int
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 5 && f[4] == m.dir {
			fmt.Sscanf(f[2], "0:%d", &want)
		}
	}
	if want == 0 || m.door.ConnectionID() != want {
		t.Errorf("connection %d, want %d", m.door.ConnectionID(), want)
	}
	if kb, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", want)); err == nil && strings.TrimSpace(string(kb)) != "1024" {
		t.Errorf("read-ahead is %s KiB, want 1024", kb)
	}
}

// A reply is no longer than the kernel asked for, whatever it has asked for before.
func TestDoorListsWithAnyBuffer(t *testing.T) {
	m := mountTest(t, nil)
	inChild(t, "getdents", m.dir, "4096", "65536", "8192", "32768", "4096", "65536", "512")
}

// What others write through another door is not written over by who appends.
func TestDoorAppendsAtTheEnd(t *testing.T) {
	m := mountTest(t, nil)
	cmd := exec.Command("/bin/sh", "-c", `exec 3>>"$1"; echo one >&3; echo; read x; echo three >&3`, "sh", m.path("log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
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
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	op := vfs.Op{Scope: gfp.For(nil)}
	e, err := m.Lookup(&op, vfs.RootID, "log")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Forget(e.Node, 1)
	var res vfs.WriteResult
	if err := m.Write(&op, e.Node, 4, &vfs.Vec{Bufs: [][]byte{[]byte("two\n")}}, vfs.Unstable, &res); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	cmd.Wait()
	var v vfs.Vec
	defer v.Release()
	if _, err := m.Read(&op, e.Node, 0, 100, &v, nil); err != nil {
		t.Fatal(err)
	}
	if got := string(bytes.Join(v.Bufs, nil)); got != "one\ntwo\nthree\n" {
		t.Errorf("the file is %q", got)
	}
}
