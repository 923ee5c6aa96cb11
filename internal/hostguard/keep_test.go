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
	left := int64(ballastBytes + refillSpare)
	spare := func() int64 { left -= refillStep; return left + refillStep }
	if err := k.Refill(nil, spare); err != nil {
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
	if err := k.Refill(nil, func() int64 { return 1 << 40 }); err == nil {
		t.Error("refilled what was removed")
	}
}

// What is kept for the next server is given up for this one, and taken again.
func TestGiveWay(t *testing.T) {
	k := keepIn(t, shm(t))
	defer k.Remove()
	ballast := filepath.Join(k.dir, "ballast")
	plenty := func() int64 { return 1 << 40 }
	for range 3 {
		if err := k.Refill(nil, plenty); err != nil || blocks(t, ballast) != ballastBytes {
			t.Fatalf("%d bytes, %v", blocks(t, ballast), err)
		}
		k.GiveWay()
		k.GiveWay()
		if n := blocks(t, ballast); n != 0 {
			t.Errorf("%d bytes are left", n)
		}
		<-k.Given()
	}
	var none *Keep
	none.GiveWay()
	if none.Given() != nil {
		t.Error("nothing was given")
	}
}

func TestRefillLeavesOthersTheirs(t *testing.T) {
	k := keepIn(t, shm(t))
	defer k.Remove()
	done := make(chan struct{})
	asked := 0
	err := k.Refill(done, func() int64 {
		if asked++; asked == 3 {
			close(done)
		}
		return refillSpare
	})
	if n := blocks(t, filepath.Join(k.dir, "ballast")); err != nil || n != 0 {
		t.Errorf("%d bytes were taken: %v", n, err)
	}
}

// The copy is made once for each version of the program.
func TestProgramInMemory(t *testing.T) {
	k := keepIn(t, shm(t))
	defer k.Remove()
	path := filepath.Join(t.TempDir(), "prog")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := func() (string, os.FileInfo) {
		name, err := k.program(path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		st, _ := os.Stat(name)
		return string(text), st
	}
	write("one")
	text, first := program()
	if _, again := program(); text != "one" || first.Mode().Perm() != 0o700 || !os.SameFile(first, again) {
		t.Errorf("%q, %v", text, first.Mode())
	}
	write("two")
	if text, _ := program(); text != "two" {
		t.Errorf("%q", text)
	}
	if _, err := k.program(path + ".none"); err == nil {
		t.Error("copied nothing")
	}
}

// What belongs to a server that will not come back is removed by the next one.
func TestSweep(t *testing.T) {
	parent, state := shm(t), t.TempDir()
	gone := filepath.Join(state, "gone")
	os.Mkdir(gone, 0o700)
	for _, dir := range []string{gone, state} {
		k, err := openKeep(parent, dir, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		k.close()
	}
	used, err := openKeep(parent, gone+"2", 1<<20) // it does not exist yet
	if err != nil {
		t.Fatal(err)
	}
	defer used.Remove()
	os.Remove(gone)
	keepIn(t, parent).close()
	if left, _ := os.ReadDir(parent); len(left) != 3 {
		t.Errorf("left: %v", left)
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
	var k *Keep
	if k.Data() != nil || k.Refill(nil, nil) != nil || k.Remove() != nil {
		t.Error("nothing keeps something")
	}
}

// Servers of one user run from one copy of the program, and from no one else's.
func TestProgramIsShared(t *testing.T) {
	parent := shm(t)
	path := filepath.Join(t.TempDir(), "program")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(path, []byte("one"), 0o700))
	program := func(state string) (*Keep, os.FileInfo) {
		t.Helper()
		k, err := openKeep(parent, state, 1<<20)
		check(err)
		name, err := k.program(path)
		check(err)
		st, err := os.Stat(name)
		check(err)
		return k, st
	}
	a, first := program("/var/lib/a")
	b, second := program("/var/lib/b")
	if !os.SameFile(first, second) {
		t.Error("two copies")
	}
	a.Remove()
	check(os.WriteFile(path, []byte("other"), 0o700))
	c, third := program("/var/lib/c")
	if text, err := os.ReadFile(filepath.Join(b.dir, programName)); string(text) != "one" || os.SameFile(first, third) {
		t.Errorf("the new program changed the old: %q, %v", text, err)
	}
	c.Remove()
	check(os.Chmod(b.dir, 0o755))
	check(os.WriteFile(path, []byte("one"), 0o700))
	check(os.Chtimes(path, first.ModTime(), first.ModTime()))
	d, fourth := program("/var/lib/d")
	defer d.Remove()
	if os.SameFile(first, fourth) {
		t.Error("taken from where everybody may write")
	}
}
