package billyfs

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	nfs "github.com/willscott/go-nfs"

	"loopnfs/alloc"
	"loopnfs/internal/vfs"
)

// What is written by NFS is what the program sees, and the other way round.
func TestData(t *testing.T) {
	each(t, func(f *fixture) {
		want := pattern(3*alloc.PageSize + 17)
		n := f.create(vfs.RootID, "a").Node
		f.write(n, 0, want)
		if got := f.content("a"); !bytes.Equal(got, want) {
			f.Fatalf("the program sees %d bytes, not as they were written", len(got))
		}
		f.write(n, 5, []byte("hole"))
		f.write(n, 20_000, []byte("end"))
		copy(want[5:], "hole")
		want = append(append(want, make([]byte, 20_000-len(want))...), "end"...)
		for _, r := range []struct {
			off   uint64
			count uint32
		}{{0, 1}, {0, 4096}, {3, 9000}, {0, 1 << 20}, {20_002, 1}, {20_003, 1}, {1 << 62, 5}, {7, 0}} {
			got, eof := f.read(n, r.off, r.count)
			off := min(int(r.off), len(want))
			end := min(off+int(r.count), len(want))
			if !bytes.Equal(got, want[off:end]) || eof != (end == len(want)) {
				f.Errorf("read %d at %d: %d bytes, eof %v", r.count, r.off, len(got), eof)
			}
		}
		f.put("b", []byte("from the program"))
		if got, _ := f.read(f.lookup(vfs.RootID, "b").Node, 0, 100); string(got) != "from the program" {
			f.Errorf("%q", got)
		}
	})
}

// A truncated file that grows again has zeros, and a file has a limit.
func TestSize(t *testing.T) {
	f := newFixture(t, memfs.New(), &Config{MaxFileBytes: 1 << 20})
	n := f.create(vfs.RootID, "a").Node
	f.write(n, 0, pattern(100))
	for _, size := range []uint64{10, 50} {
		w, err := f.SetAttr(f.op, n, &vfs.SetAttr{SetSize: true, Size: size})
		f.ok(err)
		f.checkWCC(w)
	}
	if got, _ := f.read(n, 0, 100); !bytes.Equal(got, append(pattern(10), make([]byte, 40)...)) {
		t.Errorf("%v", got)
	}
	var res vfs.WriteResult
	v := vfs.Vec{Bufs: [][]byte{{1}}}
	for _, off := range []uint64{1 << 20, 1 << 40, 1<<63 - 2, 1 << 63, 1<<64 - 1} {
		f.want(f.Write(f.op, n, off, &v, vfs.Unstable, &res), syscall.EFBIG)
		_, err := f.SetAttr(f.op, n, &vfs.SetAttr{SetSize: true, Size: off + 1 | 1<<20 | 1})
		f.want(err, syscall.EFBIG)
	}
	f.ok(f.Write(f.op, n, 1<<20-1, &v, vfs.Unstable, &res))
	_, _, err := f.Create(f.op, vfs.RootID, "b", vfs.Guarded, &vfs.SetAttr{SetSize: true, Size: 1 << 21}, vfs.Verifier{})
	f.want(err, syscall.EFBIG)
}

func TestHandles(t *testing.T) {
	each(t, func(f *fixture) {
		d := f.mkdir(vfs.RootID, "d")
		sub := f.mkdir(d.Node, "sub")
		file := f.create(sub.Node, "file")
		handles := map[string][]byte{}
		for name, id := range map[string]vfs.NodeID{"root": vfs.RootID, "d": d.Node, "sub": sub.Node, "file": file.Node} {
			handles[name] = f.handle(id)
			if got, err := f.byHandle(handles[name]); got != id || err != nil || len(handles[name]) > 60 {
				f.Errorf("%s: node %d for %d, %v", name, got, id, err)
			}
		}
		ino := f.attr(file.Node).Ino
		f.write(file.Node, 0, []byte("still here"))

		// Of a directory above, and to another directory.
		_, _, err := f.Rename(f.op, vfs.RootID, "d", vfs.RootID, "e")
		f.ok(err)
		_, _, err = f.Rename(f.op, sub.Node, "file", vfs.RootID, "moved")
		f.ok(err)
		id, err := f.byHandle(handles["file"])
		f.ok(err)
		if got, _ := f.read(id, 0, 100); string(got) != "still here" || f.attr(id).Ino != ino {
			f.Errorf("after renames: %q, ino %d, was %d", got, f.attr(id).Ino, ino)
		}
		if e := f.lookup(f.lookup(vfs.RootID, "e").Node, "sub"); e.Node != sub.Node {
			f.Error("a directory below one that was renamed is another node")
		}

		_, err = f.Remove(f.op, vfs.RootID, "moved")
		f.ok(err)
		_, err = f.byHandle(handles["file"])
		f.want(err, stale)
		f.want(f.GetAttr(f.op, file.Node, &vfs.Attr{}), stale)
		f.create(vfs.RootID, "moved")
		_, err = f.byHandle(handles["file"])
		f.want(err, stale)

		_, err = f.Rmdir(f.op, d.Node, "sub")
		f.ok(err)
		_, err = f.byHandle(handles["sub"])
		f.want(err, stale)
		_, err = f.Lookup(f.op, sub.Node, "..")
		f.want(err, stale)
	})
}

