package fusefs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// tableFixture is a store on a new overlay, whose handles are in a table.
func tableFixture(t testing.TB, lower func(dir string)) *fixture {
	t.Helper()
	return newFixture(t, options{dir: overlayDir(t, lower), state: t.TempDir()})
}

// again returns a store on the same directory, after the end of f.
func (f *fixture) again() *fixture {
	f.t.Helper()
	f.ok(f.Shutdown())
	return newFixture(f.t, options{dir: f.dir, state: f.state})
}

// killed is again after the end of f by kill -9: what f has not written is lost.
func (f *fixture) killed() *fixture {
	f.t.Helper()
	if l := &f.ids.disk; l.written.Load() != l.queued.Load() {
		f.t.Error("a handle was given away before its record was written")
	}
	f.ok(f.ids.disk.lock.Close())
	return newFixture(f.t, options{dir: f.dir, state: f.state})
}

func (f *fixture) handle(n vfs.NodeID) []byte {
	f.t.Helper()
	h, err := f.Handle(n, nil)
	f.ok(err)
	return h
}

// opens reports whether h leads to a file with the inode number ino.
func (f *fixture) opens(h []byte, ino uint64) {
	f.t.Helper()
	n, err := f.ByHandle(f.op, h)
	if err != nil {
		f.t.Errorf("a good handle: %v", err)
		return
	}
	if got := f.getattr(n).Ino; got != ino {
		f.t.Errorf("the handle of inode %d leads to %d", ino, got)
	}
	f.Forget(n, 1)
}

func (f *fixture) stale(h []byte) {
	f.t.Helper()
	_, err := f.ByHandle(f.op, h)
	f.wants(err, vfs.ErrStale)
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fixture) remove(dir vfs.NodeID, name string) {
	f.t.Helper()
	_, err := f.Remove(f.op, dir, name)
	f.ok(err)
}

// logOf returns the path of the table of f.
func (f *fixture) logOf() string { return f.ids.disk.path }

func TestTableOutlivesTheServer(t *testing.T) {
	for how, next := range map[string]func(f *fixture) *fixture{"shutdown": (*fixture).again, "kill": (*fixture).killed} {
		t.Run(how, func(t *testing.T) {
			f := tableFixture(t, func(dir string) {
				_ = os.MkdirAll(filepath.Join(dir, "old", "deep"), 0o755)
				_ = os.WriteFile(filepath.Join(dir, "old", "deep", "lower"), []byte("lower"), 0o644)
			})
			a := f.mkdir(vfs.RootID, "a", 0o755)
			b := f.mkdir(a, "b", 0o755)
			file := f.create(b, "file", 0o644)
			f.write(file, 0, []byte("hello"), vfs.FileSync)
			link := f.create(b, "one name", 0o644)
			_, _, err := f.Link(f.op, link, a, "another name")
			f.ok(err)
			lower := f.lookup(f.lookup(f.lookup(vfs.RootID, "old").Node, "deep").Node, "lower")
			gone := f.create(b, "gone", 0o644)
			want := map[uint64][]byte{}
			for _, n := range []vfs.NodeID{vfs.RootID, a, b, file, link, lower.Node} {
				want[f.getattr(n).Ino] = f.handle(n)
			}
			dead := f.handle(gone)
			f.remove(b, "gone")
			_, _, err = f.Rename(f.op, vfs.RootID, "a", vfs.RootID, "renamed")
			f.ok(err)
			f.remove(b, "one name")
			last := f.create(vfs.RootID, "last", 0o644)
			lastHandle := f.handle(last)
			f.remove(vfs.RootID, "last")
			if l := &f.ids.disk; l.written.Load() != l.queued.Load() {
				t.Error("the removal of a file was not written")
			}

			g := next(f)
			for range 2 {
				for ino, h := range want {
					g.opens(h, ino)
				}
				g.stale(dead)
				g.stale(lastHandle)
				g = g.again()
			}
			n, err := g.ByHandle(g.op, want[f.getattr(vfs.RootID).Ino])
			if err != nil || n != vfs.RootID {
				t.Errorf("the root: node %d, %v", n, err)
			}
		})
	}
}

