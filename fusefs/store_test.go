package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim"
	"loopnfs/reclaim/writeback"
)

// memory is an arena and all that manages it.
type memory struct {
	arena *alloc.Arena
	dom   *writeback.Domain
	rec   *reclaim.Reclaimer
	cache *pagecache.Cache
	graph *waitfor.Graph
}

func newMemory(t testing.TB, bytes int64, policy alloc.Policy) *memory {
	t.Helper()
	arena, err := alloc.New(alloc.Config{Bytes: bytes, Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	dom, err := writeback.NewDomain(writeback.Config{Pages: arena.Total(), DirtyRatio: 20, BackgroundRatio: 10, Throttle: writeback.FairThrottle{Throttle: writeback.LocalThrottle{}}})
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{arena: arena, dom: dom, rec: reclaim.New(arena), graph: waitfor.New()}
	m.cache = pagecache.New(arena, m.rec)
	return m
}

// fixture is a store under test.
type fixture struct {
	*Store
	t     testing.TB
	mem   *memory
	dir   string
	state string
	op    *vfs.Op
}

type options struct {
	bytes   int64
	dir     string // default: a new one on the disk
	state   string
	policy  alloc.Policy
	inodes  int
	files   int
	noStart bool // no flushers
	lenient bool // Shutdown may fail
	log     io.Writer

	buffered bool
	holds    func() bool
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: file handles are opened, and users are impersonated")
	}
}

// diskDir returns a new directory on a disk file system, where O_DIRECT works.
func diskDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "store-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tmpfsDir returns a new tmpfs, which has no disk behind it.
func tmpfsDir(t testing.TB, mountOptions string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, mountOptions); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// overlayDir returns a new overlay on a disk file system, which has no file
// handles. lower, if not nil, fills the lower directory.
func overlayDir(t testing.TB, lower func(dir string)) string {
	t.Helper()
	return overlayIn(t, diskDir(t), lower)
}

// overlayIn is overlayDir with its layers in base.
func overlayIn(t testing.TB, base string, lower func(dir string)) string {
	t.Helper()
	needRoot(t)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if lower != nil {
		lower(filepath.Join(base, "lower"))
	}
	dir := filepath.Join(base, "merged")
	mountOptions := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work,index=off,nfs_export=off", base)
	if err := unix.Mount("overlay", dir, "overlay", 0, mountOptions); err != nil {
		t.Skipf("cannot mount an overlay here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func newFixture(t testing.TB, o options) *fixture {
	t.Helper()
	needRoot(t)
	if o.bytes == 0 {
		o.bytes = 16 << 20
	}
	if o.policy.Mask == nil {
		o.policy = alloc.DefaultPolicy()
	}
	if o.dir == "" {
		o.dir = diskDir(t)
	}
	if o.state == "" {
		o.state = t.TempDir()
	}
	if o.log == nil {
		o.log = io.Discard
	}
	mem := newMemory(t, o.bytes, o.policy)
	s, err := NewStore(StoreConfig{
		Dir: o.dir, Cache: mem.cache, Domain: mem.dom, Graph: mem.graph, StateDir: o.state,
		Logger: slog.New(slog.NewTextHandler(o.log, nil)), MaxInodes: o.inodes, MaxFiles: o.files, Buffered: o.buffered, Holds: o.holds,
	})
	if err != nil {
		t.Fatal(err)
	}
	mem.rec.Start(mem.cache, mem.graph, s.BDI())
	if !o.noStart {
		s.Start()
	}
	f := &fixture{Store: s, t: t, mem: mem, dir: o.dir, state: o.state, op: mem.newOp("test")}
	t.Cleanup(func() { f.stop(o.lenient) })
	return f
}

// newOp returns an operation of a task of its own, by root.
func (m *memory) newOp(name string) *vfs.Op {
	task := m.graph.NewTask(name)
	task.Begin("TEST")
	return &vfs.Op{Scope: gfp.For(task)}
}

// stop takes the store down and looks for pages that nobody gave back.
func (f *fixture) stop(lenient bool) {
	if err := f.Shutdown(); err != nil && !lenient {
		f.t.Errorf("shutdown: %v", err)
	}
	f.mem.rec.Stop()
	if a := f.mem.arena; a.Free() != a.Total() {
		f.t.Errorf("%d of %d pages were not given back", a.Total()-a.Free(), a.Total())
	}
	if n, stuck := f.mem.dom.Pages(), f.mem.dom.Stuck(); n != 0 || stuck != 0 {
		f.t.Errorf("%d pages count as dirty after shutdown, %d as such that cannot be written", n, stuck)
	}
}

func (f *fixture) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) wants(got, want error) {
	f.t.Helper()
	if !errors.Is(got, want) {
		f.t.Errorf("got error %v, want %v", got, want)
	}
}

func (f *fixture) create(dir vfs.NodeID, name string, mode uint32) vfs.NodeID {
	f.t.Helper()
	e, _, err := f.Create(f.op, dir, name, vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: mode}, vfs.Verifier{})
	f.ok(err)
	return e.Node
}

func (f *fixture) mkdir(dir vfs.NodeID, name string, mode uint32) vfs.NodeID {
	f.t.Helper()
	e, _, err := f.Mkdir(f.op, dir, name, &vfs.SetAttr{SetMode: true, Mode: mode})
	f.ok(err)
	return e.Node
}

func (f *fixture) lookup(dir vfs.NodeID, name string) vfs.Entry {
	f.t.Helper()
	e, err := f.Lookup(f.op, dir, name)
	f.ok(err)
	return e
}

func (f *fixture) getattr(n vfs.NodeID) (a vfs.Attr) {
	f.t.Helper()
	f.ok(f.GetAttr(f.op, n, &a))
	return a
}

func (f *fixture) write(n vfs.NodeID, off uint64, p []byte, how vfs.Stable) vfs.WriteResult {
	f.t.Helper()
	res, err := writeAs(f.Store, f.op, n, off, p, how)
	f.ok(err)
	if int(res.Count) != len(p) {
		f.t.Fatalf("wrote %d of %d bytes", res.Count, len(p))
	}
	return res
}

// writeAs writes p in two ranges, so that a page is put together from both.
func writeAs(s *Store, op *vfs.Op, n vfs.NodeID, off uint64, p []byte, how vfs.Stable) (res vfs.WriteResult, err error) {
	half := len(p) / 3
	v := vfs.Vec{Bufs: [][]byte{p[:half], nil, p[half:]}}
	err = s.Write(op, n, off, &v, how, &res)
	return res, err
}

// giveAs writes p from folios, which the file may keep, as a server receives it.
func giveAs(s *Store, op *vfs.Op, n vfs.NodeID, off uint64, p []byte, how vfs.Stable) (res vfs.WriteResult, err error) {
	fs := make([]*alloc.Folio, alloc.Pages(len(p)))
	if err := s.arena.AllocInto(op.Scope, gfp.Kernel, fs); err != nil {
		return res, err
	}
	v := vfs.Vec{Owner: s.arena}
	for _, f := range fs {
		b := s.arena.Bytes(f)
		b = b[:copy(b, p)]
		p = p[len(b):]
		v.Bufs, v.Pins = append(v.Bufs, b), append(v.Pins, f.Num())
	}
	err = s.Write(op, n, off, &v, how, &res)
	v.Release()
	return res, err
}

func (f *fixture) give(n vfs.NodeID, off uint64, p []byte, how vfs.Stable) {
	f.t.Helper()
	res, err := giveAs(f.Store, f.op, n, off, p, how)
	f.ok(err)
	if int(res.Count) != len(p) {
		f.t.Fatalf("wrote %d of %d bytes", res.Count, len(p))
	}
}

func (f *fixture) read(n vfs.NodeID, off uint64, count uint32) ([]byte, bool) {
	f.t.Helper()
	p, eof, err := readAs(f.Store, f.op, n, off, count)
	f.ok(err)
	return p, eof
}

func readAs(s *Store, op *vfs.Op, n vfs.NodeID, off uint64, count uint32) ([]byte, bool, error) {
	var v vfs.Vec
	var a vfs.Attr
	eof, err := s.Read(op, n, off, count, &v, &a)
	p := make([]byte, v.Len())
	v.CopyTo(p, 0)
	v.Release()
	return p, eof, err
}

// onBoth runs test on a disk file system, and on such that have no O_DIRECT, no
// disk at all, or no file handles.
func onBoth(t *testing.T, o options, test func(f *fixture)) {
	t.Run("disk", func(t *testing.T) { test(newFixture(t, o)) })
	t.Run("tmpfs", func(t *testing.T) {
		o := o
		o.dir = tmpfsDir(t, "size=256m")
		test(newFixture(t, o))
	})
	t.Run("buffered", func(t *testing.T) {
		f := newFixture(t, o)
		f.noDirect.Store(true)
		test(f)
	})
	t.Run("overlay", func(t *testing.T) { // no file handles
		o := o
		o.dir = overlayDir(t, nil)
		f := newFixture(t, o)
		if f.ids == nil {
			t.Fatal("an overlay without nfs_export has file handles")
		}
		test(f)
	})
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>8) ^ byte(i) ^ seed
	}
	return p
}