// What nobody made here is refused, whatever it looks like.
func TestForgedHandles(t *testing.T) {
	f := newFixture(t, memfs.New(), nil)
	good := f.handle(f.create(vfs.RootID, "a").Node)
	other := newFixture(t, memfs.New(), nil)
	bad := [][]byte{nil, {1}, make([]byte, handleLen), make([]byte, 60), append(bytes.Clone(good), 0), good[:15], other.handle(vfs.RootID)}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1
		bad = append(bad, b)
	}
	for range 100 {
		b := make([]byte, handleLen)
		rand.Read(b)
		bad = append(bad, b)
	}
	for _, h := range bad {
		_, err := f.byHandle(h)
		f.want(err, vfs.ErrBadHandle)
	}
}

func TestNames(t *testing.T) {
	each(t, func(f *fixture) {
		f.put("x", []byte("1"))
		long := strings.Repeat("n", 255)
		for name, want := range map[string]error{
			"": syscall.EINVAL, ".": syscall.EINVAL, "..": syscall.EINVAL, "a/b": syscall.EINVAL, "/": syscall.EINVAL,
			"../x": syscall.EINVAL, "a\x00b": syscall.EINVAL, long + "n": syscall.ENAMETOOLONG,
		} {
			none := &vfs.SetAttr{}
			_, err := f.Lookup(f.op, vfs.RootID, name)
			if name != ".." {
				f.want(err, want)
			}
			_, _, err = f.Create(f.op, vfs.RootID, name, vfs.Unchecked, none, vfs.Verifier{})
			f.want(err, want)
			_, _, err = f.Mkdir(f.op, vfs.RootID, name, none)
			f.want(err, want)
			_, _, err = f.Symlink(f.op, vfs.RootID, name, "t", none)
			f.want(err, want)
			_, err = f.Remove(f.op, vfs.RootID, name)
			f.want(err, want)
			_, err = f.Rmdir(f.op, vfs.RootID, name)
			f.want(err, want)
			_, _, err = f.Rename(f.op, vfs.RootID, "x", vfs.RootID, name)
			f.want(err, want)
			_, _, err = f.Rename(f.op, vfs.RootID, name, vfs.RootID, "y")
			f.want(err, want)
		}
		want := []string{".", "..", "x"}
		for _, name := range []string{long, "..x", "...", " ", "\xff\xfe", "a\\b", "-", "*", "~", "\n", "C:"} {
			f.create(vfs.RootID, name)
			want = append(want, name)
		}
		got := f.names(vfs.RootID, 3, nil)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			f.Errorf("names %q, want %q", got, want)
		}
		for _, name := range want {
			if !strings.HasPrefix(name, ".") {
				f.lookup(vfs.RootID, name)
			}
		}
		if e := f.lookup(vfs.RootID, ".."); e.Node != vfs.RootID {
			f.Error("the root has a parent")
		}
	})
}

// Paths do not grow without end.
func TestDepth(t *testing.T) {
	f := newFixture(t, memfs.New(), nil)
	dir := vfs.RootID
	for i := 0; ; i++ {
		e, _, err := f.Mkdir(f.op, dir, strings.Repeat("d", 200), &vfs.SetAttr{})
		if err != nil {
			f.want(err, syscall.ENAMETOOLONG)
			if i < 15 {
				t.Errorf("only %d directories deep", i)
			}
			return
		}
		dir = f.keep(e).Node
	}
}

