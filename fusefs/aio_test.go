package fusefs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
)

// directFile returns a file on a disk, open for O_DIRECT, with nothing but zeros in it.
func directFile(t *testing.T, pages int) (path string, fd int) {
	t.Helper()
	path = filepath.Join(diskDir(t), "f")
	if err := os.WriteFile(path, make([]byte, pages*alloc.PageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no O_DIRECT here: ", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return path, fd
}

func always() error { return nil }

// needAIO fills the store's pool, and skips the test if there is no AIO.
func (f *fixture) needAIO() {
	f.t.Helper()
	f.aio.filling.Wait()
	if len(f.aio.free) == 0 {
		f.t.Skip("no AIO with ", f.fsType)
	}
}

func TestAIO(t *testing.T) {
	path, fd := directFile(t, 8)
	mem, err := unix.Mmap(-1, 0, 4*alloc.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	copy(mem, pattern(len(mem), 7))
	page := func(i int) []unix.Iovec {
		return []unix.Iovec{{Base: &mem[i*alloc.PageSize], Len: alloc.PageSize}}
	}
	a := newAIO()
	if a == nil {
		t.Skip("no io_setup here")
	}
	defer a.end()
	const untouched = -77
	got := []int64{untouched, untouched, untouched, untouched}
	a.add(0, fd, page(0), 0)
	a.add(1, fd, page(1), 4*alloc.PageSize)
	a.add(2, -1, page(2), 2*alloc.PageSize) // the kernel takes neither this
	a.add(3, fd, page(3), 3*alloc.PageSize) // nor what comes after
	a.run(got, always)
	a.clear()
	if got[0] != alloc.PageSize || got[1] != alloc.PageSize || got[2] != untouched || got[3] != untouched {
		t.Errorf("written: %v", got)
	}
	want := make([]byte, 8*alloc.PageSize)
	copy(want, mem[:alloc.PageSize])
	copy(want[4*alloc.PageSize:], mem[alloc.PageSize:2*alloc.PageSize])
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
		t.Errorf("the file has something else in it: %v", err)
	}
	// What fails later, or is cut short, is told, and it can be used again.
	a.add(0, fd, page(0), 1<<62)
	a.add(1, fd, page(2), 2*alloc.PageSize)
	a.run(got, always)
	a.clear()
	if got[0] > 0 || got[1] != alloc.PageSize {
		t.Errorf("written the second time: %v", got)
	}
	got[0] = untouched
	a.add(0, fd, page(0), 0)
	a.run(got, func() error { return errNotHeld })
	a.clear()
	if got[0] != untouched {
		t.Errorf("written without the right to: %v", got)
	}
}

// Pages that are not adjacent get to the backing file, whether the device gets them at once
// or not.
func TestScatteredPages(t *testing.T) {
	const pages = 3*maxRuns + 1
	for name, prepare := range map[string]func(f *fixture, in *inode){
		"at once": func(f *fixture, _ *inode) { f.needAIO() },
		"none left": func(f *fixture, _ *inode) {
			f.aio.filling.Wait()
			for f.aio.get() != nil {
			}
		},
		"refused": func(f *fixture, in *inode) {
			fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
			f.ok(err)
			f.fds.pin(in, fdDirect)
			f.fds.install(in, fdDirect, fd)
			f.fds.release(in)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, options{})
			node := f.create(vfs.RootID, "f", 0o644)
			in, err := f.inode(node)
			f.ok(err)
			want := make([]byte, 2*pages*alloc.PageSize+100)
			f.write(node, uint64(len(want))-1, []byte{0}, vfs.FileSync)
			prepare(f, in)
			for i := range pages {
				p := pattern(alloc.PageSize, byte(i))
				copy(want[2*i*alloc.PageSize:], p)
				f.write(node, uint64(2*i*alloc.PageSize), p, vfs.Unstable)
			}
			copy(want[len(want)-50:], pattern(50, 9)) // the last page is not a whole one
			f.write(node, uint64(len(want)-50), pattern(50, 9), vfs.Unstable)
			f.ok(f.Sync(f.op, node))
			if !bytes.Equal(f.backing("f"), want) {
				t.Error("the backing file has something else in it")
			}
			if direct := !f.noDirect.Load(); direct != (name != "refused") {
				t.Errorf("written past the page cache: %v", direct)
			}
		})
	}
}

