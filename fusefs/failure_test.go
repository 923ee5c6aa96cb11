package fusefs

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
)

// loopDir mounts a new ext4 file system of some MiB from a file.
func loopDir(t testing.TB, mib string) string {
	t.Helper()
	needRoot(t)
	dir := diskDir(t)
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	run(t, "truncate", "-s", mib+"M", img)
	run(t, "mkfs.ext4", "-q", "-m", "0", img)
	mountLoop(t, img, mnt)
	return mnt
}

func mountLoop(t testing.TB, img, mnt string) {
	t.Helper()
	run(t, "mkdir", mnt)
	run(t, "mount", "-o", "loop", img, mnt)
	t.Cleanup(func() { _ = exec.Command("umount", mnt).Run() })
}

// run runs what needs a machine that has loop devices.
func run(t testing.TB, arg ...string) {
	t.Helper()
	if out, err := exec.Command(arg[0], arg[1:]...).CombinedOutput(); err != nil {
		t.Skipf("no loop mount here: %v: %v: %s", arg, err, out)
	}
}

// TestAcknowledgedIsOnTheDisk takes the disk away at the moment of an answer: a
// copy of the image behind the loop device holds what the disk was given so far.
func TestAcknowledgedIsOnTheDisk(t *testing.T) {
	dir := loopDir(t, "32")
	img := filepath.Join(filepath.Dir(dir), "img")
	f := newFixture(t, options{dir: dir})
	acks := map[string]func(n vfs.NodeID){
		"commit":    func(n vfs.NodeID) { _, _, err := f.Commit(f.op, n, 0, 0); f.ok(err) },
		"sync":      func(n vfs.NodeID) { f.ok(f.Sync(f.op, n)) },
		"file sync": func(n vfs.NodeID) { f.write(n, 0, pattern(1, 'x'), vfs.FileSync) },
		"data sync": func(n vfs.NodeID) { f.write(n, 0, pattern(1, 'x'), vfs.DataSync) },
	}
	for name, ack := range acks {
		node := f.create(vfs.RootID, name, 0o644)
		f.ok(f.Sync(f.op, vfs.RootID))
		want := pattern(300_001, 'x')
		f.write(node, 0, want, vfs.Unstable)
		ack(node)
		mtime := f.getattr(node).Mtime
		snap := filepath.Join(filepath.Dir(dir), "snap-"+name)
		run(t, "cp", img, snap)
		mnt := snap + "-mnt"
		mountLoop(t, snap, mnt)
		got, err := os.ReadFile(filepath.Join(mnt, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: after the power failed there are %d bytes, want %d: %v", name, len(got), len(want), err)
		}
		var st unix.Stat_t
		f.ok(unix.Stat(filepath.Join(mnt, name), &st))
		if name != "data sync" && timeOf(st.Mtim) != mtime {
			t.Errorf("%s: mtime %v, want %v", name, timeOf(st.Mtim), mtime)
		}
	}
}

// TestDirectRefused gives an inode a descriptor that refuses what it is given
// with EINVAL, as a file system without O_DIRECT does.
func TestDirectRefused(t *testing.T) {
	var log bytes.Buffer
	f := newFixture(t, options{noStart: true, log: &log})
	for _, name := range []string{"a", "b"} {
		node := f.create(vfs.RootID, name, 0o644)
		f.write(node, 0, pattern(10_000, 1), vfs.Unstable)
		in, _ := f.inode(node)
		fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		f.ok(err)
		f.fds.pin(in, fdDirect)
		f.fds.install(in, fdDirect, fd)
		f.fds.release(in)
		f.ok(f.Sync(f.op, node))
		if !bytes.Equal(f.backing(name), pattern(10_000, 1)) {
			t.Error("the data is not in the backing file")
		}
	}
	if n := strings.Count(log.String(), "O_DIRECT"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
}

// Where the file ends, which may be far away, does not matter to what is done about
// pages in memory.
func TestLossInAHugeFile(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	const far = 1 << 43
	f.write(node, far, pattern(10_000, 1), vfs.FileSync)
	in, err := f.inode(node)
	f.ok(err)
	verf := f.Verifier()
	done := make(chan struct{})
	go func() {
		f.afterLoss(in, unix.EIO)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		in.m.Truncate(0)
		<-done
		t.Fatal("it took 10 s")
	}
	if n := in.m.Nr(pagecache.Dirty); n != 3 || f.Verifier() == verf {
		t.Errorf("%d pages are written again, want 3; verifier %v, was %v", n, f.Verifier(), verf)
	}
}

// What is under write-back may have reached the kernel before the sync that lost it:
// it is written again, too, or whoever syncs next is told that it is on the disk.
func TestLossDuringWriteBack(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, []byte("text"), vfs.Unstable)
	in, err := f.inode(node)
	f.ok(err)
	end := f.underWriteback(node)
	f.afterLoss(in, unix.EIO)
	end()
	if in.m.Nr(pagecache.Dirty) != 1 {
		t.Error("the page is not written again")
	}
	f.ok(f.Sync(f.op, node))
	if got := f.backing("f"); string(got) != "text" {
		t.Errorf("on disk after Sync: %q", got)
	}
}

// Who has the file open is told by the next sync, each of them once. NFS has the verifier.
func TestLossIsTold(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	in, err := f.inode(node)
	f.ok(err)
	open := func() *vfs.Op {
		op := f.mem.newOp("open")
		op.File = &vfs.File{}
		f.ok(f.Open(op, node, true))
		t.Cleanup(func() { f.Close(node) })
		return op
	}
	one, two := open(), open()
	f.afterLoss(in, unix.EIO)
	f.ok(f.Sync(f.op, node))
	for _, op := range []*vfs.Op{one, two} {
		f.wants(f.Sync(op, node), unix.EIO)
		f.ok(f.Sync(op, node))
	}
	f.ok(f.Sync(open(), node))
}

// Data that could not be written, as somebody had moved the file away for a while, is told of
// when it is back.
func TestLossWhileTheFileWasAway(t *testing.T) {
	f := tableFixture(t, nil)
	node := f.create(vfs.RootID, "f", 0o644)
	in, err := f.inode(node)
	f.ok(err)
	f.write(node, 0, []byte("text"), vfs.Unstable)
	f.fds.drop(in)
	f.ok(os.Rename(f.path("f"), f.path("away")))
	f.ok(f.writeDirty(f.op.Scope, in))
	f.ok(os.Rename(f.path("away"), f.path("f")))
	f.op.File = &vfs.File{}
	f.ok(f.Open(f.op, node, true))
	defer f.Close(node)
	f.wants(f.Sync(f.op, node), unix.EIO)
}

// A stable WRITE is not answered if a sync has failed since it began, even if its own
// is good: its pages may have been written by others, lost, and freed by then.
func TestLossDuringStableWrite(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	in, err := f.inode(node)
	f.ok(err)
	before := in.syncs.failures()
	f.write(node, 0, []byte("text"), vfs.Unstable)
	f.ok(f.Sync(f.op, node)) // by somebody else
	g := in.syncs.group()
	g.mu.Lock()
	g.failed, g.err = g.started, unix.EIO
	g.mu.Unlock()
	f.wants(f.syncSince(f.op.Scope, in, true, before), unix.EIO)
	f.ok(f.Sync(f.op, node)) // what was written before it begins has a verifier
}

// onFull runs test on two file systems with some room, which more gives.
func onFull(t *testing.T, o options, test func(f *fixture, makeRoom func())) {
	t.Run("tmpfs", func(t *testing.T) {
		o := o
		o.dir = tmpfsDir(t, "size=2m")
		f := newFixture(t, o)
		test(f, func() { f.ok(unix.Mount("none", o.dir, "tmpfs", unix.MS_REMOUNT, "size=64m")) })
	})
	t.Run("ext4", func(t *testing.T) {
		o := o
		o.dir = loopDir(t, "32")
		ballast := filepath.Join(o.dir, "ballast")
		var sf unix.Statfs_t
		if err := unix.Statfs(o.dir, &sf); err != nil {
			t.Fatal(err)
		}
		fill := make([]byte, int64(sf.Bavail)*sf.Bsize-2<<20)
		if err := os.WriteFile(ballast, fill, 0o600); err != nil {
			t.Fatal(err)
		}
		unix.Sync()
		f := newFixture(t, o)
		test(f, func() { f.ok(os.Remove(ballast)) })
	})
}

func TestNoSpace(t *testing.T) {
	onFull(t, options{noStart: true}, func(f *fixture, makeRoom func()) {
		node := f.create(vfs.RootID, "f", 0o644)
		want := pattern(3<<20, 1)
		verf := f.write(node, 0, want[:1<<20], vfs.Unstable).Verifier
		f.write(node, 1<<20, want[1<<20:2<<20], vfs.Unstable)
		f.write(node, 2<<20, want[2<<20:], vfs.Unstable)
		f.wants(f.Sync(f.op, node), unix.ENOSPC)
		after, _, err := f.Commit(f.op, node, 0, 0)
		f.wants(err, unix.ENOSPC)
		if after == verf {
			f.t.Error("the verifier is the same after data could not be written")
		}
		res, err := writeAs(f.Store, f.op, node, 0, []byte("more"), vfs.FileSync)
		f.wants(err, unix.ENOSPC)
		if res.Count != 0 {
			f.t.Errorf("%d bytes are said to be stable", res.Count)
		}
		if p, _ := f.read(node, 2<<20, 1<<20); !bytes.Equal(p, want[2<<20:]) {
			f.t.Error("data that could not be written is not readable")
		}
		makeRoom()
		f.ok(f.Sync(f.op, node))
		if !bytes.Equal(f.backing("f"), want) {
			f.t.Error("the data is wrong after there was room again")
		}
		f.write(node, 0, []byte("more"), vfs.FileSync)
	})
}

func TestNoSpaceDoesNotHangWriters(t *testing.T) {
	onFull(t, options{bytes: 4 << 20, lenient: true}, func(f *fixture, makeRoom func()) {
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b", "c"} {
			node := f.create(vfs.RootID, name, 0o644)
			wg.Go(func() {
				op := f.mem.newOp(name)
				for off := uint64(0); ; off += 64 << 10 {
					_, err := writeAs(f.Store, op, node, off, pattern(64<<10, 1), vfs.Unstable)
					if errors.Is(err, unix.ENOSPC) {
						return
					}
					if err != nil || off > 64<<20 {
						f.t.Errorf("%s: %v at %d", name, err, off)
						return
					}
				}
			})
		}
		wg.Wait()
		if f.failing.Load() == 0 {
			f.t.Error("nothing failed")
		}
		// It does not spin meanwhile.
		tries := func() (n uint64) {
			for _, in := range f.nodes.all() {
				n += in.writeFail.seq.Load()
			}
			return n
		}
		before := tries()
		for i := 0; i < 200; i++ {
			f.bdi.WakeFlusher()
			time.Sleep(time.Millisecond)
		}
		if n := tries() - before; n > 12 {
			f.t.Errorf("%d attempts in 0.2 s", n)
		}
		// And it goes on by itself when there is room.
		makeRoom()
		done := func() bool { return f.bdi.Pages() == 0 && f.failing.Load() == 0 }
		for end := time.Now().Add(20 * time.Second); !done() && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if !done() {
			f.t.Errorf("%d pages are still dirty, %d inodes fail", f.bdi.Pages(), f.failing.Load())
		}
	})
}

