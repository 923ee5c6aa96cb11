package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"loopnfs/internal/vfs"
)

// fillDir makes n files in the directory "d" of dir, with names of all lengths.
func fillDir(t testing.TB, dir string, n int) {
	t.Helper()
	d := filepath.Join(dir, "d")
	err := os.MkdirAll(d, 0o755)
	for i := 0; i < n && err == nil; i++ {
		err = os.WriteFile(filepath.Join(d, fmt.Sprint(i, strings.Repeat("x", i%200))), nil, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Who removes what it has listed, as rm -r does, gets to see everything, also where the kernel
// counts entries.
func TestRemoveWhileListing(t *testing.T) {
	const files = 2000
	merged := func(t testing.TB) string {
		return overlayDir(t, func(lower string) {
			_ = os.Mkdir(filepath.Join(lower, "d"), 0o755)
			_ = os.WriteFile(filepath.Join(lower, "d", "of the lower layer"), nil, 0o644)
		})
	}
	for _, c := range []struct {
		name    string
		dir     func(testing.TB) string
		between func(f *fixture, d vfs.NodeID)
		more    int
	}{
		{"disk", func(t testing.TB) string { return diskDir(t) }, nil, 0},
		{"tmpfs", func(t testing.TB) string { return tmpfsDir(t, "") }, nil, 0},
		{"ramfs", ramfsDir, nil, 0},
		{"overlay", merged, nil, 1},
		{"overlay, another client lists", merged, func(f *fixture, d vfs.NodeID) { f.list(d, 0) }, 1},
		{"overlay, descriptors are closed", merged, func(f *fixture, _ vfs.NodeID) { f.fds.closeIdle() }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := c.dir(t)
			fillDir(t, dir, files)
			f := newFixture(t, options{dir: dir})
			d := f.lookup(vfs.RootID, "d").Node
			seen := map[string]bool{}
			for cookie, eof := uint64(0), false; !eof; {
				n := &names{limit: 200, cookie: cookie}
				var err error
				_, eof, err = f.ReadDir(f.op, d, cookie, vfs.Verifier{}, n)
				f.ok(err)
				for _, name := range n.got {
					if name != "." && name != ".." {
						seen[name] = true
						f.remove(d, name)
					}
				}
				cookie = n.cookie
				if c.between != nil {
					c.between(f, d)
				}
			}
			if len(seen) != files+c.more {
				t.Errorf("%d of %d names were listed", len(seen), files+c.more)
			}
			_, err := f.Rmdir(f.op, vfs.RootID, "d")
			f.ok(err)
		})
	}
}

// Each name is listed once, however many there are, with pages for all or for one.
func TestOrderedListsEachOnce(t *testing.T) {
	const files = 30_000
	dir := ramfsDir(t)
	fillDir(t, dir, files)
	f := newFixture(t, options{dir: dir})
	d := f.lookup(vfs.RootID, "d").Node
	for _, limit := range []int{0, 37} {
		seen := map[string]int{}
		start := time.Now()
		for _, name := range f.list(d, limit) {
			seen[name]++
		}
		t.Logf("%v for %d names", time.Since(start), len(seen))
		if len(seen) != files+2 {
			t.Errorf("%d names, want %d", len(seen), files+2)
		}
		for name, n := range seen {
			if n > 1 {
				t.Errorf("%s is listed %d times", name, n)
			}
		}
	}
}

func TestKernelBefore(t *testing.T) {
	if !kernelBefore(1000, 0) || kernelBefore(2, 6) || kernelBefore(3, 1000) {
		t.Error("the version of this kernel is not understood")
	}
}
