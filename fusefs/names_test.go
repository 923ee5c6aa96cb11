package fusefs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// checkWCC looks at the data of a directory that was changed.
func (f *fixture) checkWCC(what string, w vfs.WCC) {
	f.t.Helper()
	if !w.HasPre || !w.HasPost || w.Post.Type != vfs.TypeDirectory {
		f.t.Errorf("%s: no weak cache consistency data: %+v", what, w)
	}
	if w.Pre.Ctime == w.Post.Ctime {
		f.t.Errorf("%s: the ctime of the directory did not change", what)
	}
}

func mode(m uint32) *vfs.SetAttr { return &vfs.SetAttr{SetMode: true, Mode: m} }

func TestNames(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		root := vfs.NodeID(vfs.RootID)
		d, w, err := f.Mkdir(f.op, root, "d", mode(0o2755))
		f.ok(err)
		f.checkWCC("mkdir", w)
		if d.Attr.Type != vfs.TypeDirectory || d.Attr.Mode != 0o2755 {
			f.t.Errorf("mkdir: %+v", d.Attr)
		}
		e, w, err := f.Create(f.op, d.Node, "f", vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: 0o4751, SetUID: true, UID: 7, SetGID: true, GID: 8, SetSize: true, Size: 100}, vfs.Verifier{})
		f.ok(err)
		f.checkWCC("create", w)
		if a := e.Attr; a.Type != vfs.TypeRegular || a.Mode != 0o4751 || a.UID != 7 || a.GID != 8 || a.Size != 100 || a.Nlink != 1 {
			f.t.Errorf("create: %+v", a)
		}
		if got := f.lookup(d.Node, "f"); got.Node != e.Node || got.Attr != e.Attr {
			f.t.Errorf("lookup found %+v, create made %+v", got, e)
		}
		a, w, err := f.Link(f.op, e.Node, root, "hard")
		f.ok(err)
		f.checkWCC("link", w)
		if a.Nlink != 2 || f.lookup(root, "hard").Node != e.Node {
			f.t.Errorf("link: %+v", a)
		}
		l, w, err := f.Symlink(f.op, root, "soft", "d/f", mode(0o777))
		f.ok(err)
		f.checkWCC("symlink", w)
		if to, err := f.Readlink(f.op, l.Node, []byte("->")); err != nil || string(to) != "->d/f" {
			f.t.Errorf("readlink: %q, %v", to, err)
		}
		from, to, err := f.Rename(f.op, d.Node, "f", root, "g")
		f.ok(err)
		f.checkWCC("rename from", from)
		f.checkWCC("rename to", to)
		if f.lookup(root, "g").Node != e.Node {
			f.t.Error("rename made another node")
		}
		_, err = f.Lookup(f.op, d.Node, "f")
		f.wants(err, unix.ENOENT)
		if up := f.lookup(d.Node, ".."); up.Node != root {
			f.t.Errorf(".. is node %d", up.Node)
		}
		if up := f.lookup(root, ".."); up.Node != root {
			f.t.Errorf(".. of the root is node %d", up.Node)
		}
		_, err = f.Remove(f.op, root, "d")
		f.wants(err, unix.EISDIR)
		_, err = f.Rmdir(f.op, root, "g")
		f.wants(err, unix.ENOTDIR)
		w, err = f.Rmdir(f.op, root, "d")
		f.ok(err)
		f.checkWCC("rmdir", w)
		f.wants(f.GetAttr(f.op, d.Node, &a), vfs.ErrStale)
		w, err = f.Remove(f.op, root, "g")
		f.ok(err)
		f.checkWCC("remove", w)
		if n := f.getattr(e.Node).Nlink; n != 1 {
			f.t.Errorf("%d links are left", n)
		}
	})
}