func TestRemove(t *testing.T) {
	each(t, func(f *fixture) {
		d := f.mkdir(vfs.RootID, "d")
		f.create(d.Node, "in")
		f.create(vfs.RootID, "file")
		_, err := f.Rmdir(f.op, vfs.RootID, "d")
		f.want(err, syscall.ENOTEMPTY)
		_, err = f.Remove(f.op, vfs.RootID, "d")
		f.want(err, syscall.EISDIR)
		_, err = f.Rmdir(f.op, vfs.RootID, "file")
		f.want(err, syscall.ENOTDIR)
		_, err = f.Remove(f.op, vfs.RootID, "none")
		f.want(err, noEnt)
		w, err := f.Remove(f.op, d.Node, "in")
		f.ok(err)
		f.checkWCC(w)
		w, err = f.Rmdir(f.op, vfs.RootID, "d")
		f.ok(err)
		f.checkWCC(w)
		_, err = f.Lookup(f.op, vfs.RootID, "d")
		f.want(err, noEnt)
	})
}

func TestRename(t *testing.T) {
	each(t, func(f *fixture) {
		rename := func(dir vfs.NodeID, name string, to vfs.NodeID, newName string) error {
			_, _, err := f.Rename(f.op, dir, name, to, newName)
			return err
		}
		d, e := f.mkdir(vfs.RootID, "d"), f.mkdir(vfs.RootID, "e")
		f.write(f.create(vfs.RootID, "a").Node, 0, []byte("a"))
		b := f.create(vfs.RootID, "b")
		f.ok(rename(vfs.RootID, "a", vfs.RootID, "a"))
		f.ok(rename(vfs.RootID, "a", vfs.RootID, "b"))
		f.want(f.GetAttr(f.op, b.Node, &vfs.Attr{}), stale)
		if got := f.content("b"); string(got) != "a" {
			f.Errorf("%q", got)
		}
		f.want(rename(vfs.RootID, "a", vfs.RootID, "c"), noEnt)
		f.want(rename(vfs.RootID, "b", vfs.RootID, "d"), syscall.EISDIR)
		f.want(rename(vfs.RootID, "d", vfs.RootID, "b"), syscall.ENOTDIR)
		f.want(rename(vfs.RootID, "d", d.Node, "in"), syscall.EINVAL)
		f.create(e.Node, "in")
		f.want(rename(vfs.RootID, "d", vfs.RootID, "e"), syscall.ENOTEMPTY)
		f.ok(rename(vfs.RootID, "e", vfs.RootID, "d"))
		f.lookup(e.Node, "in")
		f.want(f.GetAttr(f.op, d.Node, &vfs.Attr{}), stale)
		if got := f.lookup(vfs.RootID, "d"); got.Node != e.Node {
			f.Error("a directory is another node after it was renamed")
		}
	})
}

// Names that begin with the name of what is renamed stay.
func TestRenameKeepsSiblings(t *testing.T) {
	each(t, func(f *fixture) {
		d := f.mkdir(vfs.RootID, "d")
		for _, name := range []string{"log", "log.1", "log.1.gz", "r", "s", "rs"} {
			f.write(f.create(d.Node, name).Node, 0, []byte(name))
		}
		sub := f.mkdir(d.Node, "logs")
		f.write(f.create(sub.Node, "in").Node, 0, []byte("in"))
		for _, r := range [][2]string{{"log", "log.2"}, {"log.2", "log"}, {"log", "log.1"}, {"r", "s"}, {"s", "x"}, {"logs", "log"}} {
			_, _, err := f.Rename(f.op, d.Node, r[0], d.Node, r[1])
			f.ok(err)
		}
		for path, want := range map[string]string{"d/log.1": "log", "d/log.1.gz": "log.1.gz", "d/x": "r", "d/rs": "rs", "d/log/in": "in"} {
			if got := f.content(path); string(got) != want {
				f.Errorf("%s holds %q, want %q", path, got, want)
			}
		}
		got := f.names(d.Node, 100, nil)
		slices.Sort(got)
		if want := []string{".", "..", "log", "log.1", "log.1.gz", "rs", "x"}; !slices.Equal(got, want) {
			f.Errorf("%q, want %q", got, want)
		}
	})
}

