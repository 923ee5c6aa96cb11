package vm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// module returns an ELF file with the given .modinfo and nothing else; without
// one if info is nil.
func module(info []byte) []byte {
	const header, section = 64, 64
	names := []byte("\x00.shstrtab\x00.modinfo\x00")
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: header, Size: uint64(len(names))},
	}
	if info != nil {
		sections = append(sections, elf.Section64{
			Name: 11, Type: uint32(elf.SHT_PROGBITS), Off: header + uint64(len(names)), Size: uint64(len(info)),
		})
	}
	h := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: header + uint64(len(names)+len(info)), Ehsize: header,
		Shentsize: section, Shnum: uint16(len(sections)), Shstrndx: 1,
	}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	var b bytes.Buffer
	for _, part := range []any{h, names, info, sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// testKernel returns a kernel with modules, by path and with what they depend on.
func testKernel(t *testing.T, builtin string, depends map[string]string) *Kernel {
	t.Helper()
	dir := t.TempDir()
	for path, d := range depends {
		path = filepath.Join(dir, "modules", "kernel", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, path, module([]byte("license=GPL\x00depends="+d+"\x00name=x\x00")))
	}
	if err := os.MkdirAll(filepath.Join(dir, "modules"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "modules", "modules.builtin"), []byte(builtin))
	write(t, filepath.Join(dir, "version"), []byte("6.12.43\n"))
	k, err := openKernel(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestModulesComeAfterWhatTheyDependOn(t *testing.T) {
	k := testKernel(t, "kernel/lib/crc32c.ko\nkernel/drivers/virtio-pci.ko\n", map[string]string{
		"fs/nfs/nfsv3.ko":       "nfs,sunrpc,lockd",
		"fs/nfs/nfs.ko":         "sunrpc,lockd,fscache,crc32c",
		"fs/lockd/lockd.ko":     "sunrpc,grace",
		"net/sunrpc/sunrpc.ko":  "",
		"fs/grace.ko":           "",
		"fs/fscache.ko":         "netfs-lib",
		"fs/netfs-lib.ko":       "",
		"drivers/unused.ko":     "",
		"drivers/virtio_blk.ko": "",
	})
	if k.Version != "6.12.43" {
		t.Errorf("version %q", k.Version)
	}
	files, err := k.closure([]string{"virtio_pci", "virtio_blk", "nfs", "nfsv3", "nfs"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, moduleName(f))
	}
	want := []string{"virtio_blk", "sunrpc", "grace", "lockd", "netfs_lib", "fscache", "nfs", "nfsv3"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if files, err := k.closure(nil); err != nil || len(files) > 0 {
		t.Errorf("of nothing: %v, %v", files, err)
	}
}

func TestModulesInACircleAreLoadedOnce(t *testing.T) {
	k := testKernel(t, "", map[string]string{"a.ko": "b", "b.ko": "c", "c.ko": "a", "self.ko": "self"})
	for name, n := range map[string]int{"a": 3, "self": 1} {
		if files, err := k.closure([]string{name}); err != nil || len(files) != n {
			t.Errorf("%s: %v, %v", name, files, err)
		}
	}
}

func TestModulesThatCannotBeUsed(t *testing.T) {
	k := testKernel(t, "", map[string]string{"a.ko": "missing", "text.ko": "", "bare.ko": "", "cut.ko": ""})
	write(t, k.files["text"], []byte("not an ELF file"))
	write(t, k.files["bare"], module(nil))
	write(t, k.files["cut"], module([]byte("depends=\x00"))[:90])
	for name, want := range map[string]string{
		"missing": "kernel 6.12.43 has no module missing", "a": "no module missing",
		"text": "text.ko", "bare": "is not a module", "cut": "cut.ko",
	} {
		if _, err := k.closure([]string{name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAKernelThatIsNotComplete(t *testing.T) {
	dir := t.TempDir()
	if _, err := openKernel(dir); err == nil {
		t.Error("without a version")
	}
	write(t, filepath.Join(dir, "version"), []byte("6.1\n"))
	if _, err := openKernel(dir); err == nil {
		t.Error("without modules")
	}
}