func TestMknod(t *testing.T) {
	f := newFixture(t, options{})
	for typ, name := range map[vfs.FileType]string{vfs.TypeFIFO: "fifo", vfs.TypeSocket: "sock", vfs.TypeChar: "char", vfs.TypeBlock: "block"} {
		e, w, err := f.Mknod(f.op, vfs.RootID, name, typ, 11, 300, mode(0o640))
		f.ok(err)
		f.checkWCC(name, w)
		if e.Attr.Type != typ || e.Attr.Mode != 0o640 {
			t.Errorf("%s: %+v", name, e.Attr)
		}
		if (typ == vfs.TypeChar || typ == vfs.TypeBlock) && (e.Attr.Major != 11 || e.Attr.Minor != 300) {
			t.Errorf("%s: device %d:%d", name, e.Attr.Major, e.Attr.Minor)
		}
		_, err = f.SetAttr(f.op, e.Node, &vfs.SetAttr{SetMode: true, Mode: 0o600, SetUID: true, UID: 5, SetMtime: vfs.SetToClientTime, Mtime: vfs.Time{Sec: 99, Nsec: 1}})
		f.ok(err)
		if a := f.getattr(e.Node); a.Mode != 0o600 || a.UID != 5 || a.Mtime != (vfs.Time{Sec: 99, Nsec: 1}) {
			t.Errorf("%s after setattr: %+v", name, a)
		}
		f.ok(f.Sync(f.op, e.Node))
		_, _, err = readAs(f.Store, f.op, e.Node, 0, 10)
		f.wants(err, unix.EINVAL)
	}
}

func TestCreateModes(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		root := vfs.NodeID(vfs.RootID)
		node := f.create(root, "f", 0o644)
		f.write(node, 0, []byte("content"), vfs.Unstable)
		_, _, err := f.Create(f.op, root, "f", vfs.Guarded, mode(0), vfs.Verifier{})
		f.wants(err, unix.EEXIST)
		e, _, err := f.Create(f.op, root, "f", vfs.Unchecked, mode(0o600), vfs.Verifier{})
		f.ok(err)
		if e.Node != node || e.Attr.Size != 7 || e.Attr.Mode != 0o644 {
			f.t.Errorf("UNCHECKED on a file: %+v", e)
		}
		e, _, err = f.Create(f.op, root, "f", vfs.Unchecked, &vfs.SetAttr{SetSize: true}, vfs.Verifier{})
		f.ok(err)
		if e.Attr.Size != 0 {
			f.t.Errorf("UNCHECKED with size 0 left %d bytes", e.Attr.Size)
		}
		f.mkdir(root, "d", 0o755)
		_, _, err = f.Create(f.op, root, "d", vfs.Unchecked, mode(0), vfs.Verifier{})
		f.wants(err, unix.EEXIST)

		v := vfs.Verifier{0xff, 2, 3, 4, 0xfe, 6, 7, 8}
		x, _, err := f.Create(f.op, root, "x", vfs.Exclusive, nil, v)
		f.ok(err)
		again, _, err := f.Create(f.op, root, "x", vfs.Exclusive, nil, v)
		f.ok(err)
		if again.Node != x.Node {
			f.t.Error("EXCLUSIVE again with the same verifier: another file")
		}
		_, _, err = f.Create(f.op, root, "x", vfs.Exclusive, nil, vfs.Verifier{1})
		f.wants(err, unix.EEXIST)
	})
}

func TestBadNames(t *testing.T) {
	f := newFixture(t, options{})
	for name, want := range map[string]error{
		"": unix.EINVAL, ".": unix.EINVAL, "a/b": unix.EINVAL, "/": unix.EINVAL, "a\x00b": unix.EINVAL,
		strings.Repeat("x", 256): unix.ENAMETOOLONG,
	} {
		_, err := f.Lookup(f.op, vfs.RootID, name)
		f.wants(err, want)
		_, _, err = f.Create(f.op, vfs.RootID, name, vfs.Guarded, mode(0), vfs.Verifier{})
		f.wants(err, want)
		_, err = f.Rmdir(f.op, vfs.RootID, name)
		f.wants(err, want)
		_, _, err = f.Rename(f.op, vfs.RootID, "x", vfs.RootID, name)
		f.wants(err, want)
	}
	_, err := f.Rmdir(f.op, vfs.RootID, "..")
	f.wants(err, unix.EINVAL)
	long := strings.Repeat("y", 255)
	node := f.create(vfs.RootID, long, 0)
	if f.lookup(vfs.RootID, long).Node != node {
		t.Error("a name of 255 bytes is not found")
	}
}