func TestCreateModes(t *testing.T) {
	each(t, func(f *fixture) {
		verf := vfs.Verifier{1, 2, 3}
		create := func(how vfs.CreateMode, set vfs.SetAttr, v vfs.Verifier) (vfs.Entry, error) {
			e, _, err := f.Create(f.op, vfs.RootID, "a", how, &set, v)
			return f.keep(e), err
		}
		first, err := create(vfs.Exclusive, vfs.SetAttr{}, verf)
		f.ok(err)
		f.write(first.Node, 0, pattern(10))
		again, err := create(vfs.Exclusive, vfs.SetAttr{}, verf)
		f.ok(err)
		if again.Node != first.Node || again.Attr.Size != 10 {
			f.Errorf("an EXCLUSIVE create that was repeated gave node %d with %d bytes", again.Node, again.Attr.Size)
		}
		_, err = create(vfs.Exclusive, vfs.SetAttr{}, vfs.Verifier{9})
		f.want(err, syscall.EEXIST)
		_, err = create(vfs.Guarded, vfs.SetAttr{}, vfs.Verifier{})
		f.want(err, syscall.EEXIST)
		e, err := create(vfs.Unchecked, vfs.SetAttr{}, vfs.Verifier{})
		f.ok(err)
		if e.Attr.Size != 10 {
			f.Error("UNCHECKED create without a size truncates")
		}
		e, err = create(vfs.Unchecked, vfs.SetAttr{SetSize: true, Size: 3}, vfs.Verifier{})
		f.ok(err)
		if e.Attr.Size != 3 || f.attr(first.Node).Size != 3 {
			f.Error("UNCHECKED create with a size does not truncate")
		}
		f.mkdir(vfs.RootID, "d")
		_, _, err = f.Create(f.op, vfs.RootID, "d", vfs.Unchecked, &vfs.SetAttr{}, vfs.Verifier{})
		f.want(err, syscall.EEXIST)
		_, _, err = f.Mkdir(f.op, vfs.RootID, "a", &vfs.SetAttr{})
		f.want(err, syscall.EEXIST)
	})
}

func TestSymlink(t *testing.T) {
	each(t, func(f *fixture) {
		e, w, err := f.Symlink(f.op, vfs.RootID, "l", "some/where", &vfs.SetAttr{})
		f.ok(err)
		f.checkWCC(w)
		f.keep(e)
		if got, err := f.Readlink(f.op, e.Node, []byte("x")); string(got) != "xsome/where" || err != nil {
			f.Errorf("%q, %v", got, err)
		}
		if e.Attr.Type != vfs.TypeSymlink {
			f.Errorf("type %d", e.Attr.Type)
		}
		var v vfs.Vec
		_, err = f.Read(f.op, e.Node, 0, 10, &v, nil)
		f.want(err, syscall.EINVAL)
		_, err = f.Readlink(f.op, vfs.RootID, nil)
		f.want(err, syscall.EINVAL)
		f.put("target", []byte("kept"))
		_, _, err = f.Symlink(f.op, vfs.RootID, "t", "target", &vfs.SetAttr{})
		f.ok(err)
		f.Forget(f.byName[nameKey{vfs.RootID, "t"}].id, 1)
		_, err = f.Remove(f.op, vfs.RootID, "t")
		if f.derefs {
			f.want(err, syscall.EOPNOTSUPP)
		} else {
			f.ok(err)
		}
		if got := f.content("target"); string(got) != "kept" {
			f.Errorf("removing a link has changed its target: %q", got)
		}
	})
}

// Entries come and go while a directory is listed; those that stay are listed once.
func TestReadDirWhileChanging(t *testing.T) {
	each(t, func(f *fixture) {
		d := f.mkdir(vfs.RootID, "d").Node
		for i := range 60 {
			f.create(d, fmt.Sprintf("stays%02d", i))
			f.create(d, fmt.Sprintf("goes%02d", i))
		}
		i := 0
		names := f.names(d, 5, func() {
			if i < 60 {
				_, err := f.Remove(f.op, d, fmt.Sprintf("goes%02d", i))
				f.ok(err)
				f.create(d, fmt.Sprintf("comes%02d", i))
			}
			i++
		})
		slices.Sort(names)
		if len(slices.Compact(slices.Clone(names))) != len(names) {
			f.Error("a name was listed twice")
		}
		for i := range 60 {
			if !slices.Contains(names, fmt.Sprintf("stays%02d", i)) {
				f.Errorf("stays%02d is missing", i)
			}
		}
	})
}

func TestReadDirCookies(t *testing.T) {
	f := newFixture(t, memfs.New(), nil)
	f.create(vfs.RootID, "a")
	s := &sink{max: 1}
	verf, _, err := f.ReadDir(f.op, vfs.RootID, 0, vfs.Verifier{}, s)
	f.ok(err)
	for _, c := range []struct {
		cookie uint64
		verf   vfs.Verifier
	}{{1, vfs.Verifier{}}, {1, vfs.Verifier{1}}, {1 << 63, verf}, {1<<64 - 1, verf}} {
		_, _, err := f.ReadDir(f.op, vfs.RootID, c.cookie, c.verf, s)
		f.want(err, vfs.ErrBadCookie)
	}
	if _, eof, err := f.ReadDir(f.op, vfs.RootID, 1<<62-1, verf, &sink{}); !eof || err != nil {
		t.Errorf("behind the last entry: eof %v, %v", eof, err)
	}
}

