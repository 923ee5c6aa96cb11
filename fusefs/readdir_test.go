package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// names takes up to limit entries (0: all) and remembers them.
type names struct {
	limit  int
	got    []string
	inos   map[string]uint64
	types  map[string]vfs.FileType
	cookie uint64
}

func (n *names) Entry(e *vfs.DirEntry) bool {
	if n.limit > 0 && len(n.got) == n.limit {
		return false
	}
	n.got = append(n.got, string(e.Name))
	if n.inos == nil {
		n.inos, n.types = map[string]uint64{}, map[string]vfs.FileType{}
	}
	n.inos[string(e.Name)], n.types[string(e.Name)] = e.Ino, e.Type
	n.cookie = e.Cookie
	return true
}

// list reads a whole directory, limit entries at a time.
func (f *fixture) list(dir vfs.NodeID, limit int) []string {
	f.t.Helper()
	var all []string
	var cookie uint64
	for {
		n := &names{limit: limit, cookie: cookie}
		_, eof, err := f.ReadDir(f.op, dir, cookie, vfs.Verifier{}, n)
		f.ok(err)
		all = append(all, n.got...)
		if eof {
			return all
		}
		if len(n.got) == 0 {
			f.t.Fatal("no entries, and no end")
		}
		cookie = n.cookie
	}
}

// check compares a listing with what the directory must contain: every name of
// must once, others of may at most once.
func checkList(t testing.TB, got []string, must func(string) bool, nMust int) {
	t.Helper()
	seen := map[string]bool{}
	n := 0
	for _, name := range got {
		if seen[name] {
			t.Errorf("%q is listed twice", name)
		}
		seen[name] = true
		if must(name) {
			n++
		}
	}
	if n != nMust {
		t.Errorf("%d of %d names are listed", n, nMust)
	}
}

func TestReadDir(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		d := f.mkdir(vfs.RootID, "d", 0o755)
		f.create(d, "file", 0)
		sub := f.mkdir(d, "sub", 0o755)
		for range 2 {
			n := &names{}
			_, eof, err := f.ReadDir(f.op, d, 0, vfs.Verifier{}, n)
			f.ok(err)
			if !eof || len(n.got) != 4 {
				f.t.Errorf("eof %v: %q", eof, n.got)
			}
			if n.inos["sub"] != f.getattr(sub).Ino || n.inos["."] != f.getattr(d).Ino || n.inos[".."] != f.getattr(vfs.RootID).Ino {
				f.t.Errorf("inodes: %v", n.inos)
			}
			if n.types["file"] != vfs.TypeRegular || n.types["sub"] != vfs.TypeDirectory {
				f.t.Errorf("types: %v", n.types)
			}
		}
		n := &names{}
		_, _, err := f.ReadDir(f.op, vfs.RootID, 0, vfs.Verifier{}, n)
		f.ok(err)
		if n.inos[".."] != f.getattr(vfs.RootID).Ino {
			f.t.Error(".. of the root leads out of the export")
		}
		_, _, err = f.ReadDir(f.op, d, 0, vfs.Verifier{1}, n)
		f.wants(err, vfs.ErrBadCookie)
		_, _, err = f.ReadDir(f.op, d, 1<<63+5, vfs.Verifier{}, n)
		f.wants(err, vfs.ErrBadCookie)
	})
}

func TestListingFollowsChanges(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		d := f.mkdir(vfs.RootID, "d", 0o755)
		want := map[string]bool{".": true, "..": true}
		check := func(what string) {
			f.t.Helper()
			got := f.list(d, 3)
			checkList(f.t, got, func(s string) bool { return want[s] }, len(want))
			if len(got) != len(want) {
				f.t.Errorf("after %s: %q, want %d names", what, got, len(want))
			}
		}
		for i := range 700 {
			name := fmt.Sprintf("a name that is not short %d", i)
			f.create(d, name, 0)
			want[name] = true
			if i%50 == 0 || i < 5 {
				check("create")
			}
		}
		for i := 0; i < 700; i += 3 {
			name := fmt.Sprintf("a name that is not short %d", i)
			_, err := f.Remove(f.op, d, name)
			f.ok(err)
			delete(want, name)
			if i%60 == 0 {
				check("remove")
			}
		}
		f.ok(os.WriteFile(filepath.Join(f.dir, "d", "by somebody else"), nil, 0o644))
		want["by somebody else"] = true
		time.Sleep(25 * time.Millisecond) // a kernel clock tick, before Linux 6.13
		check("a change by somebody else")
	})
}

