package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