// An export whose disk is full takes a part of the memory that all share, and its writers are
// refused then; those of others go on.
func TestFullDiskSparesOtherExports(t *testing.T) {
	f := newFixture(t, options{})
	small := tmpfsDir(t, "size=1m")
	full, err := NewStore(StoreConfig{
		Dir: small, Cache: f.mem.cache, Domain: f.mem.dom, Graph: f.mem.graph, StateDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler),
	})
	f.ok(err)
	f.mem.rec.AddDevice(full.BDI())
	full.Start()
	t.Cleanup(func() {
		f.ok(unix.Mount("none", small, "tmpfs", unix.MS_REMOUNT, "size=64m"))
		f.ok(full.Shutdown())
	})
	other := &fixture{Store: full, t: t, mem: f.mem, dir: small, op: f.mem.newOp("full")}
	refused := false
	for i := 0; i < 500 && !refused; i++ { // each file until its own data cannot be written
		node := other.create(vfs.RootID, strconv.Itoa(i), 0o644)
		for off, err := uint64(0), error(nil); err == nil && off < 1<<20; off += 64 << 10 {
			_, err = writeAs(full, other.op, node, off, pattern(64<<10, 1), vfs.Unstable)
			refused = off == 0 && errors.Is(err, unix.ENOSPC)
		}
	}
	if !refused {
		t.Errorf("a new file is not refused while %d pages cannot be written", f.mem.dom.Stuck())
	}
	if stuck, total := f.mem.dom.Stuck(), f.arena.Total(); stuck == 0 || stuck > total/2 {
		t.Errorf("%d of %d pages cannot be written", stuck, total)
	}
	writeMuch(t, f, "good", 8<<20)
}