func (f *fixture) backing(name string) []byte {
	f.t.Helper()
	p, err := os.ReadFile(filepath.Join(f.dir, name))
	f.ok(err)
	return p
}

func TestDataGetsToTheBackingFile(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		for _, n := range []int{1, 4095, 4096, 4097, 12288, 100_001, 3 << 20} {
			name := "f" + string(rune('a'+n%26))
			node := f.create(vfs.RootID, name, 0o644)
			want := pattern(n, byte(n))
			for off := 0; off < n; off += 65536 {
				f.write(node, uint64(off), want[off:min(n, off+65536)], vfs.Unstable)
			}
			f.ok(f.Sync(f.op, node))
			if got := f.backing(name); !bytes.Equal(got, want) {
				f.t.Errorf("%d bytes: the backing file differs (it has %d)", n, len(got))
			}
			var got []byte
			for eof := false; !eof; {
				var p []byte
				p, eof = f.read(node, uint64(len(got)), 100_000)
				got = append(got, p...)
			}
			if !bytes.Equal(got, want) {
				f.t.Errorf("%d bytes: what is read differs", n)
			}
			_, err := f.Remove(f.op, vfs.RootID, name)
			f.ok(err)
			f.Forget(node, 1)
		}
	})
}

func TestStableWritesAreOnDiskWhenTheyReturn(t *testing.T) {
	onBoth(t, options{noStart: true}, func(f *fixture) {
		node := f.create(vfs.RootID, "f", 0o644)
		for i, how := range []vfs.Stable{vfs.DataSync, vfs.FileSync} {
			p := pattern(5000, byte(i+1))
			res := f.write(node, uint64(i*5000), p, how)
			if res.Stable != how {
				f.t.Errorf("asked for %d, got %d", how, res.Stable)
			}
			if got := f.backing("f")[i*5000:]; !bytes.Equal(got, p) {
				f.t.Errorf("stable %d: not in the backing file", how)
			}
		}
		f.write(node, 0, []byte("unstable"), vfs.Unstable)
		if bytes.HasPrefix(f.backing("f"), []byte("unstable")) {
			f.t.Error("nobody asked for unstable data to be written")
		}
		verf, w, err := f.Commit(f.op, node, 0, 0)
		f.ok(err)
		if verf != f.Verifier() || !w.HasPre || !w.HasPost || w.Post.Size != 10000 {
			f.t.Errorf("COMMIT returned %v %+v", verf, w)
		}
		if !bytes.HasPrefix(f.backing("f"), []byte("unstable")) {
			f.t.Error("COMMIT did not write")
		}
		f.Forget(node, 1)
	})
}

