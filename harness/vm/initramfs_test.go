package vm

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// entry is one of a cpio archive.
type entry struct {
	name string
	mode uint64
	data []byte
}

// unpack reads an archive as the kernel does (init/initramfs.c): fixed headers,
// names and data padded to four bytes, up to the trailer.
func unpack(archive []byte) (entries []entry, err error) {
	inodes := map[uint64]bool{}
	for len(archive) >= 110 {
		if string(archive[:6]) != "070701" {
			return entries, fmt.Errorf("magic %q", archive[:6])
		}
		var f [13]uint64
		for i := range f {
			if f[i], err = strconv.ParseUint(string(archive[6+8*i:14+8*i]), 16, 32); err != nil {
				return entries, err
			}
		}
		ino, mode, size, nameSize := f[0], f[1], int(f[6]), int(f[11])
		data := (110 + nameSize + 3) &^ 3
		next := (data + size + 3) &^ 3
		if next > len(archive) || archive[110+nameSize-1] != 0 {
			return entries, errors.New("cut short")
		}
		name := string(archive[110 : 110+nameSize-1])
		if name == "TRAILER!!!" {
			if next != len(archive) {
				return entries, errors.New("something follows the trailer")
			}
			return entries, nil
		}
		if inodes[ino] {
			return entries, fmt.Errorf("two entries with inode %d: the second is taken for a link", ino)
		}
		inodes[ino] = true
		entries = append(entries, entry{name, mode, archive[data : data+size]})
		archive = archive[next:]
	}
	return entries, errors.New("no trailer")
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	// Sizes and lengths of names on both sides of the padding.
	long := strings.Repeat("n", 240) + ".ko"
	sizes := map[string]int{"a.ko": 0, "bc.ko": 1, "b-c.ko": 2, "defg.ko": 3, "hijkl.ko": 4, long: 5}
	var modules []string
	for name, n := range sizes {
		modules = append(modules, write(t, filepath.Join(dir, name), bytes.Repeat([]byte{'x'}, n)))
	}
	init := write(t, filepath.Join(dir, "init"), []byte("#!init"))
	for _, modules := range [][]string{nil, modules} {
		var b bytes.Buffer
		if err := writeInitramfs(&b, init, modules); err != nil {
			t.Fatal(err)
		}
		got, err := unpack(gunzip(t, b.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"modules", "proc", "sys", "dev", "root"} {
			e := got[0]
			if e.name != dir || e.mode != 0o040755 || len(e.data) > 0 {
				t.Errorf("got %s, %o, instead of directory %s", e.name, e.mode, dir)
			}
			got = got[1:]
		}
		if e := got[0]; e.name != "init" || e.mode != 0o100755 || string(e.data) != "#!init" {
			t.Errorf("init is %q, %o, %q", e.name, e.mode, e.data)
		}
		checkModules(t, got[1:], modules, sizes)
	}
}

// checkModules: the guest loads in the order of names.
func checkModules(t *testing.T, got []entry, modules []string, sizes map[string]int) {
	t.Helper()
	if len(got) != len(modules) {
		t.Fatalf("%d modules instead of %d", len(got), len(modules))
	}
	if !slices.IsSortedFunc(got, func(a, b entry) int { return strings.Compare(a.name, b.name) }) {
		t.Error("the names are not in the order of loading")
	}
	for i, path := range modules {
		name := filepath.Base(path)
		if got[i].name != fmt.Sprintf("modules/%03d-%s", i, name) || len(got[i].data) != sizes[name] {
			t.Errorf("module %d is %s, %d bytes", i, got[i].name, len(got[i].data))
		}
	}
}

func TestInitramfsIsReadByCpio(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio is not installed")
	}
	var b bytes.Buffer
	init := write(t, filepath.Join(t.TempDir(), "init"), []byte("#!init"))
	if err := writeInitramfs(&b, init, []string{init}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-t", "--quiet")
	cmd.Stdin = bytes.NewReader(gunzip(t, b.Bytes()))
	out, err := cmd.CombinedOutput()
	if want := "modules\nproc\nsys\ndev\nroot\ninit\nmodules/000-init\n"; err != nil || string(out) != want {
		t.Errorf("%v: %s", err, out)
	}
}

func TestInitramfsNamesTheFileThatIsMissing(t *testing.T) {
	init := write(t, filepath.Join(t.TempDir(), "init"), nil)
	err := writeInitramfs(io.Discard, init, []string{"/nonexistent/nfs.ko"})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "nfs.ko") {
		t.Error(err)
	}
	full := errors.New("no space")
	if err := writeInitramfs(failing{full}, init, nil); !errors.Is(err, full) {
		t.Errorf("on a full disk: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
