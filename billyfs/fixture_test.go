package billyfs

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-billy/v5/osfs"
	nfs "github.com/willscott/go-nfs"
	gonfsmem "github.com/willscott/go-nfs/helpers/memfs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/stack"
	"loopnfs/internal/vfs"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // of a client: it never ends
		goleak.IgnoreAnyFunction("github.com/willscott/go-nfs-client/nfs.(*Target).cleanupCache"))
}

// changing is osfs with all that go-nfs can use, as programs have it.
type changing struct {
	billy.Filesystem
	dir string
}

func (c changing) at(name string) string { return filepath.Join(c.dir, name) }

func (c changing) Chmod(name string, mode os.FileMode) error { return os.Chmod(c.at(name), mode) }
func (c changing) Lchown(name string, uid, gid int) error    { return os.Lchown(c.at(name), uid, gid) }
func (c changing) Chown(name string, uid, gid int) error     { return os.Chown(c.at(name), uid, gid) }
func (c changing) Chtimes(name string, atime, mtime time.Time) error {
	return os.Chtimes(c.at(name), atime, mtime)
}
func (c changing) Mknod(path string, mode, major, minor uint32) error {
	return unix.Mknod(c.at(path), mode, int(unix.Mkdev(major, minor)))
}
func (c changing) Mkfifo(path string, mode uint32) error { return unix.Mkfifo(c.at(path), mode) }
func (c changing) Link(path, link string) error          { return os.Link(c.at(path), c.at(link)) }
func (c changing) Socket(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrUnix{Name: c.at(path)})
}

var _ nfs.UnixChange = changing{}

// backends are the file systems that every test of the contract runs on.
var backends = map[string]func(testing.TB) billy.Filesystem{
	"memfs":       func(testing.TB) billy.Filesystem { return memfs.New() },
	"go-nfs":      func(testing.TB) billy.Filesystem { return gonfsmem.New() },
	"osfs":        func(t testing.TB) billy.Filesystem { return osfs.New(t.TempDir()) },
	"osfs-bound":  func(t testing.TB) billy.Filesystem { return osfs.New(t.TempDir(), osfs.WithBoundOS()) },
	"osfs-change": func(t testing.TB) billy.Filesystem { return newChanging(t) },
}

func newChanging(t testing.TB) changing {
	dir := t.TempDir()
	return changing{osfs.New(dir), dir}
}

// each runs f on every backend.
func each(t *testing.T, f func(*fixture)) {
	for name, make := range backends {
		t.Run(name, func(t *testing.T) { f(newFixture(t, make(t), nil)) })
	}
}

// fixture is a file system as a door sees it, and counts what the door holds.
type fixture struct {
	*testing.T
	*fileSystem
	bfs  billy.Filesystem
	held map[vfs.NodeID]uint64
	op   *vfs.Op
}

func newFixture(t *testing.T, bfs billy.Filesystem, cfg *Config) *fixture {
	t.Helper()
	if cfg == nil {
		cfg = &Config{}
	}
	cfg.Handler = stubHandler{}
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	mem, err := stack.NewMemory(stack.DefaultMemory(8 << 20))
	if err != nil {
		t.Fatal(err)
	}
	mem.Start()
	t.Cleanup(mem.Stop)
	fs, err := newFileSystem(cfg, mem.Arena)
	if err != nil {
		t.Fatal(err)
	}
	change, _ := bfs.(billy.Change)
	if err := fs.attach(bfs, change, nil); err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, fileSystem: fs, bfs: bfs, held: map[vfs.NodeID]uint64{}, op: &vfs.Op{}}
	t.Cleanup(f.checkNothingKept)
	return f
}

type stubHandler struct{ nfs.Handler }

func (f *fixture) checkNothingKept() {
	for id, n := range f.held {
		f.Forget(id, n)
	}
	for id, n := range f.byID {
		if n.refs != 0 && id != vfs.RootID {
			f.Errorf("node %d has %d references", id, n.refs)
		}
		if n.gone {
			f.Errorf("node %d is gone and still there", id)
		}
	}
	if f.arena.Free() != f.arena.Total() {
		f.Errorf("%d pages are in use", f.arena.Total()-f.arena.Free())
	}
}

func (f *fixture) keep(e vfs.Entry) vfs.Entry {
	if e.Node != 0 {
		f.held[e.Node]++
	}
	return e
}

func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) want(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Fatalf("error %v, want %v", err, want)
	}
}