// A disk that does not answer keeps only what was written to it.
func TestHungDiskSparesOtherExports(t *testing.T) {
	f := newFixture(t, options{})
	dir := diskDir(t)
	hung, err := NewStore(StoreConfig{ // not started: nothing is written
		Dir: dir, Cache: f.mem.cache, Domain: f.mem.dom, Graph: f.mem.graph, StateDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler),
	})
	f.ok(err)
	f.mem.rec.AddDevice(hung.BDI())
	t.Cleanup(func() { f.ok(hung.Shutdown()) })
	other := &fixture{Store: hung, t: t, mem: f.mem, dir: dir, op: f.mem.newOp("hung")}
	node := other.create(vfs.RootID, "a", 0o644)
	cancel, ended := make(chan struct{}), make(chan struct{})
	other.op.Cancel = cancel
	go func() {
		defer close(ended)
		for off, err := uint64(0), error(nil); err == nil && off < 8<<20; off += 64 << 10 {
			_, err = writeAs(hung, other.op, node, off, pattern(64<<10, 1), vfs.Unstable)
		}
	}()
	for n := 0; n == 0; time.Sleep(time.Millisecond) {
		n, _ = f.mem.dom.Throttled()
	}
	writeMuch(t, f, "good", 8<<20)
	close(cancel)
	<-ended
}

