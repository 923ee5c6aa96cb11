package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/lease"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/xdr"
)

// leased is what two hosts need that want to serve one directory, each with a state of
// its own: here they have one kernel, which knows who has which file.
type leased struct {
	t          *testing.T
	data, path string
	states     map[string]string
}

const leaseTime = 2 * time.Second

func newLeased(t *testing.T) *leased {
	dir := newSharedDisk(t).mount()
	l := &leased{t, filepath.Join(dir, "data"), filepath.Join(dir, "lease"), map[string]string{}}
	check(t, os.Mkdir(l.data, 0o755))
	return l
}

func (l *leased) args(host string) []string {
	if l.states[host] == "" {
		l.states[host] = l.t.TempDir()
	}
	return []string{"--export", l.data + ":/data", "--state", l.states[host], "--lease", l.path, "--lease-duration", leaseTime.String()}
}

func (l *leased) start(host string) *node {
	l.t.Helper()
	return startNode(l.t, host, l.args(host)...)
}

// refused starts a server, which must find that the lease is host's.
func (l *leased) refused(by, host string) {
	l.t.Helper()
	n, ready := tryNode(l.t, by, l.args(by)...)
	if ready != "" {
		l.t.Fatalf("%s serves, too: %s", by, n.err)
	}
	if code := n.exitCode(); code != exitHeld || !contains(n.err.String(), "on "+host, "stop the server there") {
		l.t.Errorf("%s ended with %d: %s", by, code, n.err)
	}
}

// report reads the disk by the command, which must find no doubts.
func (l *leased) report() (r struct {
	Record recordJSON
	Events []recordJSON
	Doubts []string
}) {
	l.t.Helper()
	check(l.t, json.Unmarshal([]byte(shell(l.t, "loopnfs", "lease", "show", "--json", l.path)), &r))
	return r
}

// answers reports whether a server answers on this connection.
func (c *caller) answers() error {
	_, err := c.try(nfs3.Program, nfs3.Version, nfs3.ProcNull, func(*xdr.Encoder) {})
	return err
}

func TestLease(t *testing.T) {
	l := newLeased(t)
	a := l.start("node-a")
	c := dialFrom(t, "127.0.0.8", a.addr)
	l.refused("node-b", "node-a")
	check(t, c.answers())

	epochs := uint64(1)
	if a.kept() { // the keeper starts the next at once, and nobody comes between
		check(t, syscall.Kill(a.server(), syscall.SIGKILL))
		began := time.Now()
		c = dialFrom(t, "127.0.0.8", a.addr)
		check(t, c.answers())
		t.Logf("started again in place: answers after %v", time.Since(began).Round(time.Millisecond))
		l.refused("node-b", "node-a")
		if e := l.report().Record; e.Epoch != 2 || e.Host != "node-a" || e.How != lease.WasDead.String() {
			t.Errorf("after a restart in place: %+v", e)
		}
		epochs++
	}

	a.stop()
	began := time.Now()
	b := l.start("node-b")
	took := time.Since(began)
	if t.Logf("after an orderly end: %v", took.Round(time.Millisecond)); l.report().Record.How != lease.WasReleased.String() {
		t.Errorf("after an orderly end: %+v", l.report().Record)
	}
	b.kill()
	began = time.Now()
	a = l.start("node-a")
	t.Logf("after the end of a host: %v", time.Since(began).Round(time.Millisecond))
	r := l.report()
	if e := r.Record; e.How != lease.WasExpired.String() || e.WatchedSeconds < leaseTime.Seconds() || e.PrecedingHost != "node-b" {
		t.Errorf("after the end of a host: %+v", e)
	}
	a.stop()
	text := shell(t, "loopnfs", "lease", "show", l.path)
	if !contains(text, "released by process", "not renewed by node-b for 2", "never two at the same time") {
		t.Error(text)
	}
	if r = l.report(); len(r.Events) != int(epochs)+4 || r.Record.State != "released" || r.Record.Epoch != epochs+2 {
		t.Errorf("%+v", r)
	}
}

// A holder that stood still does nothing as the owner when it goes on: it answers no call,
// and carries out none that waits for it.
func TestLeaseOfOneThatStoodStill(t *testing.T) {
	l := newLeased(t)
	check(t, os.WriteFile(filepath.Join(l.data, "precious"), nil, 0o644))
	a := l.start("node-a")
	var last atomic.Int64 // reply of node-a
	for range 4 {
		c := dialFrom(t, "127.0.0.8", a.addr)
		go func() {
			for c.answers() == nil {
				last.Store(time.Now().UnixNano())
			}
		}()
	}
	c := dialFrom(t, "127.0.0.8", a.addr)
	root := c.root("/data")
	stopped, kept := a.server(), a.kept()
	check(t, syscall.Kill(stopped, syscall.SIGSTOP))
	awaitStopped(t, stopped)
	remove := nfs3.RemoveArgs{Dir: root, Name: []byte("precious")}
	ended := make(chan error, 1)
	go func() {
		_, err := c.try(nfs3.Program, nfs3.Version, nfs3.ProcRemove, remove.Encode)
		ended <- err
	}()
	b := l.start("node-b")
	taken := time.Unix(0, last.Load())
	check(t, json.Unmarshal([]byte(shell(t, "loopnfs", "lease", "show", "--json", l.path)), &struct {
		Record struct{ Written *time.Time }
	}{struct{ Written *time.Time }{&taken}}))
	check(t, syscall.Kill(stopped, syscall.SIGCONT))
	if err := <-ended; err == nil {
		t.Error("it answers a call that waited for it")
	}
	want := exitLeaseLost
	if kept {
		want = exitHeld // the keeper tries once more, and finds the other
	}
	if code := a.exitCode(); code != want || !contains(a.err.String(), "the lease is lost") {
		t.Errorf("it ended with %d, want %d: %s", code, want, a.err)
	}
	if got := last.Load(); got >= taken.UnixNano() {
		t.Errorf("it has answered %v after the other had the lease", time.Duration(got-taken.UnixNano()))
	}
	if _, err := os.Stat(filepath.Join(l.data, "precious")); err != nil {
		t.Errorf("it has carried out a call: %v", err)
	}
	check(t, dialFrom(t, "127.0.0.8", b.addr).answers())
	l.report()
	b.stop()
}