func TestNothingOutsideIsReached(t *testing.T) {
	dir := diskDir(t)
	f := newFixture(t, options{dir: filepath.Join(dir, "."), state: t.TempDir()})
	f.ok(os.Mkdir(filepath.Join(dir, "mnt"), 0o755))
	f.ok(unix.Mount("none", filepath.Join(dir, "mnt"), "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "mnt"), unix.MNT_DETACH) })
	_, err := f.Lookup(f.op, vfs.RootID, "mnt")
	f.wants(err, unix.EACCES)
	_, err = f.Rmdir(f.op, vfs.RootID, "mnt")
	f.wants(err, unix.EBUSY)

	// Not even the same file system.
	other := diskDir(t)
	f.ok(os.Mkdir(filepath.Join(dir, "bind"), 0o755))
	f.ok(unix.Mount(other, filepath.Join(dir, "bind"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "bind"), unix.MNT_DETACH) })
	_, err = f.Lookup(f.op, vfs.RootID, "bind")
	f.wants(err, unix.EACCES)

	// A symbolic link is never followed.
	f.ok(os.Symlink("/etc", filepath.Join(dir, "etc")))
	if e := f.lookup(vfs.RootID, "etc"); e.Attr.Type != vfs.TypeSymlink {
		t.Errorf("etc is a %d", e.Attr.Type)
	} else {
		_, err = f.Lookup(f.op, e.Node, "passwd")
		f.wants(err, unix.ENOTDIR)
	}

	// A directory that was moved out of the export leads nowhere.
	sub := f.mkdir(f.mkdir(vfs.RootID, "a", 0o755), "sub", 0o755)
	out := diskDir(t)
	f.ok(os.Rename(filepath.Join(dir, "a", "sub"), filepath.Join(out, "sub")))
	_, err = f.Lookup(f.op, sub, "..")
	f.wants(err, vfs.ErrStale)
}

func TestUnlinkedOpenFileLives(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		node := f.create(vfs.RootID, "f", 0o644)
		f.ok(f.Open(f.op, node, true))
		f.write(node, 0, []byte("before"), vfs.Unstable)
		_, err := f.Remove(f.op, vfs.RootID, "f")
		f.ok(err)
		f.fds.closeIdle()
		p := pattern(100_000, 3)
		f.write(node, 6, p, vfs.FileSync)
		in, _ := f.inode(node)
		in.m.InvalidateClean()
		if got, _ := f.read(node, 6, 100_000); !bytes.Equal(got, p) {
			f.t.Error("the data of an unlinked open file is wrong")
		}
		if a := f.getattr(node); a.Nlink != 0 || a.Size != 100_006 {
			f.t.Errorf("attributes: %+v", a)
		}
		f.write(node, 0, p, vfs.Unstable)
		f.Close(node)
		var a vfs.Attr
		f.wants(f.GetAttr(f.op, node, &a), vfs.ErrStale)
		if n := in.m.Len(); n != 0 {
			f.t.Errorf("%d pages of a file that is gone", n)
		}
		_, err = writeAs(f.Store, f.op, node, 0, []byte("x"), vfs.Unstable)
		f.wants(err, vfs.ErrStale)
		f.Forget(node, 1)
	})
}

func TestRemovedFileIsStale(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(100_000, 1), vfs.Unstable)
	h, err := f.Handle(node, nil)
	f.ok(err)
	g := f.create(vfs.RootID, "g", 0o644)
	_, _, err = f.Rename(f.op, vfs.RootID, "g", vfs.RootID, "f")
	f.ok(err)
	var a vfs.Attr
	f.wants(f.GetAttr(f.op, node, &a), vfs.ErrStale)
	_, err = f.ByHandle(f.op, h)
	f.wants(err, vfs.ErrStale)
	if f.bdi.Pages() != 0 {
		t.Error("the data of a replaced file is still dirty")
	}
	// Removed by somebody else.
	f.ok(os.Remove(filepath.Join(f.dir, "f")))
	f.wants(f.GetAttr(f.op, g, &a), vfs.ErrStale)
}