func TestFlusherWritesWithoutBeingAsked(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(9000, 1), vfs.Unstable)
	for f.bdi.Pages() > 0 {
		runtime.Gosched()
	}
	if got := f.backing("f"); !bytes.Equal(got, pattern(9000, 1)) {
		t.Error("what the flusher wrote differs")
	}
}

func TestShutdownWritesEverything(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	for _, name := range []string{"a", "b", "c"} {
		f.write(f.create(vfs.RootID, name, 0o644), 3, pattern(70_000, name[0]), vfs.Unstable)
	}
	f.ok(f.Shutdown())
	for _, name := range []string{"a", "b", "c"} {
		if !bytes.Equal(f.backing(name)[3:], pattern(70_000, name[0])) {
			t.Errorf("%s was not written", name)
		}
	}
}

func TestFlusherNeedsNoInodeLock(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(50_000, 1), vfs.Unstable)
	in, _ := f.inode(node)
	in.lock.Lock(nil, "")
	defer in.lock.Unlock(nil)
	f.bdi.WakeFlusher()
	for f.bdi.Pages() > 0 {
		runtime.Gosched()
	}
}

func TestBackingNeverGrowsPastTheSize(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		node := f.create(vfs.RootID, "f", 0o644)
		size := 0
		for i := range 200 {
			n := 1 + i*37%9000
			f.write(node, uint64(size), pattern(n, byte(i)), vfs.Unstable)
			size += n
			f.bdi.WakeFlusher()
			fi, err := os.Stat(filepath.Join(f.dir, "f"))
			f.ok(err)
			if fi.Size() > int64(size) {
				f.t.Fatalf("the backing file has %d bytes, the file %d", fi.Size(), size)
			}
		}
		f.ok(f.Sync(f.op, node))
	})
}

