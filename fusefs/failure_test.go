package fusefs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// loopDir mounts a new ext4 file system of some MiB from a file.
func loopDir(t testing.TB, mib string) string {
	t.Helper()
	needRoot(t)
	dir := diskDir(t)
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	for _, c := range [][]string{
		{"truncate", "-s", mib + "M", img}, {"mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", img},
		{"mkdir", mnt}, {"mount", "-o", "loop", img, mnt},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no loop mount here: %v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("umount", mnt).Run() })
	return mnt
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
		deadline := time.Now().Add(20 * time.Second)
		for f.bdi.Pages() > 0 && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		if f.bdi.Pages() > 0 || f.failing.Load() != 0 {
			f.t.Errorf("%d pages are still dirty, %d inodes fail", f.bdi.Pages(), f.failing.Load())
		}
	})
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
	if n := in.syncs.done; n >= callers*each {
		t.Errorf("%d syncs for %d callers: none was shared", n, callers*each)
	}
	before := in.syncs.data
	f.ok(f.Sync(f.op, node))
	if in.changes.Load() != before || in.syncs.data != before {
		t.Error("a sync with nothing to do did something")
	}
}