func TestManyInodesFewInMemory(t *testing.T) {
	f := newFixture(t, options{inodes: 20, files: 16})
	const n = 300
	var handles [n][]byte
	for i := range n {
		node := f.create(vfs.RootID, fmt.Sprint(i), 0o644)
		f.write(node, 0, []byte(fmt.Sprint("content ", i)), vfs.Unstable)
		handles[i], _ = f.Handle(node, nil)
		f.Forget(node, 1)
	}
	f.mem.dom.Close()
	for _, in := range f.nodes.all() {
		f.ok(f.syncInode(f.op.Scope, in, true))
	}
	seen := map[vfs.NodeID]bool{}
	for i := range n {
		node, err := f.ByHandle(f.op, handles[i])
		f.ok(err)
		if p, _ := f.read(node, 0, 100); string(p) != fmt.Sprint("content ", i) {
			t.Fatalf("file %d: %q", i, p)
		}
		if seen[node] {
			t.Fatalf("node %d stands for two files", node)
		}
		seen[node] = true
		f.Forget(node, 1)
	}
	if got := len(f.nodes.all()); got > 22 {
		t.Errorf("%d inodes in memory, the limit is 20", got)
	}
	if f.fds.open > 16 {
		t.Errorf("%d descriptors, the limit is 16", f.fds.open)
	}
}

func TestTwoDirectoriesAtOnce(t *testing.T) {
	f := newFixture(t, options{})
	a, b := f.mkdir(vfs.RootID, "a", 0o755), f.mkdir(vfs.RootID, "b", 0o755)
	f.create(a, "x", 0)
	f.create(b, "y", 0)
	done := make(chan error, 2)
	swap := func(from, to vfs.NodeID, name string) {
		op := f.mem.newOp("rename " + name)
		var err error
		for range 500 {
			if _, _, err = f.Rename(op, from, name, to, name); err != nil {
				break
			}
			if _, _, err = f.Rename(op, to, name, from, name); err != nil {
				break
			}
		}
		done <- err
	}
	go swap(a, b, "x")
	go swap(b, a, "y")
	f.ok(<-done)
	f.ok(<-done)
}

func TestEnterFailsCleanly(t *testing.T) {
	f := newFixture(t, options{})
	file := f.create(vfs.RootID, "f", 0o644)
	_, _, err := f.Create(f.op, file, "x", vfs.Guarded, mode(0), vfs.Verifier{})
	f.wants(err, unix.ENOTDIR)
	_, _, err = f.Rename(f.op, vfs.RootID, "f", file, "x")
	f.wants(err, unix.ENOTDIR)
	_, _, err = f.Rename(f.op, file, "f", vfs.RootID, "x")
	f.wants(err, unix.ENOTDIR)
	_, err = f.Lookup(f.op, 12345, "x")
	f.wants(err, vfs.ErrStale)
	_, _, err = f.Link(f.op, vfs.RootID, vfs.RootID, "x")
	f.wants(err, syscall.EPERM)
	f.create(vfs.RootID, "still works", 0)
}

// withoutDescriptors runs do when the process can open nothing more.
func (f *fixture) withoutDescriptors(do func()) {
	f.t.Helper()
	runtime.GC() // files that earlier tests have left are closed, and no others until the end
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var old unix.Rlimit
	f.ok(unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	low := old
	low.Cur = 200
	f.ok(unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }()
	for full := 0; full < 3; { // the runtime closes them a little later
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			full++
			time.Sleep(10 * time.Millisecond)
			continue
		}
		defer unix.Close(fd)
	}
	do()
}

