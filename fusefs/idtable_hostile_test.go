package fusefs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// A call that fails takes nothing from a file that somebody else moved, not even
// what is not written yet.
func TestTableKeepsWhatWasNotRemoved(t *testing.T) {
	f := tableFixture(t, nil)
	a, b := f.mkdir(vfs.RootID, "a", 0o755), f.mkdir(vfs.RootID, "b", 0o755)
	n := f.create(a, "x", 0o644)
	f.write(n, 0, []byte("unwritten"), vfs.Unstable)
	f.ok(os.Rename(f.path("a/x"), f.path("b/y")))
	nobody := f.mem.newOp("nobody")
	nobody.Cred = vfs.Cred{UID: 1234, GID: 1234}
	if _, err := f.Remove(nobody, b, "y"); err == nil {
		t.Fatal("removed without the right to")
	}
	if p, _ := f.read(n, 0, 100); string(p) != "unwritten" {
		t.Errorf("read %q", p)
	}
}

// A handle is good at any moment of a rename by this server.
func TestTableFindsWhatIsBeingRenamed(t *testing.T) {
	f := tableFixture(t, nil)
	dir := f.mkdir(vfs.RootID, "dir0", 0o755)
	var raw rawHandle
	h, _ := parseHandle(f.handle(f.create(f.mkdir(dir, "sub", 0o755), "file", 0o644)))
	h.raw(&raw)
	done := make(chan struct{})
	var wg sync.WaitGroup
	op := f.mem.newOp("renamer")
	wg.Go(func() {
		defer close(done)
		for i := range 3000 {
			if _, _, err := f.Rename(op, vfs.RootID, fmt.Sprint("dir", i%2), vfs.RootID, fmt.Sprint("dir", (i+1)%2)); err != nil {
				t.Errorf("rename: %v", err)
			}
		}
	})
	bad, all := 0, 0
	for stop := false; !stop; all++ {
		select {
		case <-done:
			stop = true
		default:
		}
		fd, err := f.openRaw(&raw, unix.O_RDONLY)
		if err != nil {
			bad++
			continue
		}
		unix.Close(fd)
	}
	wg.Wait()
	if bad > 0 {
		t.Errorf("%d of %d times the handle was not good", bad, all)
	}
}