func TestSmallListingIsReadAgainAtOnce(t *testing.T) {
	f := newFixture(t, options{})
	d := f.mkdir(vfs.RootID, "d", 0o755)
	in, _ := f.inode(d)
	f.list(d, 0)
	for i := range 300 {
		f.create(d, fmt.Sprint("file", i), 0)
		if i < 200 && len(in.dir.blocks) == 0 {
			t.Fatalf("the listing was dropped by file %d", i)
		}
		if i%40 == 39 {
			if len(in.dir.blocks) == 0 || !in.dir.hasEnd {
				f.list(d, 0)
			}
			checkList(t, f.list(d, 0), func(s string) bool { return s[0] == 'f' }, i+1)
		}
	}
}

func TestTenThousandEntries(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		const n = 10_000
		d := f.mkdir(vfs.RootID, "d", 0o755)
		for i := range n {
			f.ok(os.WriteFile(filepath.Join(f.dir, "d", fmt.Sprintf("keep%d", i)), nil, 0o644))
		}
		stop, done := make(chan bool), make(chan bool)
		go func() {
			defer close(done)
			op := f.mem.newOp("other")
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("temp%d", i)
				e, _, err := f.Create(op, d, name, vfs.Guarded, mode(0), vfs.Verifier{})
				if err == nil {
					f.Forget(e.Node, 1)
					_, err = f.Remove(op, d, name)
				}
				if err != nil {
					f.t.Error(err)
					return
				}
			}
		}()
		for _, limit := range []int{0, 1000, 77} {
			keep := func(s string) bool { return strings.HasPrefix(s, "keep") }
			checkList(f.t, f.list(d, limit), keep, n)
		}
		close(stop)
		<-done
		in, _ := f.inode(d)
		if got := in.m.Len(); got > f.maxBlocks {
			f.t.Errorf("the listing has %d pages, the limit is %d", got, f.maxBlocks)
		}
	})
}

func TestCookieSurvivesTheProcess(t *testing.T) {
	dir, state := diskDir(t), t.TempDir()
	f := newFixture(t, options{dir: dir, state: state})
	const n = 500
	for i := range n {
		f.create(vfs.RootID, fmt.Sprint("f", i), 0)
	}
	first := &names{limit: 100}
	_, _, err := f.ReadDir(f.op, vfs.RootID, 0, vfs.Verifier{}, first)
	f.ok(err)
	f.ok(f.Shutdown())
	g := newFixture(t, options{dir: dir, state: state})
	rest := &names{}
	_, eof, err := g.ReadDir(g.op, vfs.RootID, first.cookie, vfs.Verifier{}, rest)
	g.ok(err)
	if !eof {
		t.Error("no end")
	}
	checkList(t, append(first.got, rest.got...), func(s string) bool { return s[0] == 'f' }, n)
}

func TestListingIsGivenUpUnderPressure(t *testing.T) {
	f := newFixture(t, options{bytes: 4 << 20})
	var dirs []vfs.NodeID
	for i := range 8 {
		d := f.mkdir(vfs.RootID, fmt.Sprint("d", i), 0o755)
		for j := range 200 {
			f.create(d, fmt.Sprint("file", j), 0)
		}
		f.list(d, 0)
		dirs = append(dirs, d)
	}
	pages := func() (n int) {
		for _, d := range dirs {
			in, _ := f.inode(d)
			n += in.m.Len()
		}
		return n
	}
	before := pages()
	if before == 0 {
		t.Fatal("nothing is cached")
	}
	big := f.create(vfs.RootID, "big", 0o644)
	for off := uint64(0); off < 32<<20; off += 128 << 10 {
		f.write(big, off, pattern(128<<10, 1), vfs.Unstable)
	}
	if after := pages(); after >= before {
		t.Errorf("%d pages of listings before, %d after", before, after)
	}
	for _, d := range dirs {
		checkList(t, f.list(d, 50), func(s string) bool { return s[0] == 'f' }, 200)
	}
}

func TestRemovedDirectory(t *testing.T) {
	f := newFixture(t, options{})
	d := f.mkdir(vfs.RootID, "d", 0o755)
	f.list(d, 0)
	_, err := f.Rmdir(f.op, vfs.RootID, "d")
	f.ok(err)
	_, _, err = f.ReadDir(f.op, d, 0, vfs.Verifier{}, &names{})
	f.wants(err, vfs.ErrStale)
	_, _, err = f.Create(f.op, d, "x", vfs.Guarded, mode(0), vfs.Verifier{})
	f.wants(err, vfs.ErrStale)
	e := f.mkdir(vfs.RootID, "e", 0o755)
	f.ok(os.Remove(filepath.Join(f.dir, "e")))
	_, _, err = f.Create(f.op, e, "x", vfs.Guarded, mode(0), vfs.Verifier{})
	f.wants(err, vfs.ErrStale)
	_, err = f.Lookup(f.op, e, "x")
	if err != unix.ENOENT {
		f.wants(err, vfs.ErrStale)
	}
}