// Who is told to try again later does not find then that it was done.
func TestNothingIsMadeWithoutDescriptors(t *testing.T) {
	calls := map[string]func(f *fixture) error{
		"MKDIR":   func(f *fixture) error { _, _, err := f.Mkdir(f.op, vfs.RootID, "new", mode(0o1700)); return err },
		"SYMLINK": func(f *fixture) error { _, _, err := f.Symlink(f.op, vfs.RootID, "new", "x", mode(0o777)); return err },
		"MKNOD": func(f *fixture) error {
			_, _, err := f.Mknod(f.op, vfs.RootID, "new", vfs.TypeFIFO, 0, 0, mode(0o700))
			return err
		},
		"CREATE": func(f *fixture) error {
			_, _, err := f.Create(f.op, vfs.RootID, "new", vfs.Guarded, mode(0o700), vfs.Verifier{})
			return err
		},
		"EXCLUSIVE": func(f *fixture) error {
			_, _, err := f.Create(f.op, vfs.RootID, "new", vfs.Exclusive, nil, vfs.Verifier{1})
			return err
		},
	}
	for what, call := range calls {
		t.Run(what, func(t *testing.T) { // what another store closes would be free
			f := newFixture(t, options{})
			f.create(vfs.RootID, "warm", 0o600)
			f.fds.closeIdle()
			_, err := f.Lookup(f.op, vfs.RootID, "warm") // the directory is open again
			f.ok(err)
			f.withoutDescriptors(func() { err = call(f) })
			if err != vfs.ErrJukebox {
				t.Errorf("%s: %v", what, err)
			}
			if _, err := os.Lstat(filepath.Join(f.dir, "new")); err == nil {
				t.Errorf("%s: it is there", what)
			}
			f.ok(call(f))

			// What nobody uses is closed first.
			for i := range 8 {
				node := f.create(vfs.RootID, fmt.Sprint(i), 0o600)
				f.write(node, 0, []byte("x"), vfs.FileSync)
				f.Forget(node, 1)
			}
			_, err = f.Remove(f.op, vfs.RootID, "new")
			if what == "MKDIR" {
				_, err = f.Rmdir(f.op, vfs.RootID, "new")
			}
			f.ok(err)
			f.withoutDescriptors(func() { err = call(f) })
			if err != nil {
				t.Errorf("%s, with descriptors that nobody uses: %v", what, err)
			}
		})
	}
}

// Each change of a directory shows in its times, where the kernel's clock stands still between
// two of them, too.
func TestChangeOfADirectoryShows(t *testing.T) {
	needRoot(t)
	dir := diskDir(t)
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	run(t, "truncate", "-s", "32M", img)
	run(t, "mkfs.ext4", "-q", "-t", "ext3", "-I", "256", img) // ext4 itself has finer stamps since Linux 6.13
	run(t, "mkdir", mnt)
	run(t, "mount", "-t", "ext3", "-o", "loop", img, mnt)
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	f := newFixture(t, options{dir: mnt})
	d := f.mkdir(vfs.RootID, "d", 0o755)
	last := f.getattr(d).Ctime
	shows := func(what string, w vfs.WCC, err error) {
		f.ok(err)
		now := f.getattr(d).Ctime
		if w.Pre.Ctime != last || w.Post.Ctime == last || now != w.Post.Ctime {
			t.Fatalf("%s: times of change %v and %v, %v before and %v now", what, w.Pre.Ctime, w.Post.Ctime, last, now)
		}
		last = now
	}
	for i := range 50 {
		name := fmt.Sprint(i)
		_, w, err := f.Create(f.op, d, name, vfs.Guarded, mode(0o600), vfs.Verifier{})
		shows("CREATE", w, err)
		w, _, err = f.Rename(f.op, d, name, d, name+"x")
		shows("RENAME", w, err)
		w, err = f.Remove(f.op, d, name+"x")
		shows("REMOVE", w, err)
		_, w, err = f.Mkdir(f.op, d, name, mode(0o700))
		shows("MKDIR", w, err)
	}
}
