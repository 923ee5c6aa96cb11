package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/vm/job"
)

const (
	exportDir   = srv + "/export"
	nfsPort     = "2049"
	startLimit  = 60 * time.Second
	stopLimit   = 60 * time.Second
	serverFiles = job.Dir + "/server.log"
)

// server is one NFS server, of whatever make, on this machine.
type server struct {
	cfg job.Server
	// address is that of its service on this machine, lease its lease; "" for none.
	address, lease string
	// cmd is its process; nil for the kernel's.
	cmd  *exec.Cmd
	done chan struct{}
}

// mountOptions are those that a careful administrator gives.
func (s *server) mountOptions() string {
	opts := "vers=3,nolock,proto=tcp,hard,port=" + nfsPort
	if s.cfg.Name != "knfsd" {
		opts += ",mountproto=tcp,mountport=" + s.mountPort()
	}
	return opts
}

func (s *server) mountPort() string {
	if s.cfg.Name == "ganesha" {
		return "20048"
	}
	return nfsPort
}

// source is what is mounted.
func (s *server) source() string {
	if s.cfg.Name == "gonfs" {
		return s.host() + ":/"
	}
	return s.host() + ":" + exportDir
}

func (s *server) host() string {
	return cmp.Or(s.cfg.Host, s.address, "127.0.0.1")
}

// remote reports whether the server runs in another guest.
func (s *server) remote() bool { return s.cfg.Host != "" }

// start starts the server and waits until clients can connect.
func (s *server) start() error {
	if s.remote() {
		return nil
	}
	if err := os.MkdirAll(exportDir, 0o777); err != nil {
		return err
	}
	switch s.cfg.Name {
	case "knfsd":
		return startKnfsd()
	case "ganesha":
		return s.startGanesha()
	case "gonfs":
		return s.spawn(nfsPort, job.Dir+"/gonfs", "-listen", ":"+nfsPort, exportDir)
	case "loopnfs":
		return s.spawn(nfsPort, job.Dir+"/loopnfs", s.loopnfsArgs()...)
	}
	return fmt.Errorf("no server is called %q", s.cfg.Name)
}

func (s *server) loopnfsArgs() []string {
	args := []string{
		"serve", "--export", exportDir + ":" + exportDir, "--listen", ":" + nfsPort,
		"--memory", "16MiB", "--state", srv + "/state", "--squash", "none", "--verbose",
	}
	if s.lease != "" {
		args = append(args, "--lease", s.lease, "--lease-duration", "20s") // the disk is slow
	}
	if len(s.cfg.Without) > 0 {
		args = append(args, "--without", strings.Join(s.cfg.Without, ","))
	}
	return args
}

// spawn starts a server that stays in the foreground, and waits for its port.
func (s *server) spawn(port, name string, args ...string) error {
	log, err := os.OpenFile(serverFiles, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd, s.done = plain(name, args...), make(chan struct{})
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = s.cmd.Wait() // how it ended is in the log
		close(s.done)
	}()
	return s.awaitPort(port)
}

// awaitPort waits until something listens.
func (s *server) awaitPort(port string) error {
	for end := time.Now().Add(startLimit); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			return c.Close()
		}
		if s.ended() || time.Now().After(end) {
			return fmt.Errorf("%s does not listen on port %s: %s", s.cfg.Name, port, s.log())
		}
	}
}

// ended reports whether the process of the server is gone.
func (s *server) ended() bool {
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// log returns the last lines that the server wrote.
func (s *server) log() string {
	f, err := os.Open(serverFiles)
	if err != nil {
		return ""
	}
	defer f.Close()
	var last []string
	for in := bufio.NewScanner(f); in.Scan(); {
		last = append(last, in.Text())
		last = last[max(0, len(last)-12):]
	}
	return strings.Join(last, "\n")
}

// stop ends the server in order.
func (s *server) stop() error {
	if s.remote() {
		return nil
	}
	if s.cfg.Name == "knfsd" {
		return command("rpc.nfsd", "0")
	}
	return s.terminate()
}

// terminate ends the process of the server as an administrator does.
func (s *server) terminate() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
		return nil
	case <-time.After(stopLimit):
		return fmt.Errorf("%s did not end within %v of SIGTERM", s.cfg.Name, stopLimit)
	}
}

// crash kills the process that serves, and has it, or another, serve again after
// it was gone for a while: loopnfs does that itself, others need somebody for it.
// The kernel's server has no process; its threads are stopped instead.
func (s *server) crash(gone time.Duration) error {
	if s.cfg.Name == "knfsd" {
		if err := s.stop(); err != nil {
			return err
		}
		time.Sleep(gone)
		return s.start()
	}
	pid := s.servingPID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill the server: %w", err)
	}
	if pid == s.cmd.Process.Pid {
		<-s.done
		time.Sleep(gone)
		return s.start()
	}
	for s.servingPID() == pid && !s.ended() { // until it has ended
		time.Sleep(10 * time.Millisecond)
	}
	return s.awaitPort(nfsPort)
}

// servingPID returns the process that serves: the child, if that which was
// started has one.
func (s *server) servingPID() int {
	pid := s.cmd.Process.Pid
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var child int
	if _, err := fmt.Sscan(string(text), &child); err == nil {
		return child
	}
	return pid
}

func startKnfsd() error {
	if err := unix.Mount("nfsd", "/proc/fs/nfsd", "nfsd", 0, ""); err != nil && err != unix.EBUSY {
		return err
	}
	exports := exportDir + " *(rw,no_root_squash,no_subtree_check,fsid=1)\n"
	if err := os.WriteFile("/etc/exports", []byte(exports), 0o644); err != nil {
		return err
	}
	_ = command("rpcbind", "-w") // a second start finds the first one
	if err := errors.Join(command("exportfs", "-ra"), command("rpc.nfsd", "-N", "4", "8")); err != nil {
		return err
	}
	if _, err := os.Stat("/run/mountd"); err == nil {
		return nil
	}
	return errors.Join(command("rpc.mountd"), os.WriteFile("/run/mountd", nil, 0o644))
}

const ganeshaConfig = `
NFS_CORE_PARAM { Protocols = 3; NFS_Port = 2049; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false; }
EXPORT { Export_Id = 1; Path = ` + exportDir + `; Pseudo = /export; Access_Type = RW; Squash = none; SecType = sys; FSAL { Name = VFS; } }
LOG { Default_Log_Level = EVENT; }
`

func (s *server) startGanesha() error {
	const conf = job.Dir + "/ganesha.conf"
	if err := os.WriteFile(conf, []byte(ganeshaConfig), 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/ganesha", 0o755); err != nil {
		return err
	}
	_ = command("rpcbind", "-w") // a second start finds the first one
	return s.spawn("20048", "ganesha.nfsd", "-F", "-f", conf, "-L", serverFiles, "-p", "/run/ganesha/pid")
}
