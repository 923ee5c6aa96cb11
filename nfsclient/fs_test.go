package nfsclient

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"loopnfs/internal/vfs"
)

func TestReadBackWhatWasWritten(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 16<<20, s.addr, "/data", nil)
	n := b.create("f")
	data := pattern(1, 1<<20+123)
	b.write(n, 0, data)
	if got := b.read(n, 0, len(data)+10); !bytes.Equal(got, data) {
		t.Fatal("cache gives back something else")
	}
	if a := b.attr(n); a.Size != uint64(len(data)) {
		t.Fatalf("size %d before write-back, want %d", a.Size, len(data))
	}
	b.sync(n)
	onDisk, err := os.ReadFile(filepath.Join(s.dir, "f"))
	if err != nil || !bytes.Equal(onDisk, data) {
		t.Fatalf("the server has something else after sync: %d bytes, %v", len(onDisk), err)
	}
	if st := b.c.Stats(); st.Dirty+st.Writeback+st.Unstable != 0 {
		t.Fatalf("pages left after sync: %+v", st)
	}
	ino, _ := b.c.tab.get(n)
	ino.m.InvalidateClean()
	if got := b.read(n, 0, len(data)); !bytes.Equal(got, data) {
		t.Fatal("the server gives back something else")
	}
}

func TestNames(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 8<<20, s.addr, "/data", nil)
	c, op := b.c, &b.op
	mode := &vfs.SetAttr{SetMode: true, Mode: 0o755}
	d, _, err := c.Mkdir(op, vfs.RootID, "d", mode)
	must(t, err)
	_, _, err = c.Mkdir(op, vfs.RootID, "d", mode)
	wantErrno(t, err, syscall.EEXIST)
	f, _, err := c.Create(op, d.Node, "f", vfs.Guarded, mode, vfs.Verifier{})
	must(t, err)
	_, _, err = c.Create(op, d.Node, "f", vfs.Guarded, mode, vfs.Verifier{})
	wantErrno(t, err, syscall.EEXIST)
	x, _, err := c.Create(op, d.Node, "x", vfs.Exclusive, &vfs.SetAttr{SetMode: true, Mode: 0o600}, vfs.Verifier{})
	must(t, err)
	if x.Attr.Mode != 0o600 {
		t.Fatalf("mode %o after exclusive create", x.Attr.Mode)
	}
	_, _, err = c.Create(op, d.Node, "x", vfs.Exclusive, mode, vfs.Verifier{})
	wantErrno(t, err, syscall.EEXIST)
	l, _, err := c.Symlink(op, d.Node, "l", "f/../f", &vfs.SetAttr{})
	must(t, err)
	target, err := c.Readlink(op, l.Node, nil)
	must(t, err)
	if string(target) != "f/../f" {
		t.Fatalf("link to %q", target)
	}
	_, _, err = c.Mknod(op, d.Node, "p", vfs.TypeFIFO, 0, 0, mode)
	must(t, err)
	a, _, err := c.Link(op, f.Node, d.Node, "f2")
	must(t, err)
	if a.Nlink != 2 {
		t.Fatalf("%d links", a.Nlink)
	}
	e, err := c.Lookup(op, d.Node, "f2")
	must(t, err)
	if e.Node != f.Node {
		t.Fatal("two names of one file are two nodes")
	}
	up, err := c.Lookup(op, d.Node, "..")
	must(t, err)
	if up.Node != vfs.RootID {
		t.Fatalf(".. of d is node %d", up.Node)
	}
	_, _, err = c.Rename(op, d.Node, "f2", vfs.RootID, "g")
	must(t, err)
	_, err = c.Lookup(op, d.Node, "f2")
	wantErrno(t, err, syscall.ENOENT)
	_, err = c.Rmdir(op, vfs.RootID, "d")
	wantErrno(t, err, syscall.ENOTEMPTY)
	for _, name := range []string{"f", "x", "l", "p"} {
		_, err = c.Remove(op, d.Node, name)
		must(t, err)
	}
	_, err = c.Remove(op, d.Node, "f")
	wantErrno(t, err, syscall.ENOENT)
	_, err = c.Rmdir(op, vfs.RootID, "d")
	must(t, err)
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00"} {
		_, err = c.Remove(op, vfs.RootID, bad)
		wantErrno(t, err, syscall.EINVAL)
	}
	h, err := c.Handle(f.Node, nil)
	must(t, err)
	id, err := c.ByHandle(op, h)
	must(t, err)
	if id != f.Node {
		t.Fatal("handle leads elsewhere")
	}
	st, err := c.StatFS(op, vfs.RootID)
	must(t, err)
	if st.TotalBytes == 0 {
		t.Fatal("no bytes in the file system")
	}
	r, err := c.Access(op, f.Node, vfs.AccessRead|vfs.AccessModify)
	must(t, err)
	if r != vfs.AccessRead|vfs.AccessModify {
		t.Fatalf("rights %#x", r)
	}
}

