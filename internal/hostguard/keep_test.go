package hostguard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// shm returns a directory of tmpfs.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(keepParent, "loopnfs-test-")
	if err != nil {
		t.Skipf("no %s: %v", keepParent, err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func keepIn(t *testing.T, parent string) *Keep {
	t.Helper()
	k, err := openKeep(parent, "/var/lib/x", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeepOutlivesItsProcess(t *testing.T) {
	parent := shm(t)
	k := keepIn(t, parent)
	data, ballast := filepath.Join(k.dir, "data"), filepath.Join(k.dir, "ballast")
	if n := blocks(t, data); n != 1<<20 {
		t.Errorf("%d bytes are allocated for data", n)
	}
	if err := k.Refill(nil); err != nil {
		t.Fatal(err)
	}
	if n := blocks(t, ballast); n != ballastBytes {
		t.Errorf("the ballast has %d bytes", n)
	}
	k.close() // as the kernel does
	k = keepIn(t, parent)
	if blocks(t, data) != 1<<20 || blocks(t, ballast) != 0 {
		t.Errorf("%d bytes of data, %d of ballast", blocks(t, data), blocks(t, ballast))
	}
	if err := k.Remove(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(parent); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := k.Refill(nil); err == nil {
		t.Error("refilled what was removed")
	}
}

func TestKeepIsForOne(t *testing.T) {
	parent := shm(t)
	defer keepIn(t, parent).Remove()
	if _, err := openKeep(parent, "/var/lib/x/../x", 1<<20); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a second one: %v", err)
	}
	other, err := openKeep(parent, "/var/lib/y", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	other.Remove()
}

func TestKeepTrustsNobody(t *testing.T) {
	parent := shm(t)
	k := keepIn(t, parent)
	dir := k.dir
	k.Remove()
	for name, prepare := range map[string]func() error{
		"open to all": func() error { return os.Mkdir(dir, 0o755) },
		"a link":      func() error { return os.Symlink(t.TempDir(), dir) },
		"a file":      func() error { return os.WriteFile(dir, nil, 0o600) },
		"a link inside": func() error {
			return os.Symlink(filepath.Join(t.TempDir(), "victim"), filepath.Join(dir, "data"))
		},
	} {
		if name == "a link inside" {
			os.Mkdir(dir, 0o700)
		}
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if _, err := openKeep(parent, "/var/lib/x", 1<<20); err == nil {
			t.Errorf("%s: taken", name)
		}
		os.RemoveAll(dir)
	}
	if _, err := openKeep(t.TempDir(), "/var/lib/x", 1<<20); err == nil {
		t.Error("a disk was taken for memory")
	}
	if _, err := openKeep(parent, "/var/lib/x", 1<<60); err == nil {
		t.Error("more memory than there is")
	}
}

func TestNothingIsKept(t *testing.T) {
	var g *Guard
	k := g.Keep("/x", 1<<20)
	if k.Data() != nil || k.Refill(nil) != nil || k.Remove() != nil {
		t.Error("no guard keeps something")
	}
}
