package fusefs

import (
	"os"
	"testing"

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