type listing struct {
	names map[string]vfs.FileType
	last  uint64
	room  int
}

func (l *listing) Entry(e *vfs.DirEntry) bool {
	if l.room == 0 {
		return false
	}
	l.room--
	l.names[string(e.Name)], l.last = e.Type, e.Cookie
	return true
}

func TestReadDir(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 8<<20, s.addr, "/data", nil)
	for i := range 700 {
		must(t, os.WriteFile(filepath.Join(s.dir, string(rune('a'+i%26))+string(rune('a'+i/26))), nil, 0o644))
	}
	for _, plus := range []bool{true, false} {
		b.c.noReaddirplus.Store(!plus)
		l := listing{names: map[string]vfs.FileType{}}
		var verf vfs.Verifier
		for eof := false; !eof; {
			var err error
			l.room = 100
			verf, eof, err = b.c.ReadDir(&b.op, vfs.RootID, l.last, verf, &l)
			must(t, err)
		}
		if len(l.names) != 702 {
			t.Fatalf("plus %v: %d names, want 702", plus, len(l.names))
		}
		if plus && l.names["aa"] != vfs.TypeRegular {
			t.Fatalf("type %d", l.names["aa"])
		}
	}
}

func TestSetAttrAndTruncate(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 8<<20, s.addr, "/data", nil)
	n := b.create("f")
	b.write(n, 0, bytes.Repeat([]byte{'x'}, 10000))
	_, err := b.c.SetAttr(&b.op, n, &vfs.SetAttr{SetSize: true, Size: 5000})
	must(t, err)
	if a := b.attr(n); a.Size != 5000 {
		t.Fatalf("size %d", a.Size)
	}
	_, err = b.c.SetAttr(&b.op, n, &vfs.SetAttr{SetSize: true, Size: 9000})
	must(t, err)
	want := append(bytes.Repeat([]byte{'x'}, 5000), make([]byte, 4000)...)
	if got := b.read(n, 0, 20000); !bytes.Equal(got, want) {
		t.Fatalf("wrong content after truncation, %d bytes", len(got))
	}
	b.write(n, 20000, []byte("end"))
	b.sync(n)
	want = append(append(want, make([]byte, 11000)...), "end"...)
	if onDisk, _ := os.ReadFile(filepath.Join(s.dir, "f")); !bytes.Equal(onDisk, want) {
		t.Fatal("the server has something else")
	}
	_, err = b.c.SetAttr(&b.op, n, &vfs.SetAttr{SetMode: true, Mode: 0o400, SetMtime: vfs.SetToClientTime, Mtime: vfs.Time{Sec: 12345}})
	must(t, err)
	if a := b.attr(n); a.Mode != 0o400 || a.Mtime.Sec != 12345 {
		t.Fatalf("mode %o, mtime %d", a.Mode, a.Mtime.Sec)
	}
}