// Who does not find a file while it is being renamed waits for its record.
func TestTableWaitsForARename(t *testing.T) {
	f := tableFixture(t, nil)
	dir := f.mkdir(vfs.RootID, "dir", 0o755)
	var raw rawHandle
	h, _ := parseHandle(f.handle(f.create(dir, "file", 0o644)))
	h.raw(&raw)
	d := &dirOp{s: f.Store, b: f.scratch.get()}
	d.in, _ = f.inode(vfs.RootID)
	d.fd = f.rootFD
	src, err := d.lookAtMoved("dir", d, "moved")
	f.ok(err)
	f.ok(os.Rename(f.path("dir"), f.path("between")))
	opened := make(chan error)
	go func() {
		fd, err := f.openRaw(&raw, unix.O_RDONLY)
		if err == nil {
			unix.Close(fd)
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
		defer func() { f.ok(<-opened) }()
	}
	op := f.mem.newOp("others, who are fast")
	f.create(vfs.RootID, "x0", 0o644)
	for i := range 2 * maxAgain {
		_, _, err := f.Rename(op, vfs.RootID, fmt.Sprint("x", i), vfs.RootID, fmt.Sprint("x", i+1))
		f.ok(err)
	}
	f.ok(os.Rename(f.path("between"), f.path("moved")))
	src.moved(d, "moved", true)
}

// A server that is killed in the middle of a rename finds the file, and what is below.
func TestTableOfOneKilledInARename(t *testing.T) {
	for _, made := range []bool{false, true} {
		f := tableFixture(t, nil)
		dir := f.mkdir(vfs.RootID, "dir", 0o755)
		file := f.create(dir, "file", 0o644)
		h, ino := f.handle(file), f.getattr(file).Ino
		d := &dirOp{s: f.Store, b: f.scratch.get()}
		d.in, _ = f.inode(vfs.RootID)
		d.fd = f.rootFD
		src, err := d.lookAtMoved("dir", d, "moved")
		f.ok(err)
		if made {
			f.ok(os.Rename(f.path("dir"), f.path("moved")))
		}
		f.killed().opens(h, ino)
		src.moved(d, "moved", made)
	}
}

// Renames that fail do not crowd out the places where a file is.
func TestTableForgetsFailedRenames(t *testing.T) {
	f := tableFixture(t, nil)
	n := f.create(vfs.RootID, "0", 0o644)
	h, ino := f.handle(n), f.getattr(n).Ino
	for i := 1; i < maxPlaces; i++ {
		_, _, err := f.Link(f.op, n, vfs.RootID, fmt.Sprint(i))
		f.ok(err)
	}
	r := f.ids.byIno[ino]
	want, live := slices.Sorted(slices.Values(namesOf(r))), f.ids.live
	for i := range 2 * maxPlaces {
		f.mkdir(vfs.RootID, fmt.Sprint("dir", i), 0o755)
		_, _, err := f.Rename(f.op, vfs.RootID, "0", vfs.RootID, fmt.Sprint("dir", i))
		f.wants(err, unix.EISDIR)
	}
	if got := slices.Sorted(slices.Values(namesOf(r))); !slices.Equal(got, want) {
		t.Errorf("the places are %q, want %q", got, want)
	}
	for i := range 2 * maxPlaces {
		f.ids.drop(f.rawOf(f.lookup(vfs.RootID, fmt.Sprint("dir", i)).Node))
	}
	if f.ids.live != live {
		t.Errorf("%d bytes live, want %d", f.ids.live, live)
	}
	f.killed().opens(h, ino)
}

func namesOf(r *idRecord) (names []string) {
	for _, p := range r.at {
		names = append(names, p.name)
	}
	return names
}

func (f *fixture) rawOf(n vfs.NodeID) *rawHandle {
	var raw rawHandle
	h, _ := parseHandle(f.handle(n))
	h.raw(&raw)
	return &raw
}

// While the log cannot be written, what others cannot do without is refused, and what goes on
// takes no memory.
func TestTableWithoutADisk(t *testing.T) {
	state := tmpfsDir(t, "size=64k")
	f := newFixture(t, options{dir: overlayDir(t, nil), state: state, lenient: true})
	n := f.create(vfs.RootID, "x", 0o644)
	h, ino := f.handle(n), f.getattr(n).Ino
	filler, err := os.Create(filepath.Join(state, "filler"))
	f.ok(err)
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	f.ok(filler.Close())
	for i := 0; ; i++ {
		if _, _, err = f.Rename(f.op, vfs.RootID, "x", vfs.RootID, "x"+strings.Repeat("y", i%200)); err != nil {
			break
		}
		_, _, err = f.Rename(f.op, vfs.RootID, "x"+strings.Repeat("y", i%200), vfs.RootID, "x")
		f.ok(err)
	}
	f.wants(err, unix.ENOSPC)
	_, _, err = f.Link(f.op, n, vfs.RootID, "link")
	f.wants(err, unix.ENOSPC)
	for i := range 2 * maxQueued / idFixed { // others do not ask
		f.ids.mu.Lock()
		f.ids.disk.put(opFile, f.ids.byIno[ino], place{rootNumber, fmt.Sprint("x", i)})
		f.ids.mu.Unlock()
	}
	f.ids.disk.mu.Lock()
	queued := len(f.ids.disk.buf)
	f.ids.disk.mu.Unlock()
	if queued > maxQueued {
		t.Errorf("%d bytes are queued", queued)
	}
	f.ok(os.Remove(filepath.Join(state, "filler")))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, _, err = f.Rename(f.op, vfs.RootID, "x", vfs.RootID, "moved"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	f.killed().opens(h, ino)
}

// Long names and many links take no more memory than many files.
func TestTableIsLimitedInBytes(t *testing.T) {
	f := tableFixture(t, nil)
	f.ids.most = 4000
	long := strings.Repeat("n", 250)
	n := f.create(vfs.RootID, long, 0o644)
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, _, err = f.Create(f.op, vfs.RootID, fmt.Sprint(long[:200], i), vfs.Guarded, mode(0o644), vfs.Verifier{})
	}
	f.wants(err, unix.ENOSPC)
	live := f.ids.live
	for i := range 10 {
		_, _, err := f.Link(f.op, n, vfs.RootID, fmt.Sprint(long, i))
		f.ok(err)
	}
	if f.ids.live > live+4000/10 {
		t.Errorf("%d bytes, and %d with links", live, f.ids.live)
	}
	h, ino := f.handle(n), f.getattr(n).Ino
	f.Forget(n, 1)
	f.evictAll()
	f.opens(h, ino)
}

// ramfsDir returns a directory without file handles and without times of birth.
func ramfsDir(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
		t.Skipf("cannot mount a ramfs here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// reuse makes the record of h look as if its inode number were ino, as if another
// file got it.
func (f *fixture) reuse(h []byte, ino uint64) {
	p, _ := parseHandle(h)
	var raw rawHandle
	p.raw(&raw)
	f.ids.mu.Lock()
	defer f.ids.mu.Unlock()
	r := f.ids.get(&raw)
	delete(f.ids.byIno, r.ino)
	r.ino = ino
	f.ids.byIno[ino] = r
}

func (f *fixture) inoOf(name string) uint64 {
	f.t.Helper()
	var st unix.Stat_t
	f.ok(unix.Lstat(f.path(name), &st))
	return st.Ino
}

func TestTableWithoutTimesOfBirth(t *testing.T) {
	f := newFixture(t, options{dir: ramfsDir(t)})
	if f.ids == nil {
		t.Skip("ramfs has file handles here")
	}
	e := f.create(vfs.RootID, "a", 0o644)
	old := f.handle(e)
	f.Forget(e, 1)
	f.ok(os.Remove(f.path("a"))) // by somebody else
	f.evictAll()
	f.ok(os.WriteFile(f.path("b"), nil, 0o644))
	f.reuse(old, f.inoOf("b"))
	l := f.lookup(vfs.RootID, "b")
	if bytes.Equal(f.handle(l.Node), old) {
		t.Error("the handle of a file that is gone is that of another one")
	}
	f.stale(old)
	// Hard links, and what is renamed, stay one file.
	f.ok(os.Link(f.path("b"), f.path("c")))
	if c := f.lookup(vfs.RootID, "c"); c.Node != l.Node {
		t.Error("a hard link is another file")
	}
	_, _, err := f.Rename(f.op, vfs.RootID, "b", vfs.RootID, "d")
	f.ok(err)
	f.remove(vfs.RootID, "c")
	f.opens(f.handle(l.Node), l.Attr.Ino)
}

// RENAME of a file that no client has looked up does not revive a handle.
func TestTableRenameOfAnInodeNumberUsedAgain(t *testing.T) {
	for _, fs := range []func(t testing.TB) string{func(t testing.TB) string { return overlayDir(t, nil) }, ramfsDir} {
		f := newFixture(t, options{dir: fs(t)})
		if f.ids == nil {
			continue
		}
		n := f.create(vfs.RootID, "a", 0o644)
		old := f.handle(n)
		f.Forget(n, 1)
		f.ok(os.Remove(f.path("a")))
		f.evictAll()
		f.ok(os.WriteFile(f.path("b"), nil, 0o644))
		f.reuse(old, f.inoOf("b"))
		_, _, err := f.Rename(f.op, vfs.RootID, "b", vfs.RootID, "c")
		f.ok(err)
		f.stale(old)
	}
}

// A file that was made through the server is told from one that takes its place and
// its inode number, also on an overlay, and also after a restart.
func TestTableTellsWhatOthersReplace(t *testing.T) {
	f := tableFixture(t, nil)
	reused := 0
	for i := 0; i < 50 && reused < 3; i++ {
		n := f.create(vfs.RootID, "f", 0o644)
		old, ino := f.handle(n), f.getattr(n).Ino
		f.Forget(n, 1)
		if i%2 == 1 {
			f = f.again()
		}
		f.evictAll()
		f.ok(os.Remove(f.path("f")))
		for j := 0; j < 20; j++ { // others may take the inode number first
			f.ok(os.WriteFile(f.path("f"), nil, 0o644))
			if f.inoOf("f") == ino {
				reused++
				f.stale(old)
				e := f.lookup(vfs.RootID, "f")
				if bytes.Equal(f.handle(e.Node), old) {
					t.Error("two files with one handle")
				}
				f.Forget(e.Node, 1)
				break
			}
			f.ok(os.Remove(f.path("f")))
		}
		f.evictAll()
		_ = os.Remove(f.path("f"))
	}
	if reused == 0 {
		t.Skip("the file system did not use an inode number again")
	}
}

// Whatever copies a file of the lower layer up, its handle stays good, and leads to
// one file only.
func TestTableFollowsCopyUpOfLinks(t *testing.T) {
	names := []string{"mode", "link", "rename", "write", "size"}
	f := tableFixture(t, func(dir string) {
		for _, name := range names {
			_ = os.WriteFile(filepath.Join(dir, name), []byte("lower"), 0o644)
			_ = os.Link(filepath.Join(dir, name), filepath.Join(dir, name+"2"))
		}
	})
	for _, name := range names {
		e := f.lookup(vfs.RootID, name)
		h := f.handle(e.Node)
		f.read(e.Node, 0, 100)         // opens it by its first name
		f.lookup(vfs.RootID, name+"2") // and now there is another one
		var err error
		switch name {
		case "mode":
			_, err = f.SetAttr(f.op, e.Node, mode(0o600))
		case "size":
			_, err = f.SetAttr(f.op, e.Node, &vfs.SetAttr{SetSize: true, Size: 3})
		case "link":
			_, _, err = f.Link(f.op, e.Node, vfs.RootID, "link3")
		case "rename":
			_, _, err = f.Rename(f.op, vfs.RootID, name, vfs.RootID, "renamed")
		case "write":
			f.write(e.Node, 0, []byte("upper"), vfs.FileSync)
		}
		f.ok(err)
		if name == "write" {
			in, _ := f.inode(e.Node)
			in.m.Truncate(0) // what is read comes from the file
			if p, _ := f.read(e.Node, 0, 100); string(p) != "upper" {
				t.Errorf("what was written as %q is read as %q", "upper", p)
			}
			if p, _ := os.ReadFile(f.path(name)); string(p) != "upper" {
				t.Errorf("what was written to the file that was opened is %q", p)
			}
		}
		f.Forget(e.Node, 1)
		f.evictAll()
		if name == "rename" {
			name = "renamed"
		}
		n, err := f.ByHandle(f.op, h)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, want := f.getattr(n).Ino, f.inoOf(name); got != want {
			t.Errorf("the handle of %s, inode %d, leads to %d", name, want, got)
		}
		f.Forget(n, 1)
	}
}

// REMOVE of one name while LINK gives another one does not lose the file.
func TestTableLinkWhileRemove(t *testing.T) {
	f := tableFixture(t, nil)
	a, b := f.mkdir(vfs.RootID, "a", 0o755), f.mkdir(vfs.RootID, "b", 0o755)
	op := f.mem.newOp("linker")
	lost := 0
	for range 2000 {
		n := f.create(a, "x", 0o644)
		h := f.handle(n)
		var wg sync.WaitGroup
		var lerr error
		wg.Go(func() { _, _, lerr = f.Link(op, n, b, "y") })
		_, err := f.Remove(f.op, a, "x")
		f.ok(err)
		wg.Wait()
		if lerr == nil {
			if m, err := f.ByHandle(f.op, h); err != nil {
				lost++
			} else {
				f.Forget(m, 1)
			}
			f.remove(b, "y")
		}
		f.Forget(n, 1)
	}
	if lost > 0 {
		t.Errorf("%d files with a name have no handle", lost)
	}
}

// While the log cannot be written nothing is made that would have no handle.
func TestTableMakesNothingWithoutALog(t *testing.T) {
	state := tmpfsDir(t, "size=64k")
	f := newFixture(t, options{dir: overlayDir(t, nil), state: state})
	filler, err := os.Create(filepath.Join(state, "filler"))
	f.ok(err)
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	f.ok(filler.Close())
	made := 0
	for i := range 1000 {
		name := fmt.Sprintf("%s%d", strings.Repeat("n", 200), i)
		_, _, err := f.Create(f.op, vfs.RootID, name, vfs.Guarded, mode(0o644), vfs.Verifier{})
		if _, serr := os.Lstat(f.path(name)); err != nil && serr == nil {
			made++
		}
	}
	if made > 1 {
		t.Errorf("%d files were made that have no handle", made)
	}
	f.ok(os.Remove(filepath.Join(state, "filler")))
	f.create(vfs.RootID, "after", 0o644)
}

// A directory of another file system, with the same inode number, is not taken for the
// one that the table is of.
func TestTableOfAnotherFileSystem(t *testing.T) {
	lower := func(dir string) { _ = os.WriteFile(filepath.Join(dir, "f"), []byte(dir), 0o644) }
	state := t.TempDir()
	var ids [2]unix.Statfs_t
	f := newFixture(t, options{dir: overlayIn(t, tmpfsDir(t, ""), lower), state: state})
	g := newFixture(t, options{dir: overlayIn(t, tmpfsDir(t, ""), lower), state: t.TempDir()})
	f.ok(unix.Fstatfs(f.rootFD, &ids[0]))
	f.ok(unix.Fstatfs(g.rootFD, &ids[1]))
	if f.rootIno != g.rootIno || ids[0].Fsid == ids[1].Fsid {
		t.Skipf("roots: inodes %d and %d, file systems %v and %v", f.rootIno, g.rootIno, ids[0].Fsid, ids[1].Fsid)
	}
	h := f.handle(f.lookup(vfs.RootID, "f").Node)
	f.ok(f.Shutdown())
	f.ok(g.Shutdown())
	g = newFixture(t, options{dir: g.dir, state: state})
	if _, err := g.ByHandle(g.op, h); err == nil {
		t.Error("a handle of one file system leads to a file of another")
	}
}

// A rename is refused where the table has no room left.
func TestRefusedRenameInFullTable(t *testing.T) {
	for _, c := range []string{"ramfs", "overlay"} {
		t.Run(c, func(t *testing.T) {
			var f *fixture
			if c == "ramfs" {
				f = newFixture(t, options{dir: ramfsDir(t), state: t.TempDir()})
			} else {
				f = tableFixture(t, nil)
			}
			if f.ids == nil {
				t.Skip("no table")
			}
			n := f.create(vfs.RootID, "x", 0o644)
			h, ino := f.handle(n), f.getattr(n).Ino
			f.mkdir(vfs.RootID, "dir", 0o755)
			f.ids.mu.Lock()
			f.ids.most = f.ids.live
			f.ids.mu.Unlock()
			_, _, err := f.Rename(f.op, vfs.RootID, "x", vfs.RootID, "dir")
			f.wants(err, unix.EISDIR)
			fd, err := f.ids.find(f.rawOf(n))
			if err != nil {
				t.Errorf("in the running server: %v", err)
			} else {
				unix.Close(fd)
			}
			f.Forget(n, 1)
			f.ok(f.ids.rewrite()) // as tend does
			f.again().opens(h, ino)
		})
	}
}

// The rename of the name that was seen the longest time ago is refused.
func TestRefusedRenameOfOldestName(t *testing.T) {
	f := newFixture(t, options{dir: ramfsDir(t), state: t.TempDir()})
	if f.ids == nil {
		t.Skip("no table")
	}
	n := f.create(vfs.RootID, "0", 0o644)
	h, ino := f.handle(n), f.getattr(n).Ino
	for i := 1; i < maxPlaces; i++ {
		_, _, err := f.Link(f.op, n, vfs.RootID, fmt.Sprint(i))
		f.ok(err)
	}
	f.mkdir(vfs.RootID, "dir", 0o755)
	_, _, err := f.Rename(f.op, vfs.RootID, "0", vfs.RootID, "dir")
	f.wants(err, unix.EISDIR)
	for i := 1; i < maxPlaces; i++ {
		f.remove(vfs.RootID, fmt.Sprint(i))
	}
	f.Forget(n, 1)
	f.again().opens(h, ino)
}

// Killed between the note and the rename where the table has no room left.
func TestKilledRenameInFullTable(t *testing.T) {
	f := tableFixture(t, nil)
	file := f.create(vfs.RootID, "x", 0o644)
	h, ino := f.handle(file), f.getattr(file).Ino
	f.ids.mu.Lock()
	f.ids.most = f.ids.live
	f.ids.mu.Unlock()
	d := &dirOp{s: f.Store, b: f.scratch.get()}
	d.in, _ = f.inode(vfs.RootID)
	d.fd = f.rootFD
	src, err := d.lookAtMoved("x", d, "moved")
	f.ok(err)
	f.ok(f.ids.rewrite()) // tend
	f.killed().opens(h, ino)
	src.moved(d, "moved", false)
}

// Killed between the note and the rename of the name that was seen the longest time ago.
func TestKilledRenameOfOldestName(t *testing.T) {
	f := tableFixture(t, nil)
	n := f.create(vfs.RootID, "0", 0o644)
	h, ino := f.handle(n), f.getattr(n).Ino
	for i := 1; i < maxPlaces; i++ {
		_, _, err := f.Link(f.op, n, vfs.RootID, fmt.Sprint(i))
		f.ok(err)
	}
	d := &dirOp{s: f.Store, b: f.scratch.get()}
	d.in, _ = f.inode(vfs.RootID)
	d.fd = f.rootFD
	src, err := d.lookAtMoved("0", d, "moved")
	f.ok(err)
	for i := 1; i < maxPlaces; i++ {
		f.ok(os.Remove(filepath.Join(f.dir, fmt.Sprint(i))))
	}
	f.killed().opens(h, ino)
	src.moved(d, "moved", false)
}
