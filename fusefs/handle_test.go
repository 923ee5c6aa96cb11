package fusefs

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

func TestHandleOutlivesTheProcess(t *testing.T) {
	for name, dir := range map[string]string{"disk": diskDir(t), "tmpfs": tmpfsDir(t, "")} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			f := newFixture(t, options{dir: dir, state: state})
			sub := f.mkdir(vfs.RootID, "sub", 0o755)
			node := f.create(sub, "f", 0o644)
			f.write(node, 0, []byte("hello"), vfs.Unstable)
			h, err := f.Handle(node, nil)
			f.ok(err)
			root, err := f.Handle(vfs.RootID, []byte{1})
			f.ok(err)
			if len(h) > 60 || len(root) > 61 || root[0] != 1 {
				t.Errorf("handles of %d and %d bytes", len(h), len(root)-1)
			}
			_, _, err = f.Rename(f.op, sub, "f", vfs.RootID, "other name")
			f.ok(err)
			f.ok(f.Shutdown())

			g := newFixture(t, options{dir: dir, state: state})
			if g.Verifier() == f.Verifier() {
				t.Error("two lives with the same write verifier")
			}
			again, err := g.ByHandle(g.op, h)
			g.ok(err)
			if p, _ := g.read(again, 0, 10); string(p) != "hello" {
				t.Errorf("read %q", p)
			}
			if r, err := g.ByHandle(g.op, root[1:]); err != nil || r != vfs.RootID {
				t.Errorf("root: node %d, %v", r, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "other name")); err != nil {
				t.Error(err)
			}
			g.ok(os.Remove(filepath.Join(dir, "other name")))
			g.Forget(again, 1)
		})
	}
}

func TestForgedHandles(t *testing.T) {
	dir := diskDir(t)
	f := newFixture(t, options{dir: dir})
	node := f.create(vfs.RootID, "f", 0o644)
	h, err := f.Handle(node, nil)
	f.ok(err)
	for i := range h {
		bad := bytes.Clone(h)
		bad[i] ^= 1
		_, err := f.ByHandle(f.op, bad)
		f.wants(err, vfs.ErrBadHandle)
	}
	for _, bad := range [][]byte{nil, {}, {1}, h[:len(h)-1], append(bytes.Clone(h), 0), bytes.Repeat([]byte{1}, 64), make([]byte, 60)} {
		_, err := f.ByHandle(f.op, bad)
		f.wants(err, vfs.ErrBadHandle)
	}
	// A real file outside of the export, with the check of another export.
	other := newFixture(t, options{})
	outside := other.create(vfs.RootID, "secret", 0o644)
	h, err = other.Handle(outside, nil)
	f.ok(err)
	_, err = f.ByHandle(f.op, h)
	f.wants(err, vfs.ErrBadHandle)
}

func TestStaleHandle(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	h, err := f.Handle(node, nil)
	f.ok(err)
	f.Forget(node, 1)
	_, err = f.Remove(f.op, vfs.RootID, "f")
	f.ok(err)
	_, err = f.ByHandle(f.op, h)
	f.wants(err, vfs.ErrStale)
}

func TestKeyIsKept(t *testing.T) {
	dir, state := diskDir(t), t.TempDir()
	newFixture(t, options{dir: dir, state: state})
	names, err := filepath.Glob(filepath.Join(state, "*"))
	if err != nil || len(names) == 0 || len(names) > 2 {
		t.Fatalf("in the state directory: %v, %v", names, err)
	}
	fi, err := os.Stat(names[0])
	for _, name := range names {
		if other, err := os.Stat(name); err != nil || !os.SameFile(fi, other) {
			t.Errorf("%s is another key than %s (%v)", name, names[0], err)
		}
	}
	if err != nil || fi.Mode() != 0o600 || fi.Size() != keySize {
		t.Errorf("the key: %v %d bytes, %v", fi.Mode(), fi.Size(), err)
	}
	if err := os.Truncate(names[0], 5); err != nil {
		t.Fatal(err)
	}
	m := newMemory(t, 4<<20, defaultPolicy)
	_, err = NewStore(StoreConfig{Dir: dir, Cache: m.cache, Domain: m.dom, StateDir: state})
	named := slices.ContainsFunc(names, func(name string) bool { return err != nil && strings.Contains(err.Error(), name) })
	if !named {
		t.Errorf("a damaged key: %v", err)
	}
}

