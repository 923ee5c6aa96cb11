package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Main is process 1 of a host, in three stages: it makes the host's root and gives up
// rights, executes itself without them, and starts the agent, for which it then collects
// the dead. Standard input and output are the agent's. Main returns only what kept it.
func Main() error {
	switch os.Getenv(stageEnv) {
	case "":
		return begin()
	case "init":
		return reap()
	}
	return Serve(os.Stdin, os.Stdout, program)
}

// begin waits for the start signal, a line, by which time this process is in its control
// group and has its network. The line is the configuration.
func begin() error {
	if os.Getpid() != 1 {
		return errors.New("this is the first process of a host of a cluster, not for people")
	}
	line, err := readLine(os.Stdin)
	if err != nil {
		return err
	}
	if err := os.Setenv(configEnv, line); err != nil {
		return err
	}
	c, err := readConfig()
	if err != nil {
		return err
	}
	if err := c.makeRoot(); err != nil {
		return fmt.Errorf("host %s: %w", c.Name, err)
	}
	runtime.LockOSThread() // rights are those of a thread
	if err := dropRights(); err != nil {
		return err
	}
	return again("init")
}

// readLine reads a line and nothing of what follows.
func readLine(f *os.File) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := f.Read(b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
	}
}

// again executes this program as the next stage.
func again(stage string) error {
	env := append(os.Environ(), stageEnv+"="+stage, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
	return syscall.Exec(exePath, os.Args, env)
}

// makeRoot makes the root file system of the host, and enters it.
func (c *Config) makeRoot() error {
	scratch := c.Scratch
	root := filepath.Join(scratch, "root")
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("host-"+c.Name, scratch, "tmpfs", 0, "mode=755") },
		func() error { return mkdirs(root, scratch+"/upper", scratch+"/work") },
		func() error {
			return unix.Mount("host-"+c.Name, root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", scratch, scratch))
		},
		func() error { return mountSystem(root) },
		func() error { return c.mountOwn(root) },
		func() error { return protect(root) },
		func() error { return enter(root) },
		func() error { return unix.Sethostname([]byte(c.Name)) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func mkdirs(dirs ...string) error {
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// devices are those of this machine that every host has.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty", "fuse"}

func mountSystem(root string) error {
	for _, m := range []struct {
		source, dir, typ string
		flags            uintptr
		data             string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"dev", "/dev", "tmpfs", unix.MS_NOSUID, "mode=755"},
		{"shm", "/dev/shm", "tmpfs", 0, "mode=1777"},
		{"run", "/run", "tmpfs", 0, "mode=755"},
		{"tmp", "/tmp", "tmpfs", 0, "mode=1777"},
	} {
		if err := mkdirs(root + m.dir); err != nil {
			return err
		}
		if err := unix.Mount(m.source, root+m.dir, m.typ, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, d := range devices {
		if err := bind("/dev/"+d, root+"/dev/"+d); err != nil {
			return err
		}
	}
	return os.Symlink("/proc/self/fd", root+"/dev/fd")
}

// mountOwn mounts what the configuration names.
func (c *Config) mountOwn(root string) error {
	if err := bind(c.Exe, root+exePath); err != nil {
		return err
	}
	for to, from := range c.Binds {
		if err := bind(from, root+to); err != nil {
			return err
		}
	}
	for _, d := range c.Devices {
		var st unix.Stat_t
		if err := unix.Stat(d, &st); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		if err := unix.Mknod(root+d, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	return nil
}

// bind shows from at to.
func bind(from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if st.IsDir() {
		err = mkdirs(to)
	} else if err = mkdirs(filepath.Dir(to)); err == nil {
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s as %s: %w", from, to, err)
	}
	return nil
}

// masked are files of /proc that could reach the machine.
var masked = []string{"/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg"}

// protect keeps the host from what is not its own.
func protect(root string) error {
	for _, f := range masked {
		if err := unix.Mount("/dev/null", root+f, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", f, err)
		}
	}
	const readOnly = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	sys, network := root+"/proc/sys", root+"/proc/sys/net"
	for _, m := range []struct {
		from, to string
		flags    uintptr
	}{
		{sys, sys, unix.MS_BIND},
		{network, network, unix.MS_BIND}, // stays as it is
		{"", sys, readOnly},
	} {
		if err := unix.Mount(m.from, m.to, "", m.flags, ""); err != nil {
			return fmt.Errorf("protect %s: %w", m.to, err)
		}
	}
	return nil
}

// enter makes root the root of this process, and lets go of the old one.
func enter(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Chdir("/")
}

// forbidden are the rights that reach beyond a host.
var forbidden = []uintptr{
	unix.CAP_SYS_BOOT, unix.CAP_SYS_TIME, unix.CAP_SYS_MODULE, unix.CAP_SYS_RAWIO, unix.CAP_SYSLOG,
	unix.CAP_WAKE_ALARM, unix.CAP_BLOCK_SUSPEND, unix.CAP_MAC_ADMIN, unix.CAP_MAC_OVERRIDE,
}

// dropRights takes them from this thread and from all that it executes.
func dropRights() error {
	for _, c := range forbidden {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// reap starts the agent and collects whoever ends in this host, until the agent does.
func reap() error {
	if err := checkProtection(); err != nil {
		return err
	}
	c, err := readConfig()
	if err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("host %s: ip link set lo up: %w: %s", c.Name, err, out)
	}
	if err := os.Setenv(stageEnv, "agent"); err != nil {
		return err
	}
	agent, err := os.StartProcess(exePath, os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	ends, err := os.OpenFile("/var/log/"+EndsLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for {
		pid, err := awaitDead()
		if err != nil {
			return err
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // as long as nobody has asked how it ended
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || pid == agent.Pid {
			return err
		}
		if status != 0 {
			fmt.Fprintf(ends, "%s process %d (%s) has ended: %s\n", time.Now().UTC().Format(time.RFC3339Nano), pid, strings.TrimSpace(string(name)), howEnded(status))
		}
	}
}

func howEnded(status unix.WaitStatus) string {
	if status.Signaled() {
		return status.Signal().String()
	}
	return fmt.Sprintf("status %d", status.ExitStatus())
}

// awaitDead waits for a process to end, and leaves it as it is.
func awaitDead() (pid int, err error) {
	var info unix.Siginfo
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
	}
	const number = 16 // where si_pid is, for which the type has no name
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), number))), err
}

// checkProtection makes sure, from inside, that this host cannot restart the machine.
func checkProtection() error {
	var st unix.Stat_t
	switch err := unix.Stat("/proc/sysrq-trigger", &st); {
	case errors.Is(err, unix.ENOENT): // the kernel has none
	case err != nil:
		return err
	case st.Rdev != unix.Mkdev(1, 3):
		return errors.New("/proc/sysrq-trigger is not masked in this host: nothing is started in it")
	}
	if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_BOOT, 0, 0, 0); err != nil || has != 0 {
		return errors.New("CAP_SYS_BOOT is not gone in this host: nothing is started in it")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/proc/sys/kernel", &fs); err != nil || fs.Flags&unix.ST_RDONLY == 0 {
		return errors.New("/proc/sys/kernel can be written in this host: nothing is started in it")
	}
	return nil
}