// writeMuch overwrites a file of that size, more than may be dirty, and fails the test if that
// takes long, or is refused.
func writeMuch(t *testing.T, f *fixture, name string, size uint64) {
	e, _, err := f.Create(f.op, vfs.RootID, name, vfs.Unchecked, &vfs.SetAttr{SetMode: true, Mode: 0o644}, vfs.Verifier{})
	f.ok(err)
	if pages := int(size >> alloc.PageShift); pages < f.arena.Total()/5 {
		t.Fatalf("all of %d pages may be dirty", pages)
	}
	op := f.mem.newOp(name)
	done := make(chan error, 1)
	go func() {
		var err error
		for off := uint64(0); off < 4*size && err == nil; off += 64 << 10 {
			_, err = writeAs(f.Store, op, e.Node, off%size, pattern(64<<10, 1), vfs.Unstable)
		}
		done <- err
	}()
	select {
	case err := <-done:
		f.ok(err)
	case <-time.After(20 * time.Second):
		t.Fatalf("%s waits for %d pages, %d cannot be written", name, f.mem.dom.Pages(), f.mem.dom.Stuck())
	}
}

// A file that cannot be written stands in the way of no other, even of the same disk.
func TestOneBadFileSparesOthers(t *testing.T) {
	f := newFixture(t, options{dir: tmpfsDir(t, "size=6m")})
	good := f.create(vfs.RootID, "good", 0o644)
	const size = 5 << 20
	for off := uint64(0); off < size; off += 64 << 10 {
		f.write(good, off, pattern(64<<10, 2), vfs.FileSync)
	}
	for i := range 200 { // more than a flusher looks at in vain
		node := f.create(vfs.RootID, "bad"+strconv.Itoa(i), 0o644)
		_, _ = writeAs(f.Store, f.op, node, 0, pattern(8<<10, 1), vfs.Unstable)
	}
	for end := time.Now().Add(20 * time.Second); f.failing.Load() <= maxVain; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files fail", f.failing.Load())
		}
	}
	writeMuch(t, f, "good", size)
	f.ok(unix.Mount("none", f.dir, "tmpfs", unix.MS_REMOUNT, "size=64m"))
}

