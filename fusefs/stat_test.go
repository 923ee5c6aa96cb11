package fusefs

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// What StatEntry tells of a file that is not in memory is what it tells of one that is.
func TestStatEntry(t *testing.T) {
	f := newFixture(t, options{})
	f.ok(os.WriteFile(f.path("file"), []byte("data"), 0o640))
	f.ok(os.Link(f.path("file"), f.path("linked")))
	f.ok(os.Mkdir(f.path("dir"), 0o755))
	f.ok(os.Symlink("dir", f.path("symlink")))
	f.ok(os.Symlink("nowhere", f.path("dangling")))
	f.ok(unix.Mkfifo(f.path("fifo"), 0o600))
	for _, name := range []string{"file", "linked", "dir", "symlink", "dangling", "fifo"} {
		f.evictAll()
		var a vfs.Attr
		h, err := f.StatEntry(f.op, vfs.RootID, name, &a, nil)
		f.ok(err)
		e := f.lookup(vfs.RootID, name)
		if want := f.handle(e.Node); string(h) != string(want) || a != e.Attr {
			t.Errorf("%s: %x %+v, LOOKUP says %x %+v", name, h, a, want, e.Attr)
		}
		var known vfs.Attr
		again, err := f.StatEntry(f.op, vfs.RootID, name, &known, nil)
		f.ok(err)
		if string(again) != string(h) || known != a {
			t.Errorf("%s in memory: %x %+v, before that %x %+v", name, again, known, h, a)
		}
		f.Forget(e.Node, 1)
	}
	var a vfs.Attr
	_, err := f.StatEntry(f.op, vfs.RootID, "nothing", &a, nil)
	f.wants(err, unix.ENOENT)
}

// What is mounted on an entry is not exported, nor is what it hides.
func TestStatEntryOfAMountPoint(t *testing.T) {
	f := newFixture(t, options{})
	f.ok(os.Mkdir(f.path("point"), 0o755))
	if err := unix.Mount("tmpfs", f.path("point"), "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(f.path("point"), unix.MNT_DETACH) })
	var a vfs.Attr
	_, err := f.StatEntry(f.op, vfs.RootID, "point", &a, nil)
	f.wants(err, unix.EACCES)
	// The same file system, mounted a second time: only the mount tells.
	f.ok(unix.Unmount(f.path("point"), 0))
	f.ok(unix.Mount(f.dir, f.path("point"), "", unix.MS_BIND, ""))
	_, err = f.StatEntry(f.op, vfs.RootID, "point", &a, nil)
	f.wants(err, unix.EACCES)
}
