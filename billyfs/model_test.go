package billyfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"loopnfs/alloc"
	"loopnfs/internal/vfs"
)

// seed returns the seed of a random test, to be replayed with BILLY_SEED.
func seed(t testing.TB) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("BILLY_SEED"); s != "" {
		_, _ = fmt.Sscan(s, &n)
	}
	t.Logf("BILLY_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 1))
}

// model does the same to a file system and to a directory of the host.
type model struct {
	*fixture
	rnd   *rand.Rand
	dir   string
	known []object // everything that was made
}

// object is something with a handle, and what the host has for it.
type object struct {
	handle []byte
	info   os.FileInfo
}

// Names that are prefixes of each other, in up to three directories deep.
var modelNames = []string{"a", "ab", "abc", "b", "ba"}

func (m *model) path() string {
	p := modelNames[m.rnd.IntN(len(modelNames))]
	for range m.rnd.IntN(3) {
		p = modelNames[m.rnd.IntN(len(modelNames))] + "/" + p
	}
	return p
}

// walk finds the directory of a path, ok false if it has none.
func (m *model) walk(path string) (dir vfs.NodeID, name string, ok bool) {
	dir = vfs.RootID
	parts := bytes.Split([]byte(path), []byte("/"))
	for _, p := range parts[:len(parts)-1] {
		e, err := m.Lookup(m.op, dir, string(p))
		if err != nil {
			return 0, "", false
		}
		dir = m.keep(e).Node
		if e.Attr.Type != vfs.TypeDirectory {
			return 0, "", false
		}
	}
	return dir, string(parts[len(parts)-1]), true
}

// same fails unless both did the same: nothing, or something with one error.
func (m *model) same(what string, err, host error) {
	m.Helper()
	var errno syscall.Errno
	if host != nil && !errors.As(host, &errno) {
		m.Fatalf("%s: the host says %v", what, host)
	}
	if (err == nil) != (host == nil) || err != nil && !errors.Is(err, errno) {
		m.Fatalf("%s: %v, on the host %v", what, err, host)
	}
}

func (m *model) know(e vfs.Entry, path string) {
	m.keep(e)
	fi, err := os.Lstat(path)
	m.ok(err)
	m.known = append(m.known, object{m.handle(e.Node), fi})
}

func (m *model) step() {
	p := m.path()
	dir, name, ok := m.walk(p)
	if !ok {
		return
	}
	at := filepath.Join(m.dir, p)
	switch m.rnd.IntN(7) {
	case 0:
		e, _, err := m.Mkdir(m.op, dir, name, &vfs.SetAttr{})
		m.same("mkdir "+p, err, syscall.Mkdir(at, 0o755))
		if err == nil {
			m.know(e, at)
		}
	case 1:
		e, _, err := m.Create(m.op, dir, name, vfs.Guarded, &vfs.SetAttr{}, vfs.Verifier{})
		fd, host := syscall.Open(at, syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY, 0o644)
		m.same("create "+p, err, host)
		if err == nil {
			syscall.Close(fd)
			m.know(e, at)
		}
	case 2:
		_, err := m.Remove(m.op, dir, name)
		m.same("remove "+p, err, syscall.Unlink(at))
	case 3:
		_, err := m.Rmdir(m.op, dir, name)
		m.same("rmdir "+p, err, syscall.Rmdir(at))
	case 4, 5:
		m.rename(dir, name, at)
	case 6:
		m.write(dir, name, at)
	}
}

func (m *model) rename(dir vfs.NodeID, name, at string) {
	to := m.path()
	newDir, newName, ok := m.walk(to)
	if !ok {
		return
	}
	_, _, err := m.Rename(m.op, dir, name, newDir, newName)
	host := syscall.Rename(at, filepath.Join(m.dir, to))
	if host == syscall.ENOTEMPTY && errors.Is(err, syscall.EISDIR) {
		host = syscall.EISDIR // the kernel looks at the own ancestor first
	}
	m.same("rename "+at+" to "+to, err, host)
}

func (m *model) write(dir vfs.NodeID, name, at string) {
	e, err := m.Lookup(m.op, dir, name)
	_, host := os.Lstat(at)
	m.same("lookup "+at, err, host)
	if err != nil {
		return
	}
	m.keep(e)
	if e.Attr.Type != vfs.TypeRegular {
		return
	}
	data := bytes.Repeat([]byte{byte(m.rnd.Uint32())}, 1+m.rnd.IntN(3*alloc.PageSize))
	off := m.rnd.IntN(2 * alloc.PageSize)
	m.fixture.write(e.Node, uint64(off), data)
	f, err := os.OpenFile(at, os.O_WRONLY, 0)
	m.ok(err)
	defer f.Close()
	_, err = f.WriteAt(data, int64(off))
	m.ok(err)
}

