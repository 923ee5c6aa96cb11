package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/nfs3"
)

// server is a program that serves a directory, by NFS or as a mount, or one that runs
// already.
type server struct {
	name string
	// point is where it is mounted; empty for one that is not. below is the server of a
	// client's mount.
	point string
	below *server
	dir   string // what it exports; empty for one that runs already
	addr  string
	// mountAddr is where MOUNT is served.
	mountAddr string
	export    string
	// argv starts it, after its files have been written; ours is for a server of loopnfs,
	// which takes more flags.
	argv  []string
	ours  bool
	files map[string]string

	// portmap is set for one that does not start without a portmapper.
	portmap bool
	// limit is what the control group gives it, in bytes; 0 for no group. group is that.
	limit int64
	group *memoryGroup

	cmd, rpcbind *exec.Cmd
	log          bytes.Buffer
}

// freePort returns a port that nobody has at the moment.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

// newServer describes the server of a name for the directory dir; state is a directory
// for its own files. bin is where the programs of loopnfs are.
func newServer(name, bin, dir, state string) (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &server{name: name, dir: dir, addr: "127.0.0.1:" + port, export: "/"}
	s.mountAddr = s.addr
	switch name {
	case "gonfs":
		s.argv = []string{filepath.Join(bin, "loopnfs-gonfs"), "-listen", s.addr, dir}
	case "ganesha":
		mount, err := freePort()
		if err != nil {
			return nil, err
		}
		s.mountAddr, s.export, s.portmap = "127.0.0.1:"+mount, dir, true
		conf := filepath.Join(state, "ganesha.conf")
		s.files = map[string]string{conf: fmt.Sprintf(ganeshaConfig, port, mount, dir)}
		s.argv = []string{"ganesha.nfsd", "-F", "-f", conf, "-L", "STDERR", "-p", filepath.Join(state, "ganesha.pid")}
	default: // loopnfs, of this or another commit
		s.export, s.ours = "/export", true
		s.argv = []string{filepath.Join(bin, "loopnfs"), "serve", "--export", dir + ":" + s.export, "--listen", s.addr,
			"--state", state, "--squash", "none"}
	}
	switch name {
	case "arena-full":
		s.argv = append(s.argv, "--memory", smallArena)
	case "cgroup":
		s.limit = groupLimit
	}
	return s, nil
}

const ganeshaConfig = `
NFS_CORE_PARAM { Protocols = 3; NFS_Port = %s; MNT_Port = %s; Enable_NLM = false; Enable_RQUOTA = false; }
EXPORT { Export_Id = 1; Path = %s; Pseudo = /export; Access_Type = RW; Squash = none; SecType = sys; FSAL { Name = VFS; } }
LOG { Default_Log_Level = EVENT; }
`

// there reports a program that is not there.
func (s *server) there() error {
	for _, one := range []*server{s, s.below} {
		if one == nil || one.argv == nil {
			continue
		}
		if _, err := exec.LookPath(one.argv[0]); err != nil {
			return err
		}
	}
	return nil
}

// start starts the server and waits until it answers. flags are for servers of loopnfs.
func (s *server) start(ctx context.Context, flags []string) error {
	if s.below != nil {
		if err := s.below.start(ctx, flags); err != nil {
			return err
		}
	}
	if s.argv == nil {
		return s.await(ctx)
	}
	for name, text := range s.files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := s.startPortmap(); err != nil {
		return err
	}
	argv, err := s.command(flags)
	if err != nil {
		return err
	}
	s.log.Reset()
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	if err := s.await(ctx); err != nil {
		s.stop()
		return fmt.Errorf("%s: %w\n%s", s.name, err, &s.log)
	}
	return nil
}

// command is what starts the server, in its control group if it has one.
func (s *server) command(flags []string) (argv []string, err error) {
	argv = slices.Clip(s.argv)
	if s.ours {
		argv = append(argv, flags...)
	}
	if s.limit == 0 {
		return argv, nil
	}
	if s.group, err = newMemoryGroup(s.limit); err != nil {
		return nil, err
	}
	return append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, s.group.procs}, argv...), nil
}

