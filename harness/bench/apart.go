package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const apartEnv = "LOOPNFS_BENCH_APART"

// apart runs this program again in namespaces of its own, unless that is what runs now,
// and returns its exit code: no mount, socket or file in /run is left behind, and nobody
// else's is in the way. With outside, the network is that of the host.
func apart(outside bool) (code int, done bool, err error) {
	if os.Getenv(apartEnv) != "" {
		return 0, false, errors.Join(ownRun(), loopbackUp(outside))
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), apartEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	if !outside {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), true, nil
	}
	if err != nil {
		err = fmt.Errorf("cannot run in namespaces of its own (are you root?): %w", err)
	}
	return 0, true, err
}

// ownRun gives this mount namespace a /run of its own.
func ownRun() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make all mounts private: %w", err)
	}
	return unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
}

// loopbackUp starts the loop-back interface of a new network namespace.
func loopbackUp(outside bool) error {
	if outside {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(req)))
	if e != 0 {
		return fmt.Errorf("start the loop-back interface: %w", e)
	}
	return nil
}
