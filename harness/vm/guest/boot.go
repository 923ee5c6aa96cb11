package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/vm/job"
)

const (
	rootDisk = "/dev/vda"
	dataDisk = "/dev/vdb"
	jobDisk  = "/dev/vdc"
	hostPort = "/dev/ttyS1"

	// srv is where the data disk is mounted, mnt where NFS mounts go.
	srv, mnt = "/srv", "/mnt"

	// By these names this program shows up in stacks and in what the OOM
	// killer says.
	writerName, hogName = "/run/writer", "/run/hog"

	// protectedEnv marks a process that has been through protect.
	protectedEnv = "GUEST_PROTECTED"
	// heapBytes is what the monitor's heap may grow to before it is collected.
	heapBytes = 12 << 20
)

// boot is the life of process 1.
func boot() {
	if os.Getenv(protectedEnv) == "" {
		protect()
	}
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapBytes)
	err := start()
	if err == nil {
		err = perform()
	}
	if err != nil {
		say(job.Event{Error: err.Error()})
	}
	powerOff()
}

// protect makes sure that the monitor never waits for the file systems that it
// watches: no thread of it enters their reclaim, none of it is reclaimed, and as
// a real-time process it may use half of the reserve that nobody else does.
func protect() {
	runtime.LockOSThread()
	must(unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0))
	must(setScheduler(unix.SCHED_RR, 1))
	os.Setenv(protectedEnv, "1")
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	must(unix.Exec("/init", os.Args, os.Environ()))
}

// setScheduler sets the policy of this thread, and of what it executes.
func setScheduler(policy, priority uint32) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("sched_setattr: %w", err)
	}
	return nil
}

// must is for what cannot fail unless the guest is built wrongly.
func must(err error) {
	if err != nil {
		fmt.Println("guest:", err)
		powerOff()
	}
}

// powerOff ends the machine now: QEMU runs with -no-reboot. sysrq does not wait
// for anything.
func powerOff() {
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	for {
		time.Sleep(time.Second)
	}
}

// start makes the machine usable.
func start() error {
	must(mountAll("/dev devtmpfs", "/proc proc", "/sys sysfs"))
	if err := loadModules(); err != nil {
		return err
	}
	if err := await(rootDisk, 10*time.Second); err != nil {
		return err
	}
	if err := unix.Mount(rootDisk, "/root", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", rootDisk, err)
	}
	for _, err := range []error{os.Chdir("/root"), unix.Mount("/root", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")} {
		if err != nil {
			return fmt.Errorf("change root: %w", err)
		}
	}
	err := mountAll("/dev devtmpfs", "/proc proc", "/sys sysfs", "/run tmpfs", "/tmp tmpfs")
	if err == nil {
		err = errors.Join(os.MkdirAll("/dev/shm", 0o777), mountAll("/dev/shm tmpfs"))
	}
	if err := errors.Join(err, openHost(), unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT)); err != nil {
		return err
	}
	for _, name := range []string{writerName, hogName} {
		if err := os.Symlink("/proc/1/exe", name); err != nil {
			return err
		}
	}
	return command("ip", "link", "set", "lo", "up")
}

func mountAll(list ...string) error {
	for _, m := range list {
		dir, typ, _ := strings.Cut(m, " ")
		if err := unix.Mount(typ, dir, typ, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}

// loadModules loads what the host put into the initramfs, in the order of names.
func loadModules() error {
	files, _ := filepath.Glob("/modules/*")
	for _, path := range files {
		if err := loadModule(path); err != nil {
			return fmt.Errorf("module %s: %w", filepath.Base(path), err)
		}
		os.Remove(path) // it is in memory twice otherwise
	}
	return nil
}

// loadModule tries for some seconds: the kernel may have no room for the variables that a
// module has for each processor, and only begins to make some when it was asked in vain.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := unix.FinitModule(int(f.Fd()), "", 0)
		switch {
		case err == nil, err == unix.EEXIST:
			return nil
		case err != unix.ENOMEM || time.Now().After(end):
			return err
		}
	}
}

func await(path string, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// unpack takes the job and its files from their disk.
func unpack(disk, dir string) (job.Job, error) {
	var j job.Job
	f, err := os.Open(disk)
	if err != nil {
		return j, err
	}
	defer f.Close()
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if err == io.EOF {
			return j, fmt.Errorf("there is no %s on %s", job.Name, disk)
		}
		if err != nil {
			return j, fmt.Errorf("%s: %w", disk, err)
		}
		if h.Name == job.Name { // it is the last
			return j, json.NewDecoder(t).Decode(&j)
		}
		if err := unpackFile(filepath.Join(dir, h.Name), t, os.FileMode(h.Mode)); err != nil {
			return j, err
		}
	}
}

func unpackFile(path string, r io.Reader, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// makeDisk makes a file system on the data disk and mounts it.
func makeDisk(typ string) error {
	if typ == "" {
		return nil
	}
	opts := []string{"-q", dataDisk}
	if typ == "ext4" {
		opts = []string{"-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", dataDisk}
	}
	if err := command("mkfs."+typ, opts...); err != nil {
		return err
	}
	return unix.Mount(dataDisk, srv, typ, 0, "")
}

func setSysctl(values map[string]string) error {
	for name, value := range values {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program to its end.
func command(name string, args ...string) error {
	out, err := plain(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// plain is exec.Command without the monitor's privileges.
func plain(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"exec", name}, args...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, protectedEnv) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd
}

// lookPath is exec.LookPath for a path that may be /proc/self/exe.
func lookPath(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return name, nil
	}
	return exec.LookPath(name)
}
