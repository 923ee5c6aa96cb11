package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

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
	src := d.lookAtMoved("dir")
	f.ok(os.Rename(f.path("dir"), f.path("moved")))
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
	src.moved(d, "moved", true)
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