func TestTableSaysWhatItIs(t *testing.T) {
	var log bytes.Buffer
	f := newFixture(t, options{dir: overlayDir(t, nil), log: &log})
	for _, want := range []string{"level=WARN", f.dir, "overlay", f.logOf(), "stale", "memory", "ext4"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q: %s", want, &log)
		}
	}
}

// A file that takes the name and the inode number of one that was removed is
// another file.
func TestTableTellsFilesWithOneInodeNumber(t *testing.T) {
	f := tableFixture(t, nil)
	reused := 0
	for i := range 200 {
		n := f.create(vfs.RootID, "f", 0o644)
		old, ino := f.handle(n), f.getattr(n).Ino
		f.Forget(n, 1)
		byOthers := i%2 == 1
		if byOthers {
			f.ok(os.Remove(f.path("f")))
			f.evictAll()
		} else {
			f.remove(vfs.RootID, "f")
		}
		n = f.create(vfs.RootID, "f", 0o644)
		if f.getattr(n).Ino == ino {
			reused++
		}
		if bytes.Equal(f.handle(n), old) {
			t.Fatal("two files with one handle")
		}
		f.stale(old)
		f.Forget(n, 1)
		f.remove(vfs.RootID, "f")
	}
	if reused == 0 {
		t.Skip("the file system did not use an inode number again")
	}
}

// evictAll makes the store forget what it has in memory and nobody refers to.
func (f *fixture) evictAll() {
	limit := f.nodes.limit
	f.nodes.limit = 0
	for range 1000 {
		f.evict()
	}
	f.nodes.limit = limit
	f.fds.closeIdle()
}

func TestTableAfterChangesOfOthers(t *testing.T) {
	f := tableFixture(t, nil)
	dir := f.mkdir(vfs.RootID, "dir", 0o755)
	file := f.create(dir, "file", 0o644)
	dh, fh := f.handle(dir), f.handle(file)
	dino, fino := f.getattr(dir).Ino, f.getattr(file).Ino
	for _, n := range []vfs.NodeID{dir, file} {
		f.Forget(n, 1)
	}
	f.ok(os.Rename(f.path("dir"), f.path("moved")))
	f.evictAll()
	f.stale(dh)
	f.stale(fh)
	// Who looks it up tells where it is, and with it all that is below.
	f.Forget(f.lookup(vfs.RootID, "moved").Node, 1)
	f.evictAll()
	f.opens(dh, dino)
	f.opens(fh, fino)

	// A file that got the inode number of another one is not the other one.
	f.ok(os.Remove(f.path("moved/file")))
	f.evictAll()
	for i := range 50 {
		name := fmt.Sprint("new", i)
		f.ok(os.WriteFile(f.path(name), nil, 0o644))
		e := f.lookup(vfs.RootID, name)
		if bytes.Equal(f.handle(e.Node), fh) {
			t.Error("a new file has the handle of an old one")
		}
		f.Forget(e.Node, 1)
	}
	f.stale(fh)
}

func TestTableFindsTheParentOfAMovedDirectory(t *testing.T) {
	f := tableFixture(t, nil)
	f.ok(os.MkdirAll(f.path("x/y"), 0o755))
	dir := f.mkdir(vfs.RootID, "dir", 0o755)
	f.list(dir, 0) // so that it is open
	f.ok(os.Rename(f.path("dir"), f.path("x/y/dir")))
	up := f.lookup(dir, "..")
	f.opens(f.handle(up.Node), up.Attr.Ino)
	if want := f.lookup(f.lookup(vfs.RootID, "x").Node, "y"); want.Node != up.Node {
		t.Errorf("the parent is node %d, want %d", up.Node, want.Node)
	}
}

func TestTableWithHardLinks(t *testing.T) {
	f := tableFixture(t, nil)
	n := f.create(vfs.RootID, "0", 0o644)
	h, ino := f.handle(n), f.getattr(n).Ino
	for i := 1; i <= 2*maxPlaces; i++ {
		_, _, err := f.Link(f.op, n, vfs.RootID, fmt.Sprint(i))
		f.ok(err)
	}
	f.Forget(n, 1)
	for i := 2 * maxPlaces; i > maxPlaces+1; i-- {
		f.remove(vfs.RootID, fmt.Sprint(i))
		f.evictAll()
		f.opens(h, ino)
	}
	f.lookup(vfs.RootID, "3")
	f.remove(vfs.RootID, fmt.Sprint(maxPlaces+1))
	f = f.killed()
	f.opens(h, ino)
}