// However many write at once to a full disk, there is memory for readers.
func TestBurstOnFullDisk(t *testing.T) {
	onFull(t, options{bytes: 16 << 20}, func(f *fixture, makeRoom func()) {
		most := int(f.maxIO)
		small := f.create(vfs.RootID, "small", 0o644)
		f.write(small, 0, pattern(most, 1), vfs.FileSync)
		in, err := f.inode(small)
		f.ok(err)
		in.m.InvalidateClean()
		start, cancel := make(chan struct{}), make(chan struct{})
		var all sync.WaitGroup
		for i := range 24 << 20 / most {
			node := f.create(vfs.RootID, strconv.Itoa(i), 0o644)
			op := f.mem.newOp(strconv.Itoa(i))
			op.Cancel = cancel
			all.Go(func() {
				p := pattern(most, 1)
				<-start
				for err := error(nil); err == nil; {
					_, err = writeAs(f.Store, op, node, 0, p, vfs.Unstable)
				}
			})
		}
		close(start)
		peak := 0
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			peak = max(peak, f.bdi.Pages())
		}
		if total := f.arena.Total(); peak > total/2 {
			f.t.Errorf("%d of %d pages were not clean", peak, total)
		}
		done := make(chan error, 1)
		go func() {
			_, _, err := readAs(f.Store, f.mem.newOp("reader"), small, 0, uint32(most))
			done <- err
		}()
		select {
		case err := <-done:
			f.ok(err)
		case <-time.After(10 * time.Second):
			f.t.Error("a READ finds no memory")
		}
		close(cancel)
		makeRoom()
		all.Wait()
	})
}

// One page cannot be written; what became dirty after it is, by COMMIT and at the end.
func TestBadPageSparesOthers(t *testing.T) {
	for _, atEnd := range []bool{false, true} {
		dir, chattr := ext4WithSmallFiles(t)
		f := newFixture(t, options{dir: dir, lenient: true, noStart: true})
		node := f.create(vfs.RootID, "f", 0o644)
		chattr("f")
		in, err := f.inode(node)
		f.ok(err)
		in.maxSeen.Store(1 << 40) // as if the file had become smaller than it was allowed to be
		f.write(node, 20<<30, pattern(4096, 1), vfs.Unstable)
		want := pattern(100<<10, 3)
		f.write(node, 0, want, vfs.Unstable)
		if atEnd {
			if err := f.Shutdown(); err == nil || !strings.Contains(err.Error(), "1 pages") {
				t.Errorf("shutdown: %v", err)
			}
		} else {
			f.wants(f.Sync(f.op, node), unix.EFBIG)
			if n := f.bdi.Pages(); n != 1 {
				t.Errorf("%d pages are dirty", n)
			}
		}
		if got := f.backing("f")[:len(want)]; !bytes.Equal(got, want) {
			t.Error("what the disk can take is not there")
		}
		f.ok(os.Remove(f.path("f")))
	}
}

// ext4WithSmallFiles returns an ext4, and what makes the files in it as small as those of ext3:
// at most 16 GiB.
func ext4WithSmallFiles(t *testing.T) (dir string, chattr func(name string)) {
	needRoot(t)
	base := diskDir(t)
	img, dir := filepath.Join(base, "img"), filepath.Join(base, "mnt")
	run(t, "truncate", "-s", "64M", img)
	run(t, "mkfs.ext4", "-q", "-m", "0", "-b", "1024", img)
	mountLoop(t, img, dir)
	return dir, func(name string) { run(t, "chattr", "-e", filepath.Join(dir, name)) }
}