func TestHoles(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		node := f.create(vfs.RootID, "f", 0o644)
		f.write(node, 1<<20, []byte("end"), vfs.Unstable)
		f.write(node, 10, []byte("start"), vfs.Unstable)
		check := func() {
			p, eof := f.read(node, 0, 1<<20)
			if eof || len(p) != 1<<20 || !bytes.Equal(p[10:15], []byte("start")) || bytes.ContainsAny(p[15:], "startend") {
				f.t.Errorf("hole: %d bytes, eof %v", len(p), eof)
			}
			p, eof = f.read(node, 1<<20-1, 100)
			if !eof || string(p) != "\x00end" {
				f.t.Errorf("end: %q, eof %v", p, eof)
			}
		}
		check()
		f.ok(f.Sync(f.op, node))
		in, _ := f.inode(node)
		in.m.InvalidateClean()
		check()
		if p, eof := f.read(node, 1<<40, 10); len(p) != 0 || !eof {
			f.t.Errorf("past the end: %d bytes, eof %v", len(p), eof)
		}
	})
}

// Each of those who append at the same time gets a place of its own.
func TestAppend(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	const writers, each, size = 4, 300, 100
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			op := f.mem.newOp("writer")
			for range each {
				if _, err := writeAs(f.Store, op, node, vfs.AtEnd, bytes.Repeat([]byte{byte('a' + w)}, size), vfs.Unstable); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	f.ok(f.Sync(f.op, node))
	got := f.backing("f")
	if len(got) != writers*each*size {
		t.Fatalf("%d bytes, want %d", len(got), writers*each*size)
	}
	for w := range writers {
		if n := bytes.Count(got, []byte{byte('a' + w)}); n != each*size {
			t.Errorf("%d bytes of writer %d, want %d", n, w, each*size)
		}
	}
}

func TestTooLarge(t *testing.T) {
	f := newFixture(t, options{dir: diskDir(t)})
	node := f.create(vfs.RootID, "f", 0o644)
	for _, off := range []uint64{1 << 62, 1<<63 - 1, 1<<64 - 2} {
		_, err := writeAs(f.Store, f.op, node, off, []byte("abc"), vfs.Unstable)
		f.wants(err, unix.EFBIG)
		_, err = f.SetAttr(f.op, node, &vfs.SetAttr{SetSize: true, Size: off})
		f.wants(err, unix.EFBIG)
	}
	if n := f.getattr(node).Size; n != 0 {
		t.Errorf("size %d", n)
	}
	// FSINFO has clients refuse what they could not write back.
	st, err := f.StatFS(f.op, node)
	f.ok(err)
	if st.MaxFile != 0 && st.MaxFile != 1<<63-1 {
		_, err = f.SetAttr(f.op, node, &vfs.SetAttr{SetSize: true, Size: st.MaxFile + 1})
		f.wants(err, unix.EFBIG)
	}
	_, err = f.SetAttr(f.op, node, &vfs.SetAttr{SetSize: true, Size: st.MaxFile})
	f.ok(err)
	_, err = f.SetAttr(f.op, node, &vfs.SetAttr{SetSize: true})
	f.ok(err)
	big := pattern(int(f.maxIO)+4096, 1)
	res, err := writeAs(f.Store, f.op, node, 5, big, vfs.Unstable)
	f.ok(err)
	if res.Count != f.maxIO {
		t.Errorf("a WRITE of %d bytes wrote %d, the limit is %d", len(big), res.Count, f.maxIO)
	}
}

// underWriteback puts the dirty pages of a file under write-back, as a flusher
// does, and returns what ends it.
func (f *fixture) underWriteback(node vfs.NodeID) (end func()) {
	f.t.Helper()
	in, err := f.inode(node)
	f.ok(err)
	fs := make([]*alloc.Folio, 64)
	fs = fs[:in.m.BeginWriteback(fs, ^uint64(0))]
	if len(fs) == 0 {
		f.t.Fatal("nothing is dirty")
	}
	return func() {
		in.m.EndWriteback(fs, pagecache.Clean)
		f.mem.arena.PutAll(fs)
	}
}

// mustWait runs call, which must not return before end was called.
func (f *fixture) mustWait(call func() error, end func()) {
	f.t.Helper()
	done := make(chan error)
	go func() { done <- call() }()
	select {
	case <-done:
		f.t.Error("it did not wait for write-back")
		end()
		return
	case <-time.After(50 * time.Millisecond):
	}
	end()
	f.ok(<-done)
}

func TestSyncCoversWhatIsWrittenDuringWriteBack(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, []byte("old"), vfs.Unstable)
	end := f.underWriteback(node)
	f.write(node, 0, []byte("new"), vfs.Unstable)
	f.mustWait(func() error { return f.Sync(f.op, node) }, end)
	if got := f.backing("f"); string(got) != "new" {
		t.Errorf("on disk after Sync: %q", got)
	}
}

