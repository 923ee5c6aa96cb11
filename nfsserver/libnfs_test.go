package nfsserver

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// libnfs runs one of the tools of libnfs-utils.
func libnfs(t *testing.T, tool string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skip("libnfs-utils is not installed:", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", tool, strings.Join(args, " "), err, out, errs.Bytes())
	}
	return out
}

// The tools of libnfs copy a file to the server, list it, and read it back.
func TestLibnfs(t *testing.T) {
	f := serve(t, nil)
	_, port, _ := net.SplitHostPort(f.addr)
	url := func(path string) string {
		return fmt.Sprintf("nfs://127.0.0.1%s?nfsport=%s&mountport=%s", path, port, port)
	}
	want := pattern(5<<20 + 123)
	local := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(local, want, 0o600); err != nil {
		t.Fatal(err)
	}
	libnfs(t, "nfs-cp", local, url("/data/copy"))
	if got := libnfs(t, "nfs-ls", url("/data")); !strings.Contains(string(got), "copy") || !strings.Contains(string(got), fmt.Sprint(len(want))) {
		t.Errorf("nfs-ls: %s", got)
	}
	if got := libnfs(t, "nfs-cat", url("/data/copy")); !bytes.Equal(got, want) {
		t.Errorf("nfs-cat: %d bytes, not as they were written", len(got))
	}
	back := local + ".back"
	libnfs(t, "nfs-cp", url("/data/copy"), back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
		t.Errorf("nfs-cp back: %d bytes, %v", len(got), err)
	}
}