func TestCloseToOpen(t *testing.T) {
	s := testServer(t, 32<<20)
	b1 := newBed(t, 8<<20, s.addr, "/data", nil)
	b2 := newBed(t, 8<<20, s.addr, "/data", nil)
	n1 := b1.create("f")
	put := func(b *bed, n vfs.NodeID, text string) {
		must(t, b.c.Open(&b.op, n, true))
		b.write(n, 0, []byte(text))
		must(t, b.c.Flush(&b.op, n))
		b.c.Close(n)
	}
	put(b1, n1, "one.")
	e, err := b2.c.Lookup(&b2.op, vfs.RootID, "f")
	must(t, err)
	for i, text := range []string{"two.", "and three", "4444444444444"} {
		w, r := b1, b2
		wn, rn := n1, e.Node
		if i%2 == 1 {
			w, r, wn, rn = b2, b1, e.Node, n1
		}
		put(w, wn, text)
		must(t, r.c.Open(&r.op, rn, false))
		if got := r.read(rn, 0, 100); string(got) != text {
			t.Fatalf("round %d: read %q after the close of who wrote %q", i, got, text)
		}
		r.c.Close(rn)
	}
	// Own changes leave the cache alone: reading again needs no READ.
	calls := b1.c.Stats().Calls
	must(t, b1.c.Open(&b1.op, n1, false))
	b1.read(n1, 0, 100)
	if got := b1.c.Stats().Calls - calls; got != 1 {
		t.Fatalf("%d calls to read what was written here, want 1 (ACCESS)", got)
	}
	b1.c.Close(n1)
}

func TestRemoveWhileOpen(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 8<<20, s.addr, "/data", nil)
	n := b.create("f")
	must(t, b.c.Open(&b.op, n, true))
	b.write(n, 0, []byte("still here"))
	_, err := b.c.Remove(&b.op, vfs.RootID, "f")
	must(t, err)
	_, err = b.c.Lookup(&b.op, vfs.RootID, "f")
	wantErrno(t, err, syscall.ENOENT)
	b.sync(n)
	ino, _ := b.c.tab.get(n)
	ino.m.InvalidateClean()
	if got := b.read(n, 0, 100); string(got) != "still here" {
		t.Fatalf("read %q", got)
	}
	b.c.Close(n)
	if left, _ := os.ReadDir(s.dir); len(left) != 0 {
		t.Fatalf("%d files left, first %s", len(left), left[0].Name())
	}
}

func TestForgottenInodesKeepTheirData(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 8<<20, s.addr, "/data", nil)
	n := b.create("f")
	b.write(n, 0, []byte("not lost"))
	b.c.Forget(n, 1)
	eventually(t, "write-back and eviction", func() bool { return b.c.Stats().Nodes == 1 })
	if onDisk, _ := os.ReadFile(filepath.Join(s.dir, "f")); string(onDisk) != "not lost" {
		t.Fatalf("the server has %q", onDisk)
	}
}

func TestPermissions(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 8<<20, s.addr, "/data", nil)
	n := b.create("f")
	b.write(n, 0, []byte("secret"))
	_, err := b.c.SetAttr(&b.op, n, &vfs.SetAttr{SetMode: true, Mode: 0o600})
	must(t, err)
	b.read(n, 0, 10)
	other := vfs.Op{Cred: vfs.Cred{UID: 1234, GID: 1234}}
	wantErrno(t, b.c.Open(&other, n, false), syscall.EACCES)
	_, err = readAt(b.c, &other, n, 0, 10)
	wantErrno(t, err, syscall.EACCES)
	wantErrno(t, writeAt(b.c, &other, n, 0, []byte("x")), syscall.EACCES)
	// Who makes a file read-only may still write to it, once.
	e, _, err := b.c.Create(&other, vfs.RootID, "ro", vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: 0o444}, vfs.Verifier{})
	must(t, err)
	must(t, b.c.Open(&other, e.Node, true))
	must(t, writeAt(b.c, &other, e.Node, 0, []byte("x")))
	must(t, b.c.Flush(&other, e.Node))
	b.c.Close(e.Node)
	wantErrno(t, b.c.Open(&other, e.Node, true), syscall.EACCES)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErrno(t testing.TB, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}