func TestTruncationWaitsForWriteBack(t *testing.T) {
	for _, size := range []uint64{0, 100} { // drops the page, cuts it
		f := newFixture(t, options{noStart: true})
		node := f.create(vfs.RootID, "f", 0o644)
		f.write(node, 0, pattern(3000, 1), vfs.Unstable)
		end := f.underWriteback(node)
		f.mustWait(func() error {
			_, err := f.SetAttr(f.op, node, &vfs.SetAttr{SetSize: true, Size: size})
			return err
		}, end)
	}
}

func TestKswapdDoesNotWaitForADirectory(t *testing.T) {
	f := newFixture(t, options{})
	f.list(vfs.RootID, 0)
	in, _ := f.inode(vfs.RootID)
	page := in.dir.blocks[0].f
	page.Get()
	defer f.mem.arena.Put(page)
	in.lock.Lock(nil, "")
	sc := gfp.For(nil).Kswapd()
	if v := f.ReleaseFolio(in.m, page, sc, gfp.Kernel); v != pagecache.Busy {
		t.Errorf("a locked directory: %v", v)
	}
	in.lock.Unlock(nil)
	if v := f.mem.cache.Release(page, sc, gfp.NoFS); v != pagecache.Busy {
		t.Errorf("without FS: %v", v)
	}
	if v := f.mem.cache.Release(page, sc, gfp.Kernel); v != pagecache.Freed || page.Owner() != 0 {
		t.Errorf("a free directory: %v", v)
	}
	file := f.create(vfs.RootID, "f", 0o644)
	f.write(file, 0, []byte("dirty"), vfs.Unstable)
	fin, _ := f.inode(file)
	dirty := fin.m.Get(0)
	defer f.mem.arena.Put(dirty)
	if v := f.ReleaseFolio(fin.m, dirty, sc, gfp.Kernel); v != pagecache.Started {
		t.Errorf("a dirty page: %v", v)
	}
}
