package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// A store whose host may have lost the disk to another one changes nothing there any more.
func TestNotHeld(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		var lost atomic.Bool
		f := newFixture(t, options{lenient: true, buffered: buffered, holds: func() bool { return !lost.Load() }})
		n := f.create(vfs.RootID, "a", 0o6666)
		f.aio.filling.Wait()
		f.write(n, 0, pattern(5*4096, 1), vfs.FileSync)
		f.write(n, 4096, pattern(4096, 2), vfs.Unstable)
		f.write(n, 3*4096, pattern(4096, 2), vfs.Unstable) // not adjacent: both at once
		user := f.mem.newOp("user")
		user.Cred = vfs.Cred{UID: 1000, GID: 1000}
		before := tree(t, f.dir)
		lost.Store(true)
		_, _, err := f.Commit(f.op, n, 0, 0)
		f.wants(err, unix.EIO)
		_, err = writeAs(f.Store, f.op, n, 100, pattern(5000, 3), vfs.FileSync)
		f.wants(err, unix.EIO)
		_, err = writeAs(f.Store, user, n, 0, []byte("takes set-uid away"), vfs.Unstable)
		f.wants(err, unix.EIO)
		_, err = f.SetAttr(f.op, n, &vfs.SetAttr{SetSize: true, Size: 1})
		f.wants(err, unix.EIO)
		_, _, err = f.Create(f.op, vfs.RootID, "b", vfs.Exclusive, &vfs.SetAttr{}, vfs.Verifier{1})
		f.wants(err, unix.EIO)
		_, _, err = f.Mkdir(f.op, vfs.RootID, "d", &vfs.SetAttr{})
		f.wants(err, unix.EIO)
		_, _, err = f.Link(f.op, n, vfs.RootID, "b")
		f.wants(err, unix.EIO)
		_, _, err = f.Rename(f.op, vfs.RootID, "a", vfs.RootID, "b")
		f.wants(err, unix.EIO)
		_, err = f.Remove(f.op, vfs.RootID, "a")
		f.wants(err, unix.EIO)
		if after := tree(t, f.dir); after != before {
			t.Errorf("buffered %v: there was\n%s\nand is\n%s", buffered, before, after)
		}
		f.Forget(n, 1)
	}
}

// Nor does it say that what is in the memory of this host's kernel is on the disk.
func TestSyncWhenNotHeld(t *testing.T) {
	var lost atomic.Bool
	f := newFixture(t, options{noStart: true, holds: func() bool { return !lost.Load() }})
	n := f.create(vfs.RootID, "a", 0o600)
	f.write(n, 0, pattern(5*4096, 1), vfs.Unstable)
	f.WritePages(f.op.Scope, 100)
	lost.Store(true)
	_, _, err := f.Commit(f.op, n, 0, 0)
	f.wants(err, unix.EIO)
	f.wants(f.Sync(f.op, n), unix.EIO)
	lost.Store(false)
	f.ok(f.Sync(f.op, n))
}

// tree returns the names in a directory, with their attributes and content.
func tree(t *testing.T, dir string) (all string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		all += fmt.Sprint(e.Name(), " ", info.Mode(), st.Mtim, st.Ctim, ": ", string(content), "\n")
	}
	return all
}