// A listing tells the same file IDs as LOOKUP, before and after it.
func TestFileIDs(t *testing.T) {
	each(t, func(f *fixture) {
		f.put("a", nil)
		f.put("b", nil)
		a := f.lookup(vfs.RootID, "a").Attr.Ino
		s := &sink{max: 10}
		_, _, err := f.ReadDir(f.op, vfs.RootID, 0, vfs.Verifier{}, s)
		f.ok(err)
		seen := map[uint64]string{}
		for _, e := range s.list[2:] {
			if other, twice := seen[e.Ino]; twice || e.Ino == 0 {
				f.Errorf("%s has the file ID %d, like %q", e.Name, e.Ino, other)
			}
			seen[e.Ino] = string(e.Name)
			if got := f.lookup(vfs.RootID, string(e.Name)).Attr.Ino; got != e.Ino {
				f.Errorf("%s has the file ID %d in a listing, %d else", e.Name, e.Ino, got)
			}
		}
		if seen[a] != "a" {
			f.Errorf("the file ID of a is now that of %q", seen[a])
		}
	})
}

// A client may cache as long as nothing changes, and sees every change.
func TestTimes(t *testing.T) {
	each(t, func(f *fixture) {
		n := f.create(vfs.RootID, "a").Node
		first := f.attr(n)
		time.Sleep(20 * time.Millisecond)
		if again := f.attr(n); again != first {
			f.Errorf("attributes change by themselves: %+v, were %+v", again, first)
		}
		dir := f.attr(vfs.RootID)
		f.write(n, 0, []byte("x"))
		written := f.attr(n)
		if written.Mtime == first.Mtime || written.Ctime == first.Ctime {
			f.Error("a WRITE does not change mtime and ctime")
		}
		if got := f.attr(vfs.RootID); got.Mtime != dir.Mtime {
			f.Error("a WRITE changes the directory")
		}
		f.create(vfs.RootID, "b")
		if got := f.attr(vfs.RootID); got.Mtime == dir.Mtime {
			f.Error("a CREATE does not change the directory")
		}
		_, err := f.SetAttr(f.op, n, &vfs.SetAttr{HasGuard: true, Guard: first.Ctime, SetSize: true})
		f.want(err, vfs.ErrNotSync)
		_, err = f.SetAttr(f.op, n, &vfs.SetAttr{HasGuard: true, Guard: written.Ctime, SetSize: true})
		f.ok(err)

		set := &vfs.SetAttr{SetMtime: vfs.SetToClientTime, Mtime: vfs.Time{Sec: 1e9, Nsec: 5000}, SetAtime: vfs.SetToClientTime, Atime: vfs.Time{Sec: 1e8}}
		_, err = f.SetAttr(f.op, n, set)
		if f.change == nil && !f.keeps {
			f.want(err, syscall.EOPNOTSUPP)
			return
		}
		f.ok(err)
		if got := f.attr(n); got.Mtime != set.Mtime || got.Atime != set.Atime {
			f.Errorf("times %v %v, want %v %v", got.Mtime, got.Atime, set.Mtime, set.Atime)
		}
		f.write(n, 0, []byte("y"))
		if got := f.attr(n); got.Mtime == set.Mtime {
			f.Error("a WRITE after SETATTR does not change mtime")
		}
	})
}

// What the program writes by itself is seen too.
func TestProgramWrites(t *testing.T) {
	each(t, func(f *fixture) {
		f.put("a", []byte("1"))
		n := f.lookup(vfs.RootID, "a")
		h := f.handle(n.Node)
		f.put("a", []byte("22"))
		got := f.attr(n.Node)
		if got.Size != 2 || got.Mtime == n.Attr.Mtime && !f.host {
			f.Errorf("%+v, was %+v", got, n.Attr)
		}
		f.ok(f.bfs.Remove("a"))
		f.want(f.GetAttr(f.op, n.Node, &got), stale)
		f.ok(f.bfs.MkdirAll("a", 0o755))
		f.lookup(vfs.RootID, "a")
		_, err := f.byHandle(h)
		f.want(err, stale)
	})
}