// Files of one file system do not all have the same limit.
func TestTooLargeForThisFile(t *testing.T) {
	dir, chattr := ext4WithSmallFiles(t)
	f := newFixture(t, options{dir: dir})
	old := f.create(vfs.RootID, "old", 0o644)
	chattr("old")
	const far = 20 << 30
	f.write(f.create(vfs.RootID, "new", 0o644), far, pattern(4096, 1), vfs.FileSync)
	_, err := writeAs(f.Store, f.op, old, far, pattern(4096, 1), vfs.Unstable)
	f.wants(err, unix.EFBIG)
	_, err = f.SetAttr(f.op, old, &vfs.SetAttr{SetSize: true, Size: far})
	f.wants(err, unix.EFBIG)
	f.write(old, 1<<30, pattern(4096, 1), vfs.FileSync)
}

func TestRemovingAFileThatCannotBeWrittenHelps(t *testing.T) {
	onFull(t, options{noStart: true}, func(f *fixture, _ func()) {
		node := f.create(vfs.RootID, "f", 0o644)
		for off := uint64(0); off < 3<<20; off += 1 << 20 {
			f.write(node, off, pattern(1<<20, 1), vfs.Unstable)
		}
		f.wants(f.Sync(f.op, node), unix.ENOSPC)
		_, err := f.Remove(f.op, vfs.RootID, "f")
		f.ok(err)
		if f.failing.Load() != 0 || f.bdi.Pages() != 0 {
			f.t.Errorf("%d inodes fail, %d pages are dirty", f.failing.Load(), f.bdi.Pages())
		}
		f.write(f.create(vfs.RootID, "g", 0o644), 0, pattern(100_000, 1), vfs.FileSync)
	})
}

func TestShutdownSaysWhatIsLost(t *testing.T) {
	onFull(t, options{noStart: true, lenient: true}, func(f *fixture, _ func()) {
		node := f.create(vfs.RootID, "f", 0o644)
		for off := uint64(0); off < 3<<20; off += 1 << 20 {
			f.write(node, off, pattern(1<<20, 1), vfs.Unstable)
		}
		err := f.Shutdown()
		f.wants(err, unix.ENOSPC)
		if err != nil && !strings.Contains(err.Error(), "pages are lost") {
			f.t.Errorf("shutdown says %q", err)
		}
	})
}

func TestReadOnlyBacking(t *testing.T) {
	dir := tmpfsDir(t, "")
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skip(err)
	}
	f := newFixture(t, options{dir: dir})
	e := f.lookup(vfs.RootID, "f")
	_, err := writeAs(f.Store, f.op, e.Node, 0, []byte("x"), vfs.Unstable)
	f.wants(err, unix.EROFS)
	if p, _ := f.read(e.Node, 0, 100); string(p) != "content" {
		t.Errorf("read %q", p)
	}
	if have, _ := f.Access(f.op, e.Node, all); have&(vfs.AccessModify|vfs.AccessExtend) != 0 {
		t.Errorf("access %#x", have)
	}
	_, _, err = f.Create(f.op, vfs.RootID, "g", vfs.Guarded, mode(0), vfs.Verifier{})
	f.wants(err, unix.EROFS)
}

func TestSyncsAreShared(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	var wg sync.WaitGroup
	const callers, each = 8, 50
	for i := range callers {
		wg.Go(func() {
			op := f.mem.newOp("syncer")
			for j := range each {
				if _, err := writeAs(f.Store, op, node, uint64(i*4096), []byte{byte(j)}, vfs.FileSync); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	in, _ := f.inode(node)
	if n := in.syncs.group().done; n >= callers*each {
		t.Errorf("%d syncs for %d callers: none was shared", n, callers*each)
	}
	before := in.syncs.group().data
	f.ok(f.Sync(f.op, node))
	if in.changes.Load() != before || in.syncs.group().data != before {
		t.Error("a sync with nothing to do did something")
	}
}

// Who opens a directory after the loss was told is not told of it.
func TestDirectorySyncTellsOnce(t *testing.T) {
	m := mountTest(t, nil)
	s := m.FS.(*Store)
	in, err := s.inode(vfs.RootID)
	if err != nil {
		t.Fatal(err)
	}
	s.afterLoss(in, unix.EIO)
	sync := func() error { return exec.Command("sync", m.dir).Run() }
	if sync() == nil {
		t.Error("the first one was not told")
	}
	for range 3 {
		if sync() != nil {
			t.Error("who opened it later was told, too")
		}
	}
}
