package fusefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// together runs a and b at the same time.
func together(a, b func()) {
	var wg sync.WaitGroup
	wg.Go(a)
	wg.Go(b)
	wg.Wait()
}

// A name that always stands for something is always found, whatever is put in its place.
func TestLookupOfAReplacedName(t *testing.T) {
	f := newFixture(t, options{})
	f.create(vfs.RootID, "name", 0o600)
	op := *f.op
	replace := func() {
		_, _, err := f.Rename(f.op, vfs.RootID, "new", vfs.RootID, "name")
		f.ok(err)
	}
	find := func() {
		for range 3 {
			e, err := f.Lookup(&op, vfs.RootID, "name")
			if err != nil {
				t.Errorf("lookup: %v", err)
				return
			}
			if _, err := f.Handle(e.Node, nil); err != nil {
				t.Errorf("handle: %v", err)
			}
			f.Forget(e.Node, 1)
		}
	}
	for range 500 {
		f.create(vfs.RootID, "new", 0o600)
		together(replace, find)
	}
}

// Who makes something in a directory that is removed has made it, and the directory stays,
// or is told that the directory is gone.
func TestChangeOfARemovedDirectory(t *testing.T) {
	f := newFixture(t, options{})
	op := *f.op
	file := f.create(vfs.RootID, "file", 0o600)
	x := func(_ vfs.Entry, _ vfs.WCC, err error) error { return err }
	for name, change := range map[string]func(dir vfs.NodeID) error{
		"create":    func(d vfs.NodeID) error { return x(f.Create(f.op, d, "x", vfs.Guarded, mode(0o600), vfs.Verifier{})) },
		"exclusive": func(d vfs.NodeID) error { return x(f.Create(f.op, d, "x", vfs.Exclusive, nil, vfs.Verifier{1})) },
		"mkdir":     func(d vfs.NodeID) error { return x(f.Mkdir(f.op, d, "x", mode(0o700))) },
		"link":      func(d vfs.NodeID) error { _, _, err := f.Link(f.op, file, d, "x"); return err },
		"rename":    func(d vfs.NodeID) error { _, _, err := f.Rename(f.op, vfs.RootID, "other", d, "x"); return err },
	} {
		for i := range 300 {
			dirName := fmt.Sprint(name, i)
			dir := f.mkdir(vfs.RootID, dirName, 0o700)
			f.ok(x(f.Create(f.op, vfs.RootID, "other", vfs.Unchecked, mode(0o600), vfs.Verifier{})))
			var changed, removed error
			together(func() { changed = change(dir) }, func() { _, removed = f.Rmdir(&op, vfs.RootID, dirName) })
			made := changed == nil && removed == unix.ENOTEMPTY
			gone := changed == vfs.ErrStale && removed == nil
			if !made && !gone {
				t.Fatalf("%s: %v; rmdir: %v", name, changed, removed)
			}
		}
	}
}

// A link that was made is reported, even if both names are removed at once.
func TestLinkOfAFileThatIsRemoved(t *testing.T) {
	f := newFixture(t, options{})
	op := *f.op
	for range 500 {
		file, seen := f.create(vfs.RootID, "file", 0o600), false
		remove := func() {
			_, err := f.Remove(&op, vfs.RootID, "link")
			seen = seen || err == nil
		}
		var linked error
		together(func() { _, _, linked = f.Link(f.op, file, vfs.RootID, "link") }, func() {
			_, err := f.Remove(&op, vfs.RootID, "file")
			f.ok(err)
			for range 20 {
				remove()
			}
		})
		remove()
		if linked != nil && linked != vfs.ErrStale || (linked == nil) != seen {
			t.Fatalf("link: %v; it was there: %t", linked, seen)
		}
	}
}

// What is gone from the backing file system is stale, not a name that is missing, or there.
func TestGone(t *testing.T) {
	f := newFixture(t, options{})
	dir, file := f.mkdir(vfs.RootID, "dir", 0o700), f.create(vfs.RootID, "file", 0o600)
	f.create(vfs.RootID, "other", 0o600)
	_, err := f.Lookup(f.op, dir, "x")
	f.wants(err, unix.ENOENT)
	f.ok(os.Remove(filepath.Join(f.dir, "dir")))
	f.ok(os.Remove(filepath.Join(f.dir, "file")))
	_, err = f.Lookup(f.op, dir, "x")
	f.wants(err, vfs.ErrStale)
	for _, name := range []string{"link", "other"} {
		_, _, err = f.Link(f.op, file, vfs.RootID, name)
		f.wants(err, vfs.ErrStale)
	}
}

// Whenever a file of an exclusive create is there, so is its verifier: a server that dies
// leaves none that the client's next try does not know.
func TestExclusiveIsWhole(t *testing.T) {
	f := newFixture(t, options{})
	verf := vfs.Verifier{1, 2, 3, 4, 5, 6, 7, 8}
	atime, mtime := verifierTimes(verf)
	made := make(chan error, 1)
	for i := range 500 {
		name := fmt.Sprint("file", i)
		go func() {
			_, _, err := f.Create(f.op, vfs.RootID, name, vfs.Exclusive, nil, verf)
			made <- err
		}()
		var st unix.Stat_t
		for errors.Is(unix.Lstat(filepath.Join(f.dir, name), &st), unix.ENOENT) {
		}
		f.ok(<-made)
		if timeOf(st.Atim) != atime || timeOf(st.Mtim) != mtime {
			t.Fatalf("file %d was there without its verifier: %v, %v", i, st.Atim, st.Mtim)
		}
	}
}