func TestPermissions(t *testing.T) {
	for _, name := range []string{"memfs", "go-nfs", "osfs-change"} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("giving files away needs root")
			}
			f := newFixture(t, backends[name](t), nil)
			_, err := f.SetAttr(f.op, vfs.RootID, &vfs.SetAttr{SetMode: true, Mode: 0o755, SetUID: true, SetGID: true})
			f.ok(err)
			alice, bob := f.as(1000, 1000), f.as(1001, 1001, 1000)
			_, _, err = f.Create(alice, vfs.RootID, "a", vfs.Guarded, &vfs.SetAttr{}, vfs.Verifier{})
			f.want(err, syscall.EACCES)
			home := f.mkdir(vfs.RootID, "home").Node
			_, err = f.SetAttr(f.op, home, &vfs.SetAttr{SetUID: true, UID: 1000, SetGID: true, GID: 1000, SetMode: true, Mode: 0o750})
			f.ok(err)
			e, _, err := f.Create(alice, home, "a", vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: 0o4640}, vfs.Verifier{})
			f.ok(err)
			f.keep(e)
			if a := e.Attr; a.UID != 1000 || a.GID != 1000 || a.Mode != 0o4640 {
				t.Errorf("a new file has mode %o, owner %d:%d", a.Mode, a.UID, a.GID)
			}
			v, res := vfs.Vec{Bufs: [][]byte{[]byte("hi")}}, vfs.WriteResult{}
			f.ok(f.Write(alice, e.Node, 0, &v, vfs.FileSync, &res))
			if res.Stable != vfs.FileSync || res.WCC.Post.Mode != 0o640 {
				t.Errorf("stable %d, mode %o after a WRITE", res.Stable, res.WCC.Post.Mode)
			}
			f.want(f.Write(bob, e.Node, 0, &v, vfs.Unstable, &res), syscall.EACCES)
			var in vfs.Vec
			_, err = f.Read(bob, e.Node, 0, 2, &in, nil)
			f.ok(err)
			in.Release()
			_, err = f.Read(f.as(7, 7), e.Node, 0, 2, &in, nil)
			f.want(err, syscall.EACCES)
			_, err = f.Lookup(f.as(7, 7), home, "a")
			f.want(err, syscall.EACCES)
			_, _, err = f.ReadDir(f.as(7, 7), home, 0, vfs.Verifier{}, &sink{})
			f.want(err, syscall.EACCES)
			_, err = f.Remove(bob, home, "a")
			f.want(err, syscall.EACCES)
			_, err = f.SetAttr(bob, e.Node, &vfs.SetAttr{SetMode: true, Mode: 0o777})
			f.want(err, syscall.EPERM)
			_, err = f.SetAttr(alice, e.Node, &vfs.SetAttr{SetUID: true, UID: 1001})
			f.want(err, syscall.EPERM)
			_, err = f.SetAttr(alice, e.Node, &vfs.SetAttr{SetGID: true, GID: 1001})
			f.want(err, syscall.EPERM)
			if got, err := f.Access(bob, e.Node, 0x3f); got != vfs.AccessRead || err != nil {
				t.Errorf("ACCESS for a member of the group: %#x, %v", got, err)
			}
			if got, err := f.Access(alice, home, 0x3f); got != 0x1f || err != nil {
				t.Errorf("ACCESS for the owner of a directory: %#x, %v", got, err)
			}

			_, err = f.SetAttr(f.op, vfs.RootID, &vfs.SetAttr{SetMode: true, Mode: 0o1777})
			f.ok(err)
			c, _, err := f.Create(alice, vfs.RootID, "mine", vfs.Guarded, &vfs.SetAttr{}, vfs.Verifier{})
			f.ok(err)
			f.keep(c)
			_, err = f.Remove(bob, vfs.RootID, "mine")
			f.want(err, syscall.EPERM)
			_, _, err = f.Rename(bob, vfs.RootID, "mine", vfs.RootID, "bobs")
			f.want(err, syscall.EPERM)
			_, err = f.Remove(alice, vfs.RootID, "mine")
			f.ok(err)
		})
	}
}

// readOnly is a file system that says so.
type readOnly struct{ billy.Filesystem }

func (readOnly) Capabilities() billy.Capability { return billy.ReadCapability | billy.SeekCapability }