// Files of the lower layer are copied up when they are written to, which gives
// those with several names another inode number.
func TestTableFollowsCopyUp(t *testing.T) {
	f := tableFixture(t, func(dir string) {
		for _, name := range []string{"single", "gone", "link"} {
			_ = os.WriteFile(filepath.Join(dir, name), []byte("lower"), 0o644)
		}
		_ = os.Link(filepath.Join(dir, "link"), filepath.Join(dir, "link2"))
	})
	for _, name := range []string{"single", "link"} {
		e := f.lookup(vfs.RootID, name)
		h := f.handle(e.Node)
		f.write(e.Node, 0, []byte("upper"), vfs.FileSync)
		f.Forget(e.Node, 1)
		f.evictAll()
		n, err := f.ByHandle(f.op, h)
		f.ok(err)
		if p, _ := f.read(n, 0, 100); string(p) != "upper" {
			t.Errorf("%s: read %q", name, p)
		}
		if again := f.lookup(vfs.RootID, name); again.Node != n {
			t.Errorf("%s: two nodes, %d and %d", name, n, again.Node)
		}
	}
	e := f.lookup(vfs.RootID, "gone")
	h := f.handle(e.Node)
	f.remove(vfs.RootID, "gone")
	f.stale(h)
	f.wants(f.GetAttr(f.op, e.Node, &e.Attr), vfs.ErrStale)
}

