package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"loopnfs/fusefs"
)

// unread starts loopnfs and waits until it is ready, and then nobody reads its
// output any more: a pager was quit, a journal started again.
func unread(t *testing.T, args ...string) (cmd *exec.Cmd, ready string) {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("loopnfs", args...)
	cmd.Stdout, cmd.Stderr = in, in
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	in.Close()
	defer out.Close()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "ready ") {
			return cmd, lines.Text()
		}
	}
	t.Fatal("it did not start")
	return nil, ""
}

// A process that mounts depend on is not ended by a message that nobody reads
// (SIGPIPE).
func TestMessagesThatNobodyReads(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it needs root")
	}
	dir := t.TempDir()
	data, mnt := filepath.Join(dir, "data"), filepath.Join(dir, "mnt")
	for _, d := range []string{data, mnt} {
		if err := os.Mkdir(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	server, ready := unread(t, "serve", "--export", data, "--state", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0", "--squash", "none")
	client, _ := unread(t, "mount", strings.Fields(ready)[1]+":/data", mnt, "--foreground")
	defer func() {
		if m, _ := fusefs.FindMount(mnt); m != nil {
			m.Detach()
		}
	}()
	if err := os.WriteFile(filepath.Join(mnt, "f"), []byte("text"), 0o666); err != nil {
		t.Error(err)
	}
	for _, cmd := range []*exec.Cmd{client, server} { // both say that they are stopping
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s ended badly: %v", cmd.Args[1], err)
		}
	}
}