// Who gets a file does not get its setuid bit (chown(2)), unless root says so.
func TestChownTakesSetuid(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f := newFixture(t, newChanging(t), nil)
	e, _, err := f.Create(f.op, vfs.RootID, "f", vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: 0o755}, vfs.Verifier{})
	f.ok(err)
	defer f.Forget(e.Node, 1)
	for _, c := range []struct {
		set  vfs.SetAttr
		want uint32
	}{
		{vfs.SetAttr{SetMode: true, Mode: 0o4755}, 0o4755},
		{vfs.SetAttr{SetUID: true, UID: 1000}, 0o755},
		{vfs.SetAttr{SetMode: true, Mode: 0o4755, SetGID: true, GID: 1000}, 0o4755},
		{vfs.SetAttr{SetMode: true, Mode: 0o4755, SetGID: true, GID: 1001}, 0o4755},
		{vfs.SetAttr{SetGID: true, GID: 1002}, 0o755},
	} {
		w, err := f.SetAttr(f.op, e.Node, &c.set)
		f.ok(err)
		if w.Post.Mode != c.want {
			t.Errorf("%+v: mode %o, want %o", c.set, w.Post.Mode, c.want)
		}
	}
}

func TestReadOnly(t *testing.T) {
	f := newFixture(t, readOnly{memfs.New()}, nil)
	f.put("a", []byte("a"))
	n := f.lookup(vfs.RootID, "a").Node
	_, _, err := f.Create(f.op, vfs.RootID, "b", vfs.Guarded, &vfs.SetAttr{}, vfs.Verifier{})
	f.want(err, syscall.EROFS)
	_, err = f.Remove(f.op, vfs.RootID, "a")
	f.want(err, syscall.EROFS)
	_, _, err = f.Rename(f.op, vfs.RootID, "a", vfs.RootID, "b")
	f.want(err, syscall.EROFS)
	_, err = f.SetAttr(f.op, n, &vfs.SetAttr{SetSize: true})
	f.want(err, syscall.EROFS)
	v := vfs.Vec{Bufs: [][]byte{{1}}}
	f.want(f.Write(f.op, n, 0, &v, vfs.Unstable, &vfs.WriteResult{}), syscall.EROFS)
	if got, err := f.Access(f.op, n, 0x3f); got != vfs.AccessRead || err != nil {
		t.Errorf("ACCESS %#x, %v", got, err)
	}
	if got, _ := f.read(n, 0, 10); string(got) != "a" {
		t.Errorf("%q", got)
	}
}

func TestSpecialFiles(t *testing.T) {
	mknod := func(f *fixture, op *vfs.Op, name string, typ vfs.FileType) (vfs.Entry, error) {
		e, _, err := f.Mknod(op, vfs.RootID, name, typ, 1, 3, &vfs.SetAttr{SetMode: true, Mode: 0o600})
		return f.keep(e), err
	}
	f := newFixture(t, memfs.New(), nil)
	_, err := mknod(f, f.op, "p", vfs.TypeFIFO)
	f.want(err, syscall.EOPNOTSUPP)
	_, _, err = f.Link(f.op, vfs.RootID, vfs.RootID, "l")
	f.want(err, syscall.EOPNOTSUPP)

	f = newFixture(t, newChanging(t), nil)
	for name, typ := range map[string]vfs.FileType{"p": vfs.TypeFIFO, "s": vfs.TypeSocket} {
		e, err := mknod(f, f.op, name, typ)
		f.ok(err)
		if e.Attr.Type != typ || e.Attr.Mode != 0o600 {
			t.Errorf("%s: type %d, mode %o", name, e.Attr.Type, e.Attr.Mode)
		}
	}
	_, err = mknod(f, f.as(1, 1), "n", vfs.TypeChar)
	if os.Geteuid() == 0 {
		f.want(err, syscall.EACCES) // the directory is root's
	}
}

// The table has a limit; what was handed out stays good, the rest makes room.
func TestMaxObjects(t *testing.T) {
	f := newFixture(t, memfs.New(), &Config{MaxObjects: 20})
	for i := range 100 {
		f.put(fmt.Sprintf("f%d", i), nil)
	}
	if got := f.names(vfs.RootID, 7, nil); len(got) != 102 {
		t.Errorf("%d names", len(got))
	}
	if len(f.byID) > 20 {
		t.Errorf("%d objects are known, over the limit of 20", len(f.byID))
	}
	var handles [][]byte
	for i := range 100 {
		f.swept = time.Time{}
		e, err := f.Lookup(f.op, vfs.RootID, fmt.Sprintf("f%d", i))
		if err != nil {
			f.want(err, vfs.ErrJukebox)
			break
		}
		handles = append(handles, f.handle(e.Node))
		f.Forget(e.Node, 1)
	}
	if len(handles) != 19 {
		t.Errorf("%d objects below the root are known, want 19", len(handles))
	}
	for _, h := range handles {
		_, err := f.byHandle(h)
		f.ok(err)
	}
	f.swept = time.Time{}
	_, _, err := f.Mkdir(f.op, vfs.RootID, "late", &vfs.SetAttr{})
	f.want(err, vfs.ErrJukebox)
	if _, err := f.fs.Lstat("late"); err == nil {
		t.Error("what is to be tried again was made")
	}
	_, err = f.Remove(f.op, vfs.RootID, "f0")
	f.ok(err)
	f.Forget(f.root.id+1, 0)
	f.checkRoom(handles[0])
}