func TestTableRefusesForgedHandles(t *testing.T) {
	f := tableFixture(t, nil)
	n := f.create(vfs.RootID, "f", 0o644)
	h := f.handle(n)
	f.Forget(n, 1)
	f.evictAll()
	for i := range h {
		bad := bytes.Clone(h)
		bad[i] ^= 1
		_, err := f.ByHandle(f.op, bad)
		f.wants(err, vfs.ErrBadHandle)
	}
	// With a good check, as only a server with the key can have made them.
	var good rawHandle
	p, _ := parseHandle(h)
	p.raw(&good)
	for name, spoil := range map[string]func(raw *rawHandle){
		"number":      func(raw *rawHandle) { binary.BigEndian.PutUint64(raw.data[:], 1<<40) },
		"tag":         func(raw *rawHandle) { raw.data[8] ^= 1 },
		"tag of root": func(raw *rawHandle) { binary.BigEndian.PutUint64(raw.data[:], rootNumber) },
		"type":        func(raw *rawHandle) { raw.typ = 1 },
		"short":       func(raw *rawHandle) { raw.bytes = 8 },
		"empty":       func(raw *rawHandle) { raw.bytes = 0 },
	} {
		raw := good
		spoil(&raw)
		bad, err := f.seal(&raw)
		f.ok(err)
		if _, err := f.ByHandle(f.op, bad.bytes()); err != vfs.ErrStale {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What takes the place of a directory or of a file leads nowhere.
func TestTableFollowsNoLink(t *testing.T) {
	f := tableFixture(t, nil)
	secret := diskDir(t)
	f.ok(os.MkdirAll(filepath.Join(secret, "sub"), 0o755))
	dir := f.mkdir(vfs.RootID, "dir", 0o755)
	file := f.create(f.mkdir(dir, "sub", 0o755), "file", 0o644)
	h := f.handle(file)
	var raw rawHandle
	p, _ := parseHandle(h)
	p.raw(&raw)
	in, _ := f.inode(file)
	f.fds.drop(in)

	f.ok(os.Rename(f.path("dir"), f.path("away")))
	f.ok(os.Link(f.path("away/sub/file"), f.path("hidden")))
	for _, target := range []string{"away", secret, f.path("away"), "../merged/away"} {
		f.ok(os.Symlink(target, f.path("dir")))
		_, err := f.openRaw(&raw, unix.O_RDONLY)
		f.wants(err, vfs.ErrStale)
		f.ok(os.Remove(f.path("dir")))
	}
	f.ok(os.Rename(f.path("away"), f.path("dir")))
	f.ok(os.Remove(f.path("dir/sub/file")))
	f.ok(os.Symlink("../../hidden", f.path("dir/sub/file")))
	_, err := f.openRaw(&raw, unix.O_RDONLY)
	f.wants(err, vfs.ErrStale)
	f.ok(os.Remove(f.path("dir/sub/file")))
	f.ok(unix.Mkfifo(f.path("dir/sub/file"), 0o600))
	_, err = f.openRaw(&raw, unix.O_RDWR)
	f.wants(err, vfs.ErrStale)
	f.ok(os.Remove(f.path("dir/sub/file")))
	f.ok(os.Rename(f.path("hidden"), f.path("dir/sub/file")))
	fd, err := f.openRaw(&raw, unix.O_RDWR)
	f.ok(err)
	f.ok(unix.Close(fd))
}

func TestTableWithDamagedLog(t *testing.T) {
	f := tableFixture(t, nil)
	first := f.create(vfs.RootID, "first", 0o644)
	h1, ino1 := f.handle(first), f.getattr(first).Ino
	before := f.ids.disk.size
	second := f.create(vfs.RootID, "second", 0o644)
	h2, ino2 := f.handle(second), f.getattr(second).Ino
	path := f.logOf()
	f.ok(f.Shutdown())
	whole, err := os.ReadFile(path)
	f.ok(err)

	start := func(b []byte) (*fixture, string) {
		f.ok(os.WriteFile(path, b, 0o600))
		var log bytes.Buffer
		g := newFixture(t, options{dir: f.dir, state: f.state, log: &log})
		return g, log.String()
	}
	for cut := before + 1; cut < int64(len(whole)); cut++ { // torn
		g, log := start(whole[:cut])
		g.opens(h1, ino1)
		g.stale(h2)
		if !strings.Contains(log, "cut off") {
			t.Errorf("cut at %d: the log does not say so: %s", cut, log)
		}
		// The number of the lost record is given to another file.
		e := g.lookup(vfs.RootID, "second")
		g.stale(h2)
		h := g.handle(e.Node)
		g.Forget(e.Node, 1)
		g = g.killed()
		g.opens(h, ino2)
		g.ok(g.Shutdown())
	}
	for at := before; at < int64(len(whole)); at += 5 { // damaged
		bad := bytes.Clone(whole)
		bad[at] ^= 0x10
		g, log := start(bad)
		g.opens(h1, ino1)
		g.stale(h2)
		if !strings.Contains(log, "cut off") {
			t.Errorf("damage at %d: the log does not say so: %s", at, log)
		}
		g.ok(g.Shutdown())
	}
	g, _ := start(whole)
	g.opens(h1, ino1)
	g.opens(h2, ino2)
	g.ok(g.Shutdown())

	bad := bytes.Clone(whole)
	bad[3] ^= 1
	f.ok(os.WriteFile(path, bad, 0o600))
	if err := f.try(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged header: %v", err)
	}
}

// try makes another store on the directory of f, which must fail.
func (f *fixture) try() error {
	m := newMemory(f.t, 4<<20, defaultPolicy)
	_, err := NewStore(StoreConfig{Dir: f.dir, Cache: m.cache, Domain: m.dom, StateDir: f.state})
	return err
}

func TestTableHasOneServer(t *testing.T) {
	f := tableFixture(t, nil)
	if err := f.try(); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a second server: %v", err)
	}
	f.again()
}

func TestTableIsLimited(t *testing.T) {
	var log bytes.Buffer
	f := newFixture(t, options{dir: overlayDir(t, nil), log: &log})
	f.ids.limit = 10
	f.ok(os.WriteFile(f.path("unseen"), nil, 0o644))
	for i := range 9 {
		f.create(vfs.RootID, fmt.Sprint(i), 0o644)
	}
	for range 2 {
		_, _, err := f.Create(f.op, vfs.RootID, "one more", vfs.Unchecked, mode(0o644), vfs.Verifier{})
		f.wants(err, unix.ENOSPC)
		_, err = f.Lookup(f.op, vfs.RootID, "unseen")
		f.wants(err, unix.ENOSPC)
	}
	if _, err := os.Lstat(f.path("one more")); !os.IsNotExist(err) {
		t.Errorf("what was refused was made: %v", err)
	}
	if n := strings.Count(log.String(), "is full"); n != 1 {
		t.Errorf("the log says %d times that the table is full", n)
	}
	f.lookup(vfs.RootID, "5")
	f.remove(vfs.RootID, "0")
	f.create(vfs.RootID, "one more", 0o644)
	f.ok(os.Remove(f.path("1"))) // by somebody else
	f.lookup(vfs.RootID, "unseen")
}

func TestTableLogStaysShort(t *testing.T) {
	f := tableFixture(t, nil)
	n := f.create(vfs.RootID, "kept", 0o644)
	h, ino := f.handle(n), f.getattr(n).Ino
	long := strings.Repeat("x", 200)
	var written int64
	for i := 0; written < 3*idSlack; i++ {
		f.ids.mu.Lock()
		r := &idRecord{number: 1<<32 + uint64(i), fileID: fileID{ino: 1 << 60, typ: vfs.TypeRegular}}
		f.ids.byNumber[r.number], f.ids.byIno[r.ino] = r, r
		f.ids.see(r, &r.fileID, place{rootNumber, long}, false)
		f.ids.remove(r)
		f.ids.mu.Unlock()
		written = f.ids.disk.queued.Load()
	}
	f.ok(f.ids.disk.write())
	for deadline := time.Now().Add(30 * time.Second); f.ids.wasteful(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the log was not rewritten")
		}
	}
	fi, err := os.Stat(f.logOf())
	f.ok(err)
	if fi.Size() > idSlack {
		t.Errorf("%d bytes for one file", fi.Size())
	}
	m := f.create(vfs.RootID, "after", 0o644)
	h2, ino2 := f.handle(m), f.getattr(m).Ino
	g := f.killed()
	g.opens(h, ino)
	g.opens(h2, ino2)
}

func TestTableIsSynced(t *testing.T) {
	f := tableFixture(t, nil)
	l := &f.ids.disk
	synced := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.synced == l.queued.Load()
	}
	f.create(vfs.RootID, "f", 0o644)
	f.ok(f.Sync(f.op, vfs.RootID))
	if !synced() {
		t.Error("a sync of the directory did not put the handle on stable storage")
	}
	f.ok(os.WriteFile(f.path("g"), nil, 0o644))
	f.lookup(vfs.RootID, "g")
	for deadline := time.Now().Add(30 * time.Second); !synced(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody synced it")
		}
	}
}

