package fusefs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
)

// stableWriters has n writers send FILE_SYNC WRITEs of size bytes, one after the
// other into one file, as a client with n slots does, until total were sent. It
// returns how many syncs of the file that took.
func stableWriters(f *fixture, node vfs.NodeID, n, size, total int) (syncs uint64) {
	in, err := f.inode(node)
	f.ok(err)
	before := in.syncs.group().count()
	data := pattern(size, 3)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range n {
		op := f.mem.newOp("writer")
		op.Scope = gfp.For(op.Scope.Task()).Memalloc().LocalThrottle()
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(total); i = next.Add(1) - 1 {
				v := vfs.Vec{Bufs: [][]byte{data}}
				var res vfs.WriteResult
				if err := f.Write(op, node, uint64(i)*uint64(size), &v, vfs.FileSync, &res); err != nil || res.Stable != vfs.FileSync {
					f.t.Error(err, res.Stable)
				}
			}
		})
	}
	wg.Wait()
	return in.syncs.group().count() - before
}

func (g *syncGroup) count() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.started
}

func BenchmarkStableWriters64K(b *testing.B) { benchStable(b, 64<<10) }
func BenchmarkStableWriters1M(b *testing.B)  { benchStable(b, 1<<20) }

// benchStable measures 16 writers of one file, as a client sends WRITEs when
// memory is short.
func benchStable(b *testing.B, size int) {
	f := newFixture(b, options{bytes: 16 << 20})
	node := f.create(vfs.RootID, "f", 0o644)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	syncs := stableWriters(f, node, 16, size, b.N)
	b.ReportMetric(float64(syncs)/float64(b.N), "syncs/op")
}

// Those who want one file synced while a sync of it runs share the next one.
func TestStableWritersShareASync(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	in, err := f.inode(node)
	f.ok(err)
	const writers = 16
	g := in.syncs.group()
	g.mu.Lock()
	g.running = true // a sync that takes its time
	g.started++
	before := g.started
	g.mu.Unlock()
	syncs := make(chan uint64)
	go func() { syncs <- stableWriters(f, node, writers, 64<<10, writers) }()
	for waiting := 0; waiting < writers; time.Sleep(time.Millisecond) {
		waiting = 0
		for _, w := range f.mem.graph.Waits() {
			if strings.Contains(w, "the sync of inode") {
				waiting++
			}
		}
	}
	g.mu.Lock()
	g.running, g.done = false, before
	g.cond.Broadcast()
	g.mu.Unlock()
	if n := <-syncs; n != 1 {
		t.Errorf("%d WRITEs took %d syncs", writers, n)
	}
	if got, err := os.ReadFile(filepath.Join(f.dir, "f")); err != nil || !bytes.Equal(got, bytes.Repeat(pattern(64<<10, 3), writers)) {
		t.Errorf("on disk are %d bytes, %v", len(got), err)
	}
}

// A FILE_SYNC WRITE is on the disk without a flusher, and is not held up by
// dirty pages of others.
func TestStableWriteDoesNotWaitForOthers(t *testing.T) {
	f := newFixture(t, options{bytes: 4 << 20, noStart: true})
	big, small := f.create(vfs.RootID, "big", 0o644), f.create(vfs.RootID, "small", 0o644)
	thresh, _ := f.mem.dom.Thresholds()
	in, err := f.inode(big)
	f.ok(err)
	cancelled := f.mem.newOp("impatient") // it is not throttled, though it should be
	gone := make(chan struct{})
	for off := uint64(0); f.mem.dom.Pages() < thresh; off += 64 << 10 {
		v := vfs.Vec{Bufs: [][]byte{pattern(64<<10, 1)}}
		var res vfs.WriteResult
		if f.mem.dom.Pages()+16 >= thresh {
			cancelled.Cancel = gone
			go func() {
				for now, _ := f.mem.dom.Throttled(); now == 0; now, _ = f.mem.dom.Throttled() {
					time.Sleep(time.Millisecond)
				}
				close(gone)
			}()
		}
		f.ok(f.Write(cancelled, big, off, &v, vfs.Unstable, &res))
	}
	f.write(small, 0, pattern(64<<10, 2), vfs.FileSync)
	if got, err := os.ReadFile(filepath.Join(f.dir, "small")); err != nil || !bytes.Equal(got, pattern(64<<10, 2)) {
		t.Errorf("on disk are %d bytes, %v", len(got), err)
	}
	if n := in.m.Nr(pagecache.Dirty); n < thresh {
		t.Errorf("only %d pages of the other file are dirty: the test tests nothing", n)
	}
}

// Without O_DIRECT everything goes through the kernel's page cache, and is as
// durable.
func TestBuffered(t *testing.T) {
	f := newFixture(t, options{buffered: true})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(1<<20, 5), vfs.FileSync)
	in, err := f.inode(node)
	f.ok(err)
	if in.fds.get(fdDirect) >= 0 {
		t.Error("the file is open with O_DIRECT")
	}
	if n := residentPages(t, filepath.Join(f.dir, "f")); n == 0 {
		t.Error("nothing went through the page cache")
	}
	if got, err := os.ReadFile(filepath.Join(f.dir, "f")); err != nil || !bytes.Equal(got, pattern(1<<20, 5)) {
		t.Errorf("on disk are %d bytes, %v", len(got), err)
	}
}

// residentPages returns how many pages of a file the kernel has cached.
func residentPages(t *testing.T, name string) (n int) {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	vec := make([]byte, (len(mem)+4095)/4096)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}

// A sync waits for the pages that a flusher takes while it writes others itself.
func TestSyncWaitsForPagesThatAFlusherTakesMeanwhile(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	for i := range maxRuns + 1 {
		f.write(node, uint64(2*i*alloc.PageSize), pattern(alloc.PageSize, byte(i)), vfs.Unstable)
	}
	in, err := f.inode(node)
	f.ok(err)
	in.am.Lock() // the sync takes all pages but one, and has to wait before it writes them
	synced := make(chan error, 1)
	go func() { synced <- f.Sync(f.mem.newOp("sync"), node) }()
	for in.m.Nr(pagecache.Writeback) == 0 {
		time.Sleep(time.Millisecond)
	}
	end := f.underWriteback(node)
	in.am.Unlock()
	select {
	case err := <-synced:
		t.Errorf("the sync has ended (%v), and a page is still on its way to the disk", err)
	case <-time.After(200 * time.Millisecond):
	}
	end()
	if !t.Failed() {
		f.ok(<-synced)
	}
}

// A sync that cannot be carried out for now has told nobody of what is lost: who tries again is.
func TestLossIsToldByTheSyncThatEnds(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	in, err := f.inode(node)
	f.ok(err)
	op := f.mem.newOp("fsync")
	op.File = &vfs.File{}
	f.ok(f.Open(op, node, true))
	defer f.Close(node)
	f.write(node, 0, pattern(8192, 1), vfs.Unstable) // wants a descriptor with O_DIRECT
	f.afterLoss(in, unix.EIO)
	var was unix.Rlimit
	f.ok(unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	f.fds.closeIdle()
	f.ok(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}))
	err = f.Sync(op, node)
	f.ok(unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	f.wants(err, vfs.ErrJukebox)
	f.wants(f.Sync(op, node), unix.EIO)
	f.ok(f.Sync(op, node))
}
