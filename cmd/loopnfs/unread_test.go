package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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

// A mount that was interrupted before it was there does not appear later.
func TestInterruptedMount(t *testing.T) {
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
	server, ready := unread(t, "serve", "--export", data, "--state", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0")
	server.Process.Signal(syscall.SIGSTOP) // so that it takes its time
	mount := exec.Command("loopnfs", "mount", strings.Fields(ready)[1]+":/data", mnt, "--via", "fuse", "--log", filepath.Join(dir, "log"), "--timeout", "5m")
	if err := mount.Start(); err != nil {
		t.Fatal(err)
	}
	serving := func() bool {
		c, err := net.Dial("unix", statusName(mnt))
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				exec.Command("loopnfs", "umount", "--force", mnt).Run()
				t.Fatal(what)
			}
		}
	}
	until("the process in the background did not start", serving)
	mount.Process.Kill()
	mount.Wait()
	server.Process.Signal(syscall.SIGCONT)
	until("the process in the background has not ended", func() bool { return !serving() })
	if m, err := fusefs.FindMount(mnt); m != nil || err != nil {
		t.Errorf("left mounted: %+v, %v", m, err)
	}
}

// Nor is it held up by a reader that hangs, perhaps for want of the very memory that
// the process is to clean.
func TestReaderThatHangs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it needs root")
	}
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o777); err != nil {
		t.Fatal(err)
	}
	messages, full, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Close()
	if err := full.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	full.Write(make([]byte, 16<<20))
	server := exec.Command("loopnfs", "serve", "--export", data, "--state", filepath.Join(dir, "state"), "--listen", "127.0.0.1:0")
	server.Stderr = full
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	full.Close()
	late := time.AfterFunc(time.Minute, func() { server.Process.Kill() })
	defer late.Stop()
	if line, err := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "ready ") {
		t.Fatalf("it did not start: %q, %v", line, err)
	}
	server.Process.Signal(syscall.SIGTERM)
	if err := server.Wait(); err != nil {
		t.Errorf("it did not end: %v", err)
	}
}