// A handle that could not be written is not given away, and is when it could.
func TestTableOnAFullDisk(t *testing.T) {
	state := tmpfsDir(t, "size=64k")
	f := newFixture(t, options{dir: overlayDir(t, nil), state: state})
	filler, err := os.Create(filepath.Join(state, "filler"))
	f.ok(err)
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	f.ok(filler.Close())
	made := map[uint64][]byte{}
	failed := ""
	for i := 0; failed == "" && i < 1000; i++ {
		name := fmt.Sprintf("%s%d", strings.Repeat("n", 200), i)
		e, _, err := f.Create(f.op, vfs.RootID, name, vfs.Guarded, mode(0o644), vfs.Verifier{})
		if err != nil {
			f.wants(err, unix.ENOSPC)
			failed = name
			break
		}
		made[e.Attr.Ino] = f.handle(e.Node)
	}
	if failed == "" {
		t.Fatal("the disk was never full")
	}
	f.ok(os.Remove(filepath.Join(state, "filler")))
	e := f.lookup(vfs.RootID, failed)
	made[e.Attr.Ino] = f.handle(e.Node)
	g := f.killed()
	for ino, h := range made {
		g.opens(h, ino)
	}
}

func TestTableUnderConcurrency(t *testing.T) {
	f := tableFixture(t, nil)
	dirs := []vfs.NodeID{vfs.RootID, f.mkdir(vfs.RootID, "d1", 0o755), f.mkdir(vfs.RootID, "d2", 0o755)}
	kept := f.create(dirs[1], "kept", 0o644)
	h, ino := f.handle(kept), f.getattr(kept).Ino
	f.Forget(kept, 1)
	rounds := 500
	expected := func(err error) bool {
		return err == nil || err == unix.ENOENT || err == unix.EEXIST || err == vfs.ErrStale
	}
	var wg sync.WaitGroup
	worker := func(call func(op *vfs.Op, i int) error) {
		op := f.mem.newOp("worker")
		wg.Go(func() {
			for i := range rounds {
				if err := call(op, i); !expected(err) {
					t.Errorf("round %d: %v", i, err)
				}
			}
		})
	}
	for range 2 {
		worker(func(op *vfs.Op, i int) error {
			e, _, err := f.Create(op, dirs[i%3], "x", vfs.Guarded, mode(0o644), vfs.Verifier{})
			if err == nil {
				f.Forget(e.Node, 1)
			}
			return err
		})
		worker(func(op *vfs.Op, i int) error {
			e, err := f.Lookup(op, dirs[i%3], "x")
			if err != nil {
				return err
			}
			defer f.Forget(e.Node, 1)
			h, err := f.Handle(e.Node, nil)
			if err != nil {
				return err
			}
			n, err := f.ByHandle(op, h)
			if err == nil {
				f.Forget(n, 1)
			}
			return err
		})
		worker(func(op *vfs.Op, i int) error {
			_, _, err := f.Rename(op, dirs[i%3], "x", dirs[(i+1)%3], "x")
			return err
		})
		worker(func(op *vfs.Op, i int) error { _, err := f.Remove(op, dirs[i%3], "x"); return err })
	}
	worker(func(op *vfs.Op, i int) error {
		_, _, err := f.Rename(op, dirs[i%2+1], "kept", dirs[2-i%2], "kept")
		return err
	})
	worker(func(op *vfs.Op, i int) error {
		f.evict()
		n, err := f.ByHandle(op, h)
		if err == nil {
			f.Forget(n, 1)
		}
		return err
	})
	wg.Wait()
	f.evictAll()
	f.opens(h, ino)
	f = f.killed()
	f.opens(h, ino)
	for _, d := range []string{"d1", "d2"} {
		if e, err := f.Lookup(f.op, f.lookup(vfs.RootID, d).Node, "x"); err == nil {
			f.opens(f.handle(e.Node), e.Attr.Ino)
		}
	}
}

