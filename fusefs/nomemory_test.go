package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// What a client is told to try again later must not be there when it does.
func TestNoMemoryLeavesNothing(t *testing.T) {
	f := newFixture(t, options{inodes: MinInodes})
	var held []vfs.NodeID
	for i := 0; ; i++ {
		name := fmt.Sprint("f", i)
		f.ok(os.WriteFile(filepath.Join(f.dir, name), nil, 0o666))
		e, err := f.Lookup(f.op, vfs.RootID, name)
		if err == unix.ENOMEM {
			break
		}
		f.ok(err)
		held = append(held, e.Node)
	}
	set := &vfs.SetAttr{SetMode: true, Mode: 0o755}
	_, _, err := f.Create(f.op, vfs.RootID, "new", vfs.Guarded, set, vfs.Verifier{})
	_, _, err2 := f.Mkdir(f.op, vfs.RootID, "newdir", set)
	_, _, err3 := f.Symlink(f.op, vfs.RootID, "newlink", "x", set)
	for _, n := range held {
		f.Forget(n, 1)
	}
	for name, e := range map[string]error{"new": err, "newdir": err2, "newlink": err3} {
		_, there := os.Lstat(filepath.Join(f.dir, name))
		if nfs3.StatusOf(e) == nfs3.StatusJukebox && there == nil {
			t.Errorf("%s: %v (%v), and it is there", name, nfs3.StatusOf(e), e)
		}
	}
	if _, _, err := f.Create(f.op, vfs.RootID, "new", vfs.Guarded, set, vfs.Verifier{}); err != nil {
		t.Errorf("tried again: %v", err)
	}
}