// A key that was found by a name of which other hosts know nothing gets the others, too;
// a copy of the state directory on another file system has no other key.
func TestKeyNames(t *testing.T) {
	dir, state := diskDir(t), diskDir(t)
	key, err := loadKey(state, keyNames{names: []string{"device.key"}}, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	all := keyNames{[]string{"beside.key", "uuid.key", "device.key"}, 2}
	for _, names := range []keyNames{all, {[]string{"uuid.key"}, 1}, {[]string{"beside.key"}, 1}, all} {
		if again, err := loadKey(state, names, slog.Default()); again != key || err != nil {
			t.Errorf("%v: another key, %v", names, err)
		}
	}
	f := newFixture(t, options{dir: dir, state: state})
	at, ok := f.besides(state)
	if !ok {
		t.Fatalf("%s is on the file system of %s, which is not seen", state, dir)
	}
	if other, ok := f.besides(diskDir(t)); !ok || bytes.Equal(at, other) {
		t.Errorf("two directories cannot be told apart: %x, %x", at, other)
	}
	if _, ok := f.besides("/proc"); ok {
		t.Error("/proc is on the file system of the export")
	}
}

// Starts are told apart by the write verifier whatever is drawn, and losses of data, too.
func TestFirstVerifier(t *testing.T) {
	for range 100 {
		a, b := firstVerifier(7), firstVerifier(8)
		if a>>32 != 7 || b>>32 != 8 || (a+1<<31)>>32 != 7 {
			t.Fatalf("epochs 7 and 8: %x, %x", a, b)
		}
	}
	if a, b := firstVerifier(0), firstVerifier(0); a == b {
		t.Error("without an epoch it is the same twice")
	}
}

func TestRefusals(t *testing.T) {
	needRoot(t)
	m := newMemory(t, 4<<20, defaultPolicy)
	dir := diskDir(t)
	try := func(want string, change func(c *StoreConfig)) {
		t.Helper()
		c := StoreConfig{Dir: dir, Cache: m.cache, Domain: m.dom, StateDir: t.TempDir()}
		change(&c)
		_, err := NewStore(c)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want something about %q", err, want)
		}
	}
	try("no directory", func(c *StoreConfig) { c.Dir = "" })
	try("no such file", func(c *StoreConfig) { c.Dir = dir + "/missing" })
	try("not a directory", func(c *StoreConfig) { c.Dir = "/etc/passwd" })
	try("lies in the export", func(c *StoreConfig) {
		c.StateDir = filepath.Join(dir, "state")
		_ = os.Mkdir(c.StateDir, 0o700)
	})
	try("lies in the export", func(c *StoreConfig) { c.StateDir = c.Dir })
	try("is not there", func(c *StoreConfig) { c.StateDir = "/nonexistent" })
	try("multiple", func(c *StoreConfig) { c.MaxIO = 5000 })
	try("flushers", func(c *StoreConfig) { c.Flushers = -1 })
	try("proc", func(c *StoreConfig) { c.Dir = "/proc" })
}

func TestWithoutTheCapability(t *testing.T) {
	// Only the effective set of this thread changes; the thread is thrown away.
	needRoot(t)
	m := newMemory(t, 4<<20, defaultPolicy)
	c := StoreConfig{Dir: diskDir(t), Cache: m.cache, Domain: m.dom, StateDir: t.TempDir()}
	got := make(chan error)
	go func() {
		lockThreadForGood()
		var hdr = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			got <- err
			return
		}
		data[0].Effective &^= 1 << unix.CAP_DAC_READ_SEARCH
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			got <- err
			return
		}
		_, err := NewStore(c)
		got <- err
	}()
	if err := <-got; err == nil || !strings.Contains(err.Error(), "CAP_DAC_READ_SEARCH") {
		t.Errorf("got %v", err)
	}
}

func TestMAC(t *testing.T) {
	var s Store
	var key [keySize]byte
	for n := range maxHandle {
		key[n%keySize] += byte(n)
		s.macs.init(key[:])
		b := bytes.Repeat([]byte{byte(n)}, n)
		want := hmac.New(sha256.New, key[:])
		want.Write(b)
		if got := s.mac(b); !bytes.Equal(got[:], want.Sum(nil)[:macSize]) {
			t.Fatalf("%d bytes: %x", n, got)
		}
	}
}

func BenchmarkMAC(b *testing.B) {
	var s Store
	s.macs.init(nil)
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		var h [16]byte
		for p.Next() {
			s.mac(h[:])
		}
	})
}