func (f *fixture) as(uid, gid uint32, groups ...uint32) *vfs.Op {
	return &vfs.Op{Cred: vfs.Cred{UID: uid, GID: gid, Groups: groups}}
}

func (f *fixture) create(dir vfs.NodeID, name string) vfs.Entry {
	f.Helper()
	e, w, err := f.Create(f.op, dir, name, vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: 0o644}, vfs.Verifier{})
	f.ok(err)
	f.checkWCC(w)
	return f.keep(e)
}

func (f *fixture) mkdir(dir vfs.NodeID, name string) vfs.Entry {
	f.Helper()
	e, w, err := f.Mkdir(f.op, dir, name, &vfs.SetAttr{})
	f.ok(err)
	f.checkWCC(w)
	return f.keep(e)
}

// checkWCC checks that a change can be seen, or a client's cache would be stale.
func (f *fixture) checkWCC(w vfs.WCC) {
	f.Helper()
	if !w.HasPre || !w.HasPost {
		f.Fatal("no attributes from before or after the change")
	}
	if !f.host && w.Pre.Ctime == w.Post.Ctime {
		f.Fatal("the change cannot be told from the ctime")
	}
}

func (f *fixture) lookup(dir vfs.NodeID, name string) vfs.Entry {
	f.Helper()
	e, err := f.Lookup(f.op, dir, name)
	f.ok(err)
	return f.keep(e)
}

func (f *fixture) attr(id vfs.NodeID) (a vfs.Attr) {
	f.Helper()
	f.ok(f.GetAttr(f.op, id, &a))
	return a
}

func (f *fixture) handle(id vfs.NodeID) []byte {
	f.Helper()
	h, err := f.Handle(id, nil)
	f.ok(err)
	return h
}

// byHandle returns the node of a handle, or the error.
func (f *fixture) byHandle(h []byte) (vfs.NodeID, error) {
	id, err := f.ByHandle(f.op, h)
	if err == nil {
		f.held[id]++
	}
	return id, err
}

func (f *fixture) write(id vfs.NodeID, off uint64, data []byte) vfs.WriteResult {
	f.Helper()
	var v vfs.Vec
	for c := range slices.Chunk(data, alloc.PageSize) {
		v.Bufs = append(v.Bufs, c)
	}
	var res vfs.WriteResult
	f.ok(f.Write(f.op, id, off, &v, vfs.Unstable, &res))
	if int(res.Count) != len(data) {
		f.Fatalf("%d of %d bytes written", res.Count, len(data))
	}
	return res
}

func (f *fixture) read(id vfs.NodeID, off uint64, n uint32) ([]byte, bool) {
	f.Helper()
	var v vfs.Vec
	var a vfs.Attr
	eof, err := f.Read(f.op, id, off, n, &v, &a)
	f.ok(err)
	defer v.Release()
	data := make([]byte, v.Len())
	v.CopyTo(data, 0)
	return data, eof
}

// content returns what the program sees in a file.
func (f *fixture) content(path string) []byte {
	f.Helper()
	file, err := f.bfs.Open(path)
	f.ok(err)
	defer file.Close()
	b, err := io.ReadAll(file)
	f.ok(err)
	return b
}

// put makes a file as the program does.
func (f *fixture) put(path string, data []byte) {
	f.Helper()
	file, err := f.bfs.Create(path)
	f.ok(err)
	_, err = file.Write(data)
	f.ok(err)
	f.ok(file.Close())
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// sink takes up to max entries per call.
type sink struct {
	max  int
	list []vfs.DirEntry
}

func (s *sink) Entry(e *vfs.DirEntry) bool {
	if len(s.list) == s.max {
		return false
	}
	c := *e
	c.Name = bytes.Clone(e.Name)
	s.list = append(s.list, c)
	return true
}

// names lists a directory, per entries at a time, and calls between before each
// call but the first.
func (f *fixture) names(dir vfs.NodeID, per int, between func()) []string {
	f.Helper()
	var names []string
	var verf vfs.Verifier
	for cookie := uint64(0); ; {
		s := &sink{max: per}
		v, eof, err := f.ReadDir(f.op, dir, cookie, verf, s)
		f.ok(err)
		for _, e := range s.list {
			names = append(names, string(e.Name))
			cookie = e.Cookie
		}
		if verf = v; eof {
			return names
		}
		if between != nil {
			between()
		}
	}
}

const noEnt, stale = syscall.ENOENT, vfs.ErrStale