// awaitStopped waits until no thread of a process runs any more: each stops only when it
// has noticed.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		check(t, err)
		running := slices.ContainsFunc(stats, func(path string) bool {
			stat, err := os.ReadFile(path)
			return err == nil && !bytes.Contains(stat, []byte(") T "))
		})
		if len(stats) > 0 && !running {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
}

// A disk that does not answer ends the server before others may begin, and all connections,
// though a thread of it still waits for the disk; when it answers again, the server is
// started again.
func TestLeaseOnADiskThatStalls(t *testing.T) {
	l := newLeased(t)
	l.data = t.TempDir()
	a := l.start("node-a")
	c := dialFrom(t, "127.0.0.8", a.addr)
	check(t, c.answers())
	var idle []*caller
	for range 64 {
		idle = append(idle, dialFrom(t, "127.0.0.8", a.addr))
		check(t, idle[len(idle)-1].answers())
	}
	began := time.Now()
	disk := filepath.Dir(l.path)
	shell(t, "fsfreeze", "--freeze", disk)
	thaw := func() error { return exec.Command("fsfreeze", "--unfreeze", disk).Run() }
	t.Cleanup(func() { _ = thaw() })
	var answered time.Time
	for err := error(nil); err == nil; time.Sleep(time.Millisecond) {
		if err = c.answers(); err == nil {
			answered = time.Now()
		} else if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the connection ends with %v", err)
		}
	}
	if took := answered.Sub(began); took > leaseTime {
		t.Errorf("it has answered for %v", took)
	}
	for _, c := range idle {
		if _, err := c.nc.Read(make([]byte, 1)); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("a connection without calls ends with %v", err)
		}
	}
	if took := time.Since(began); took > leaseTime {
		t.Errorf("connections end after %v", took)
	}
	kept := a.kept()
	if nc, err := net.Dial("tcp", a.addr); err == nil && !kept {
		nc.Close()
		t.Error("nobody will ever answer, and it can be connected to")
	}
	check(t, thaw())
	if !kept {
		if code := a.exitCode(); code != exitLeaseLost {
			t.Errorf("it ended with %d: %s", code, a.err)
		}
		a = l.start("node-a")
	}
	c = dialFrom(t, "127.0.0.8", a.addr)
	check(t, c.answers())
	if r := l.report(); r.Record.Epoch != 2 {
		t.Errorf("%+v: %s", r.Record, a.err)
	}
	a.stop()
}

// Of two that start at the same time, one serves. The lease is a block device.
func TestLeaseOfTwoAtOnce(t *testing.T) {
	l := newLeased(t)
	file := filepath.Join(t.TempDir(), "partition")
	check(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	l.path = shell(t, "losetup", "--find", "--show", "--direct-io=on", file)
	t.Cleanup(func() { shell(t, "losetup", "--detach", l.path) })
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for range rounds {
		var nodes [2]*node
		ready := make(chan *node, 2)
		for i, host := range []string{"node-a", "node-b"} {
			n, lines := launchNode(t, host, l.args(host)...)
			nodes[i] = n
			go func() {
				if line, _ := lines.ReadString('\n'); line == "" {
					n = nil
				}
				ready <- n
			}()
		}
		one, other := <-ready, <-ready
		if one == nil {
			one, other = other, one
		}
		if one == nil || other != nil {
			t.Fatalf("both or none: %s%s", nodes[0].err, nodes[1].err)
		}
		for _, n := range nodes {
			if n != one && n.exitCode() != exitHeld {
				t.Errorf("%d: %s", n.exitCode(), n.err)
			}
		}
		one.kill()
	}
	l.report()
}

// What cannot be is refused, with a remedy, and what waits can be told to stop.
func TestLeaseRefusals(t *testing.T) {
	l := newLeased(t)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--lease", l.path, "--lease-duration", "10ms"}, exitUsage, "give 1s to"},
		{[]string{"--lease", filepath.Join(l.data, "lease")}, exitError, "clients could write to it"},
		{[]string{"--lease", filepath.Join(l.data, "..", "nowhere", "lease")}, exitError, "no such file"},
		{[]string{"--lease", "/dev/zero"}, exitError, "cannot open the lease"},
		{[]string{"--lease", filepath.Dir(l.path)}, exitError, "is a directory"},
	} {
		n, _ := tryNode(t, "node-a", append([]string{"--export", l.data, "--state", t.TempDir()}, c.args...)...)
		if code := n.exitCode(); code != c.code || !strings.Contains(n.err.String(), c.want) {
			t.Errorf("%q: %d, %s", c.args, code, n.err)
		}
	}
	l.start("node-a").kill()
	b, _ := launchNode(t, "node-b", append(l.args("node-b"), "--lease-duration", "1m")...)
	eventually(t, func() error {
		if !contains(b.err.String(), "it is taken if it is not renewed") {
			return errors.New("it does not wait")
		}
		return nil
	})
	check(t, syscall.Kill(b.keeper(), unix.SIGTERM))
	began := time.Now()
	if code := b.exitCode(); code != exitError || time.Since(began) > 5*time.Second {
		t.Errorf("told to stop: %d after %v: %s", code, time.Since(began), b.err)
	}
}