// TestRecordSize measures what the log message and the manual say.
func TestRecordSize(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory")
	}
	needRoot(t)
	const n = 200_000
	tab := &idTable{limit: n + 1, most: maxLive, next: 1, byNumber: map[uint64]*idRecord{}, byIno: map[uint64]*idRecord{}}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range uint64(n) {
		p := place{rootNumber, fmt.Sprintf("a-name-of-20-%07d", i)}
		id := fileID{ino: i + 100, typ: vfs.TypeRegular, nlink: 1}
		var raw rawHandle
		if _, err := tab.record(&id, p, 0, nil, &raw); err != nil {
			t.Fatal(err)
		}
		tab.disk.buf = tab.disk.buf[:0]
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (after.HeapAlloc - before.HeapAlloc) / n
	t.Logf("%d bytes for a file with a name of 20", each)
	if each > recordBytes*5/4 || each < recordBytes*1/2 {
		t.Errorf("%d bytes for a file, the log message says %d", each, recordBytes)
	}
	runtime.KeepAlive(tab)
}

func BenchmarkLookupInTable(b *testing.B) {
	f := tableFixture(b, nil)
	node := f.create(vfs.RootID, "f", 0o644)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = f.Lookup(f.op, vfs.RootID, "f")
		f.Forget(node, 1)
	}
}

// What is not in memory is found by its names.
func BenchmarkByHandleInTable(b *testing.B) {
	f := tableFixture(b, nil)
	dir := vfs.NodeID(vfs.RootID)
	for range 5 {
		dir = f.mkdir(dir, "dir", 0o755)
	}
	h, _ := parseHandle(f.handle(f.create(dir, "f", 0o644)))
	var raw rawHandle
	h.raw(&raw)
	for b.Loop() {
		fd, err := f.openRaw(&raw, unix.O_RDONLY)
		f.ok(err)
		_ = unix.Close(fd)
	}
}
