package main

import (
	"errors"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"loopnfs/harness/vm/job"
)

// perform does what the host asks for.
func perform() error {
	j, err := unpack()
	if err != nil {
		return err
	}
	if err := errors.Join(setSysctl(j.Sysctl), makeDisk(j.Disk)); err != nil {
		return err
	}
	kernel, err := kernelRelease()
	if err != nil {
		return err
	}
	say(job.Event{Ready: &job.Ready{Kernel: kernel, MemKB: newMeminfo().read().total}})
	if j.Load == nil {
		return runCommand(j.Command)
	}
	say(job.Event{Result: runLoad(j.Load)})
	return nil
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return strings.TrimRight(string(u.Release[:]), "\x00"), nil
}

func runCommand(argv []string) error {
	cmd := plain(argv[0], argv[1:]...)
	cmd.Dir = job.Dir
	cmd.Stdout, cmd.Stderr = outputs{}, outputs{}
	err := cmd.Run()
	code := cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	say(job.Event{Exit: &code})
	return nil
}