// checkRoom checks that there is room for one more when that of h is gone.
func (f *fixture) checkRoom(h []byte) {
	f.Helper()
	_, err := f.byHandle(h)
	f.want(err, stale)
	for id, n := range f.held {
		f.Forget(id, n)
		delete(f.held, id)
	}
	f.lookup(vfs.RootID, "f50")
}

// What unstable data went through is told by the verifier.
func TestStable(t *testing.T) {
	s := &syncing{Filesystem: memfs.New()}
	f := newFixture(t, s, nil)
	n := f.create(vfs.RootID, "a").Node
	s.syncs = 0
	v := vfs.Vec{Bufs: [][]byte{{1}}}
	var res vfs.WriteResult
	f.ok(f.Write(f.op, n, 0, &v, vfs.Unstable, &res))
	if res.Stable != vfs.Unstable || s.syncs != 0 {
		t.Errorf("UNSTABLE gives stable %d after %d syncs", res.Stable, s.syncs)
	}
	f.ok(f.Write(f.op, n, 0, &v, vfs.DataSync, &res))
	if res.Stable != vfs.DataSync || s.syncs != 1 {
		t.Errorf("DATA_SYNC gives stable %d after %d syncs", res.Stable, s.syncs)
	}
	verf, _, err := f.Commit(f.op, n, 0, 0)
	f.ok(err)
	if s.syncs != 2 || verf != res.Verifier {
		t.Errorf("COMMIT: %d syncs, verifier %x, want %x", s.syncs, verf, res.Verifier)
	}
	s.err = syscall.EIO
	verf, _, err = f.Commit(f.op, n, 0, 0)
	f.want(err, syscall.EIO)
	if verf == res.Verifier {
		t.Error("the verifier is the same after a sync that failed")
	}
	f.want(f.Write(f.op, n, 0, &v, vfs.FileSync, &res), syscall.EIO)
}

// syncing is a file system whose files have Sync.
type syncing struct {
	billy.Filesystem
	syncs int
	err   error
}

type syncFile struct {
	billy.File
	fs *syncing
}

func (f syncFile) Sync() error { f.fs.syncs++; return f.fs.err }

func (s *syncing) Open(name string) (billy.File, error) { return s.OpenFile(name, os.O_RDONLY, 0) }
func (s *syncing) OpenFile(name string, flag int, perm os.FileMode) (billy.File, error) {
	f, err := s.Filesystem.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return syncFile{f, s}, nil
}

// Files of osfs, which hides Sync behind a chroot, can be synced all the same.
func TestSyncThroughChroot(t *testing.T) {
	bfs := newChanging(t)
	f := newFixture(t, bfs, nil)
	if !f.syncDirs {
		t.Error("directories of osfs cannot be synced")
	}
	file, err := bfs.Create("a")
	f.ok(err)
	defer file.Close()
	if syncerOf(file) == nil {
		t.Error("a file of osfs cannot be synced")
	}
	mem, err := memfs.New().Create("a")
	f.ok(err)
	if syncerOf(mem) != nil {
		t.Error("a file of memfs can be synced")
	}
}

// The handler tells how large the file system is.
func TestStatFS(t *testing.T) {
	f := newFixture(t, memfs.New(), nil)
	if st, err := f.StatFS(f.op, vfs.RootID); err != nil || st.TotalBytes != 1<<62 || st.NameMax != 255 {
		t.Errorf("%+v, %v", st, err)
	}
	f.statFS = func(st *nfs.FSStat) error { st.TotalSize, st.AvailableFiles = 12345, 6; return nil }
	if st, err := f.StatFS(f.op, vfs.RootID); err != nil || st.TotalBytes != 12345 || st.AvailFiles != 6 {
		t.Errorf("%+v, %v", st, err)
	}
	f.statFS = func(*nfs.FSStat) error { return &nfs.NFSStatusError{NFSStatus: nfs.NFSStatusIO} }
	_, err := f.StatFS(f.op, vfs.RootID)
	f.want(err, syscall.EIO)
}