// startPortmap starts a portmapper, unless there is one.
func (s *server) startPortmap() error {
	const addr = "127.0.0.1:111"
	answers := func() bool {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
		}
		return err == nil
	}
	if !s.portmap || answers() {
		return nil
	}
	s.rpcbind = exec.Command("rpcbind", "-f")
	s.rpcbind.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.rpcbind.Start(); err != nil {
		return fmt.Errorf("%s needs a portmapper: %w", s.name, err)
	}
	for range 100 {
		if answers() {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.stop()
	return fmt.Errorf("%s needs a portmapper, and rpcbind does not answer on %s", s.name, addr)
}

// await waits until NFS and MOUNT are served.
func (s *server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := s.answers()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("it does not answer"), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *server) answers() error {
	if s.point != "" {
		return mountedFUSE(s.point)
	}
	if s.addr == "" {
		return nil
	}
	_, err := s.root()
	return err
}

// root mounts the export.
func (s *server) root() (nfs3.FileHandle, error) {
	c, err := rawnfs.Dial(s.mountAddr)
	if err != nil {
		return nfs3.FileHandle{}, err
	}
	defer c.Close()
	h, err := c.Mount(s.export)
	if err != nil {
		return h, err
	}
	nfs, err := rawnfs.Dial(s.addr)
	if err != nil {
		return h, err
	}
	defer nfs.Close()
	var res nfs3.GetAttrResult
	_, err = nfs.Call(nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, nil, &res)
	if err == nil && res.Status != nfs3.StatusOK {
		err = fmt.Errorf("GETATTR of the root: %v", res.Status)
	}
	return h, err
}

// stop ends the server; what it does not end by itself in time is killed.
func (s *server) stop() {
	if s.below != nil {
		defer s.below.stop()
	}
	if s.point != "" {
		unmount(s.point)
	}
	for _, cmd := range []**exec.Cmd{&s.cmd, &s.rpcbind} {
		if *cmd == nil {
			continue
		}
		p := (*cmd).Process
		_ = p.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(20*time.Second, func() { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) })
		_ = (*cmd).Wait()
		kill.Stop()
		*cmd = nil
	}
	if s.group != nil {
		s.group.remove()
		s.group = nil
	}
}

// usage is what the server's processes have used.
type usage struct {
	cpu      time.Duration
	syscalls uint64 // reads and writes, as far as the kernel counts them
	peak     int64  // resident memory at most, in bytes
}

// usage adds up the processes of the server; zero for one that runs elsewhere.
func (s *server) usage() (u usage) {
	if s.below != nil {
		u = s.below.usage()
	}
	if s.cmd == nil {
		return u
	}
	for _, pid := range family(s.cmd.Process.Pid) {
		one := usageOf(pid)
		u.cpu += one.cpu
		u.syscalls += one.syscalls
		u.peak += one.peak
	}
	return u
}

// since is what was used after before was taken.
func (u usage) since(before usage) usage {
	u.cpu, u.syscalls = u.cpu-before.cpu, u.syscalls-before.syscalls
	return u
}

// family is a process and its descendants.
func family(pid int) []int {
	all := []int{pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range tasks {
		text, _ := os.ReadFile(name)
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, family(child)...)
			}
		}
	}
	return all
}

// ticksPerSecond is USER_HZ, which is 100 on all machines that Go runs on.
const ticksPerSecond = 100

func usageOf(pid int) (u usage) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, _ := os.ReadFile(dir + "stat")
	if _, rest, ok := strings.Cut(string(stat), ") "); ok {
		fields := strings.Fields(rest)
		for _, field := range fields[11:13] { // utime, stime
			ticks, _ := strconv.ParseInt(field, 10, 64)
			u.cpu += time.Duration(ticks) * time.Second / ticksPerSecond
		}
	}
	io, _ := os.ReadFile(dir + "io")
	for line := range strings.Lines(string(io)) {
		var n uint64
		if _, err := fmt.Sscanf(line, "syscr: %d", &n); err == nil {
			u.syscalls += n
		}
		if _, err := fmt.Sscanf(line, "syscw: %d", &n); err == nil {
			u.syscalls += n
		}
	}
	status, _ := os.ReadFile(dir + "status")
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			u.peak = kib << 10
		}
	}
	return u
}
