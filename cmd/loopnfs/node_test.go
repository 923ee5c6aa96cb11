package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// check ends the test on an error.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shell runs a command, which must succeed, and returns what it says.
func shell(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// sharedDisk is a disk with ext4 that one host at a time mounts.
type sharedDisk struct {
	t         *testing.T
	file      string
	loop, dir string // "" while it is mounted nowhere
}

func newSharedDisk(t *testing.T) *sharedDisk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("it needs root")
	}
	d := &sharedDisk{t: t, file: filepath.Join(t.TempDir(), "disk")}
	check(t, os.WriteFile(d.file, nil, 0o600))
	check(t, os.Truncate(d.file, 64<<20))
	shell(t, "mkfs.ext4", "-q", "-E", "nodiscard", d.file)
	t.Cleanup(d.umount)
	return d
}

// mount mounts the disk somewhere else than before, by another device.
func (d *sharedDisk) mount() string {
	d.t.Helper()
	// Another disk takes the device that this one had.
	other := filepath.Join(d.t.TempDir(), "other")
	check(d.t, os.WriteFile(other, make([]byte, 4096), 0o600))
	loop := shell(d.t, "losetup", "--find", "--show", other)
	d.t.Cleanup(func() { shell(d.t, "losetup", "--detach", loop) })
	d.dir = d.t.TempDir()
	d.loop = shell(d.t, "losetup", "--find", "--show", d.file)
	shell(d.t, "mount", "-t", "ext4", d.loop, d.dir)
	return d.dir
}

// umount takes the disk away, as soon as whoever was killed has let go of it.
func (d *sharedDisk) umount() {
	if d.dir != "" {
		eventually(d.t, func() error { return unix.Unmount(d.dir, 0) })
	}
	if d.loop != "" {
		shell(d.t, "losetup", "--detach", d.loop)
	}
	d.dir, d.loop = "", ""
}

// contains reports whether text has all words.
func contains(text string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// eventually waits until f has no error, for ten seconds.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// node is a server on a host of that name: two processes, of which this is the keeper.
type node struct {
	t    *testing.T
	cmd  *exec.Cmd
	err  *said
	addr string
	done chan struct{} // closed when it has ended
}

// startNode starts a server on a host.
func startNode(t *testing.T, host string, args ...string) *node {
	t.Helper()
	n, ready := tryNode(t, host, args...)
	if ready == "" {
		<-n.done
		t.Fatalf("the server on %s did not start: %s", host, n.err)
	}
	return n
}

// tryNode starts a server, and waits until it is ready or has ended; ready is "" then.
func tryNode(t *testing.T, host string, args ...string) (n *node, ready string) {
	t.Helper()
	n, lines := launchNode(t, host, args...)
	ready, _ = lines.ReadString('\n')
	if words := strings.Fields(ready); len(words) > 1 {
		n.addr = words[1]
	}
	return n, ready
}

// launchNode starts a server and does not wait. The host is one that has its own name and
// processes, and ends with the first of these.
func launchNode(t *testing.T, host string, args ...string) (*node, *bufio.Reader) {
	t.Helper()
	argv := append([]string{"--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave",
		"sh", "-c", `hostname "$0" && exec loopnfs serve --memory 16MiB --listen 127.0.0.1:0 --squash none "$@"`, host}, args...)
	n := &node{t: t, cmd: exec.Command("unshare", argv...), err: &said{}, done: make(chan struct{})}
	n.cmd.Stderr = n.err
	n.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	check(t, err)
	n.cmd.Stdout = w
	check(t, n.cmd.Start())
	w.Close()
	go func() { n.cmd.Wait(); close(n.done) }()
	t.Cleanup(func() { n.kill(); r.Close() })
	return n, bufio.NewReader(r)
}

// keeper returns the number of the process that keeps the server, or is it.
func (n *node) keeper() (pid int) {
	n.t.Helper()
	eventually(n.t, func() error {
		if pid = childOf(n.cmd.Process.Pid); pid <= 1 {
			return fmt.Errorf("there is no process: %s", n.err)
		}
		return nil
	})
	return pid
}

// kept reports whether the server is kept. Here that may not be allowed (CAP_SYS_RESOURCE).
func (n *node) kept() bool { return childOf(n.keeper()) > 1 }

// server returns the number of the process that serves.
func (n *node) server() int {
	n.t.Helper()
	pid := n.keeper()
	if child := childOf(pid); child > 1 {
		return child
	}
	return pid
}

// childOf returns the child of a process that has one.
func childOf(pid int) (child int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		if b, _ := os.ReadFile(task); len(b) > 0 {
			_, _ = fmt.Sscan(string(b), &child)
			return child
		}
	}
	return 0
}

// kill ends all processes at once, as the end of a host does.
func (n *node) kill() {
	select {
	case <-n.done:
		return
	default:
	}
	if pid := childOf(n.cmd.Process.Pid); pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	} else {
		n.cmd.Process.Kill()
	}
	<-n.done
}

// stop ends the server in order.
func (n *node) stop() {
	n.t.Helper()
	check(n.t, syscall.Kill(n.keeper(), syscall.SIGTERM))
	if code := n.exitCode(); code != 0 {
		n.t.Fatalf("the server ended with %d: %s", code, n.err)
	}
}

// exitCode waits for the end.
func (n *node) exitCode() int {
	n.t.Helper()
	select {
	case <-n.done:
		return n.cmd.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		n.t.Fatalf("the server does not end: %s", n.err)
		return -1
	}
}

// caller makes calls one by one, and chooses their XIDs.
type caller struct {
	t   *testing.T
	nc  net.Conn
	xid uint32
}

// dialFrom connects from an address of the loop-back network.
func dialFrom(t *testing.T, from, addr string) *caller {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	nc, err := d.Dial("tcp", addr)
	check(t, err)
	t.Cleanup(func() { nc.Close() })
	return &caller{t: t, nc: nc, xid: 1000}
}

// try makes a call.
func (c *caller) try(prog, vers, proc uint32, args func(*xdr.Encoder)) (xdr.Decoder, error) {
	call := sunrpc.Call{XID: c.xid, Prog: prog, Vers: vers, Proc: proc}
	call.Cred = sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: sunrpc.AuthSysCred{Machine: []byte("client")}}
	c.xid++
	if err := c.nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return xdr.Decoder{}, err
	}
	return sunrpc.Exchange(c.nc, &call, args, make([]byte, 64<<10))
}

func (c *caller) call(prog, vers, proc uint32, args func(*xdr.Encoder)) xdr.Decoder {
	c.t.Helper()
	d, err := c.try(prog, vers, proc, args)
	check(c.t, err)
	return d
}

// nfs makes an NFS call with these arguments, and decodes the results.
func (c *caller) nfs(proc uint32, args interface{ Encode(*xdr.Encoder) }, payload []byte, res interface{ Decode(*xdr.Decoder) error }) *xdr.Decoder {
	c.t.Helper()
	d := c.call(nfs3.Program, nfs3.Version, proc, func(e *xdr.Encoder) { args.Encode(e); e.FixedOpaque(payload) })
	check(c.t, res.Decode(&d))
	return &d
}

// root mounts an export.
func (c *caller) root(name string) nfs3.FileHandle {
	c.t.Helper()
	args, res := nfs3.MntArgs{Path: []byte(name)}, nfs3.MntResult{}
	d := c.call(nfs3.MountProgram, nfs3.MountVersion, nfs3.MountProcMnt, args.Encode)
	if check(c.t, res.Decode(&d)); res.Status != nfs3.MountOK {
		c.t.Fatal(res.Status)
	}
	return res.Handle
}