// compare checks that both hold the same, below a directory.
func (m *model) compare(dir vfs.NodeID, at string, found map[vfs.NodeID]string) {
	got := m.names(dir, 2, nil)
	slices.Sort(got)
	want := []string{".", ".."}
	entries, err := os.ReadDir(at)
	m.ok(err)
	for _, e := range entries {
		want = append(want, e.Name())
	}
	if !slices.Equal(got, want) {
		m.Fatalf("%s has %q, want %q", at, got, want)
	}
	for _, e := range entries {
		path := filepath.Join(at, e.Name())
		n := m.fixture.lookup(dir, e.Name())
		found[n.Node] = path
		if e.IsDir() {
			m.compare(n.Node, path, found)
			continue
		}
		want, err := os.ReadFile(path)
		m.ok(err)
		if got, _ := m.read(n.Node, 0, maxIO); !bytes.Equal(got, want) {
			m.Fatalf("%s: %d bytes, not as on the host", path, len(got))
		}
	}
}

// checkHandles checks that each handle is stale or finds its object where the
// host has it, and that each object is found.
func (m *model) checkHandles(found map[vfs.NodeID]string) {
	reached := map[vfs.NodeID]bool{}
	for _, o := range m.known {
		id, err := m.byHandle(o.handle)
		if err != nil {
			m.want(err, stale)
			continue
		}
		fi, err := os.Lstat(found[id])
		if err != nil || !os.SameFile(fi, o.info) {
			m.Fatalf("a handle finds %q, which is something else: %v", found[id], err)
		}
		reached[id] = true
	}
	if len(reached) != len(found) {
		m.Fatalf("%d of %d objects are found by their handles", len(reached), len(found))
	}
}

// Whatever is done gives the same result as on a directory of the host, and what
// was handed out stays good.
func TestModel(t *testing.T) {
	each(t, func(f *fixture) {
		m := &model{fixture: f, rnd: seed(f), dir: f.TempDir()}
		for range 8 {
			for range 150 {
				m.step()
			}
			found := map[vfs.NodeID]string{}
			m.compare(vfs.RootID, m.dir, found)
			m.checkHandles(found)
		}
	})
}

// Everything at once, on names that all want: for the race detector, and nothing
// may be kept afterwards.
func TestConcurrent(t *testing.T) {
	for name, concurrent := range map[string]bool{"memfs": false, "osfs-change": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, backends[name](t), &Config{Concurrent: concurrent})
			rnd := seed(t)
			var all sync.WaitGroup
			for range 6 {
				r := rand.New(rand.NewPCG(rnd.Uint64(), 2))
				all.Go(func() {
					for range 300 {
						f.scramble(r)
					}
				})
			}
			all.Wait()
		})
	}
}

// scramble makes one call, which may fail, but only with what NFS knows.
func (f *fixture) scramble(r *rand.Rand) {
	op, name, other := &vfs.Op{}, modelNames[r.IntN(3)], modelNames[r.IntN(3)]
	var err error
	switch r.IntN(8) {
	case 0:
		var e vfs.Entry
		if e, _, err = f.Create(op, vfs.RootID, name, vfs.Unchecked, &vfs.SetAttr{}, vfs.Verifier{}); err == nil {
			f.Forget(e.Node, 1)
		}
	case 1:
		_, err = f.Remove(op, vfs.RootID, name)
	case 2:
		_, _, err = f.Rename(op, vfs.RootID, name, vfs.RootID, other)
	case 3:
		_, _, err = f.ReadDir(op, vfs.RootID, 0, vfs.Verifier{}, &sink{max: 9})
	default:
		err = f.useFile(op, r, name)
	}
	switch {
	case err == nil, errors.Is(err, noEnt), errors.Is(err, stale), errors.Is(err, syscall.EEXIST):
	default:
		f.Errorf("%v", err)
	}
}

// useFile writes, reads, truncates or syncs a file.
func (f *fixture) useFile(op *vfs.Op, r *rand.Rand, name string) error {
	e, err := f.Lookup(op, vfs.RootID, name)
	if err != nil {
		return err
	}
	defer f.Forget(e.Node, 1)
	var v vfs.Vec
	switch r.IntN(4) {
	case 0:
		v.Bufs = [][]byte{pattern(5000), pattern(3000)}
		return f.Write(op, e.Node, uint64(r.IntN(9000)), &v, vfs.Stable(r.IntN(3)), &vfs.WriteResult{})
	case 1:
		_, err = f.Read(op, e.Node, uint64(r.IntN(9000)), 20_000, &v, nil)
		v.Release()
	case 2:
		_, err = f.SetAttr(op, e.Node, &vfs.SetAttr{SetSize: true, Size: uint64(r.IntN(9000))})
	case 3:
		_, _, err = f.Commit(op, e.Node, 0, 0)
	}
	return err
}
