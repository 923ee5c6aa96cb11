package nfsserver

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"loopnfs/harness/peers"
)

// The tools of libnfs copy a file to the server, list it, and read it back.
func TestLibnfs(t *testing.T) {
	f := serve(t, nil)
	url := func(path string) string { return peers.LibnfsURL(f.addr, path) }
	want := pattern(5<<20 + 123)
	local := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(local, want, 0o600); err != nil {
		t.Fatal(err)
	}
	peers.Libnfs(t, "nfs-cp", local, url("/data/copy"))
	if got := peers.Libnfs(t, "nfs-ls", url("/data")); !strings.Contains(string(got), "copy") || !strings.Contains(string(got), fmt.Sprint(len(want))) {
		t.Errorf("nfs-ls: %s", got)
	}
	if got := peers.Libnfs(t, "nfs-cat", url("/data/copy")); !bytes.Equal(got, want) {
		t.Errorf("nfs-cat: %d bytes, not as they were written", len(got))
	}
	back := local + ".back"
	peers.Libnfs(t, "nfs-cp", url("/data/copy"), back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
		t.Errorf("nfs-cp back: %d bytes, %v", len(got), err)
	}
}
