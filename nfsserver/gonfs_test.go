package nfsserver

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/vmware/go-nfs-client/nfs"
	"github.com/vmware/go-nfs-client/nfs/rpc"

	"loopnfs/harness/peers"
)

// portmapAddr is a loop-back address that nobody else has a portmapper on.
const portmapAddr = "127.0.0.77"

// An NFS client that others wrote, from MNT to UMNT.
func TestVMwareClient(t *testing.T) {
	arena := newArena(t, 32<<20)
	fs := newMemFS(arena)
	_, addr := startOn(t, Config{Exports: []Export{{Name: "/data", FS: fs, Squash: SquashNone}}, Arena: arena}, portmapAddr+":0")
	peers.Portmap(t, addr)
	m, err := nfs.DialMount(portmapAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	v, err := m.Mount("/data", rpc.NewAuthUnix("host", 7, 8).Auth())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()

	if info, err := v.FSInfo(); err != nil || info.WTMax != 1<<20 || info.RTPref != 1<<20 {
		t.Errorf("FSINFO: %+v, %v", info, err)
	}
	if _, err := v.Mkdir("/dir", 0o755); err != nil {
		t.Error("MKDIR:", err)
	}
	data := pattern(3 << 20)
	f, err := v.OpenFile("/dir/file", 0o640)
	if err != nil {
		t.Fatal("CREATE:", err)
	}
	if n, err := f.Write(data); n != len(data) || err != nil {
		t.Errorf("WRITE: %d bytes, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Error("COMMIT:", err)
	}
	f, err = v.Open("/dir/file")
	if err != nil {
		t.Fatal("LOOKUP:", err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
		t.Errorf("READ: %d bytes, %v", len(got), err)
	}
	info, _, err := v.Lookup("/dir/file")
	if err != nil || info.Size() != int64(len(data)) || info.Mode().Perm() != 0o640 {
		t.Errorf("LOOKUP: %+v, %v", info, err)
	}
	for i := range 300 {
		if _, err := v.Create("/dir/"+strings.Repeat("n", i%100+1)+string(rune('A'+i/100)), 0o600); err != nil {
			t.Fatal("CREATE:", err)
		}
	}
	if list, err := v.ReadDirPlus("/dir"); err != nil || len(list) != 303 {
		t.Errorf("READDIRPLUS: %d entries, %v", len(list), err)
	}
	if _, _, err := v.Lookup("/dir/none"); !os.IsNotExist(err) {
		t.Errorf("LOOKUP of nothing: %v", err)
	}
	if err := v.RmDir("/dir"); !nfs.IsNotEmptyError(err) {
		t.Errorf("RMDIR of a full directory: %v", err)
	}
	if err := v.RemoveAll("/dir"); err != nil {
		t.Errorf("REMOVE and RMDIR of all: %v", err)
	}
	if err := m.Unmount(); err != nil {
		t.Error("UMNT:", err)
	}
}
