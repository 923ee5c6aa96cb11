package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// manager is a service manager that one service talks to.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

// next returns the next state that has word in it, or "" if none comes within d.
func (m *manager) next(word string, d time.Duration) string {
	m.t.Helper()
	check(m.t, m.conn.SetReadDeadline(time.Now().Add(d)))
	buf := make([]byte, 4096)
	for {
		n, err := m.conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ""
		}
		check(m.t, err)
		if s := string(buf[:n]); strings.Contains(s, word) {
			return s
		}
	}
}

// The service manager hears when the server is ready, that it lives, and only as long as
// it answers, when it reads its exports again, and when it ends.
func TestNotify(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it needs root")
	}
	dir := t.TempDir()
	data, config := filepath.Join(dir, "data"), filepath.Join(dir, "config")
	check(t, os.Mkdir(data, 0o755))
	check(t, os.WriteFile(config, fmt.Appendf(nil, "[[export]]\ndir = %q\nname = \"/one\"\n", data), 0o600))
	sock := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	check(t, err)
	defer conn.Close()
	m := &manager{t, conn}
	cmd := exec.Command("sh", "-c", `export WATCHDOG_PID=$$ && exec loopnfs serve --memory 16MiB --listen 127.0.0.1:0 "$@"`, "sh", "--config", config, "--state", filepath.Join(dir, "state"))
	stderr := &said{}
	cmd.Stderr = stderr
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "NOTIFY_SOCKET="+sock, "WATCHDOG_USEC=600000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	if s := m.next("READY=1", 20*time.Second); !contains(s, "STATUS=ready 127.0.0.1:", "/one") {
		t.Fatalf("%q: %s", s, stderr)
	}
	for range 4 {
		if m.next("WATCHDOG=1", 500*time.Millisecond) == "" {
			t.Fatalf("no sign of life: %s", stderr)
		}
	}
	server := cmd.Process.Pid
	if child := childOf(server); child > 1 {
		server = child
	}
	check(t, syscall.Kill(server, syscall.SIGSTOP))
	m.next("nothing", 300*time.Millisecond)
	if s := m.next("WATCHDOG=1", time.Second); s != "" {
		t.Error("a server that stands still gives a sign of life")
	}
	check(t, syscall.Kill(server, syscall.SIGCONT))
	if m.next("WATCHDOG=1", 5*time.Second) == "" {
		t.Error("no sign of life when it goes on")
	}
	check(t, os.WriteFile(config, fmt.Appendf(nil, "[[export]]\ndir = %q\nname = \"/two\"\n", data), 0o600))
	check(t, cmd.Process.Signal(syscall.SIGHUP))
	if s := m.next("RELOADING=1", 10*time.Second); !strings.Contains(s, "MONOTONIC_USEC=") {
		t.Errorf("%q", s)
	}
	if s := m.next("READY=1", 10*time.Second); !strings.Contains(s, "/two") {
		t.Errorf("%q", s)
	}
	check(t, cmd.Process.Signal(syscall.SIGTERM))
	if m.next("STOPPING=1", 10*time.Second) == "" {
		t.Error("the end is not told")
	}
	check(t, cmd.Wait())
}

// A server that does not answer its own call gives no sign of life; the next call
// connects again.
func TestSelfCall(t *testing.T) {
	l, err := net.Listen("tcp", "[::]:0")
	check(t, err)
	defer l.Close()
	valid := true
	s := newSelfCall(l.Addr(), func() bool { return valid })
	if err := s.call(100 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || s.nc != nil {
		t.Errorf("nobody answers: %v", err)
	}
	valid = false
	if err := s.call(time.Second); err == nil || !strings.Contains(err.Error(), "lease") {
		t.Errorf("without the lease: %v", err)
	}
	valid = true
	check(t, l.Close())
	if err := s.call(time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
}

// The unit is one that systemd understands.
func TestUnit(t *testing.T) {
	b, err := os.ReadFile("../../scripts/loopnfs.service")
	check(t, err)
	for _, line := range []string{"Type=notify", "NotifyAccess=all", "WatchdogSec=", "KillMode=mixed", "OOMScoreAdjust=-1000", "RestartPreventExitStatus=5"} {
		if !strings.Contains(string(b), "\n"+line) {
			t.Errorf("no %s", line)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		return
	}
	bin := filepath.Join(t.TempDir(), "loopnfs")
	check(t, os.WriteFile(bin, []byte("#!/bin/sh\n"), 0o755))
	unit := filepath.Join(t.TempDir(), "loopnfs.service")
	check(t, os.WriteFile(unit, []byte(strings.ReplaceAll(string(b), "/usr/local/bin/loopnfs", bin)), 0o644))
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, "loopnfs.service") {
			t.Errorf("systemd-analyze: %s (%v)", line, err)
		}
	}
}