// What the device is given at once is what is left of it to be written.
func TestStoreAtOnce(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	f.startAIO(1)
	f.needAIO()
	node := f.create(vfs.RootID, "f", 0o644)
	in, err := f.inode(node)
	f.ok(err)
	const size = 4*alloc.PageSize + 10
	f.write(node, size-1, []byte{0}, vfs.FileSync)
	f.write(node, 0, pattern(alloc.PageSize, 1), vfs.Unstable)
	f.write(node, 2*alloc.PageSize, pattern(alloc.PageSize, 2), vfs.Unstable)
	f.write(node, 4*alloc.PageSize, pattern(10, 3), vfs.Unstable)
	b := f.scratch.get()
	defer f.scratch.put(b)
	fs := b.fs[:3]
	for i := range fs {
		if in.m.BeginWriteback(fs[i:i+1], ^uint64(0)) != 1 {
			t.Fatal("not dirty")
		}
		b.runs = append(b.runs, i+1)
	}
	f.storeAtOnce(in, b, fs, size)
	if b.got[0] != alloc.PageSize || b.got[1] != alloc.PageSize || b.got[2] != 0 {
		t.Errorf("written: %v, want two whole pages", b.got)
	}
	in.m.EndWriteback(fs, pagecache.Dirty)
	f.mem.arena.PutAll(fs)
	clear(fs)
	b.runs = b.runs[:0]
	f.ok(f.Sync(f.op, node))
	want := make([]byte, size)
	copy(want, pattern(alloc.PageSize, 1))
	copy(want[2*alloc.PageSize:], pattern(alloc.PageSize, 2))
	copy(want[4*alloc.PageSize:], pattern(10, 3))
	if !bytes.Equal(f.backing("f"), want) {
		t.Error("the backing file has something else in it")
	}
}

// What is said to have been written for one run, but not all of it, is written again.
func TestShortAIO(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	in, err := f.inode(node)
	f.ok(err)
	for _, got := range []int64{-int64(unix.EIO), 0, 512, 2*alloc.PageSize - 512} {
		want := pattern(2*alloc.PageSize, byte(got))
		f.write(node, 0, want, vfs.Unstable)
		b := f.scratch.get()
		fs := b.fs[:in.m.BeginWriteback(b.fs[:2], ^uint64(0))]
		fd, err := f.acquire(in, fdWrite)
		f.ok(err)
		n, err := f.storeRun(in, fd, b, fs, uint64(len(want)), got)
		f.fds.release(in)
		if n != 2 || err != nil || !bytes.Equal(f.backing("f"), want) {
			t.Errorf("after %d: %d pages, %v", got, n, err)
		}
		in.m.EndWriteback(fs, pagecache.Clean)
		f.mem.arena.PutAll(fs)
		clear(fs)
		f.scratch.put(b)
	}
}

// A sync waits for one who was writing when it began, and not for who comes later.
func TestSyncGathers(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	in, err := f.inode(node)
	f.ok(err)
	g, task := in.syncs.group(), f.op.Scope.Task()
	g.begin(task, in)
	synced := make(chan error, 1)
	op := f.mem.newOp("sync")
	go func() { synced <- f.Sync(op, node) }()
	for running := false; !running; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		running = g.running
		g.mu.Unlock()
	}
	g.begin(task, in) // too late
	select {
	case err := <-synced:
		t.Fatalf("it has ended (%v) without one who was writing", err)
	case <-time.After(50 * time.Millisecond):
	}
	g.mu.Lock()
	if g.started != 0 {
		t.Error("it has begun without one who was writing")
	}
	g.arrive(task, in)
	g.mu.Unlock()
	f.ok(<-synced)
	g.mu.Lock()
	g.arrive(task, in)
	g.mu.Unlock()
}
