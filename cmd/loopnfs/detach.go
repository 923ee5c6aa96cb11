package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// detachedEnv tells a process that it was started by startDetached, and that
// descriptor 3 is where to say how the start went.
const detachedEnv = "LOOPNFS_DETACHED"

func isDetached() bool { return os.Getenv(detachedEnv) != "" }

// startReport is what the process in the background tells the one that started
// it.
type startReport struct {
	Code  int
	Error string
}

// startDetached runs this same command line in a session of its own and returns
// when that says that it is ready, or why it is not.
func startDetached(ctx context.Context, opts *mountOptions) error {
	log, err := os.OpenFile(opts.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write messages: %w; name another file with --log, or use --foreground", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// The working directory must not keep a file system busy, so relative
	// paths must not be left to the other process.
	cmd := selfCommand(ctx, opts.args()...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), detachedEnv+"=1")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot start the process that serves the mount: %w", err)
	}
	return readReport(r, cmd, opts.log)
}

// selfCommand returns this program with other arguments. It is started by its
// name, which ps(1) shows, unless it was replaced meanwhile.
func selfCommand(ctx context.Context, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err == nil {
		_, err = os.Stat(self)
	}
	if err != nil {
		self = "/proc/self/exe"
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Args[0] = os.Args[0]
	return cmd
}

// args returns the command line that means the same in any directory.
func (o *mountOptions) args() []string {
	args := []string{
		"mount", "--via=" + o.via, "--memory=" + fmt.Sprint(int64(o.memory)),
		"--timeout=" + o.timeout.String(), fmt.Sprintf("--verbose=%t", o.verbose),
	}
	for _, opt := range o.options {
		args = append(args, "-o", opt)
	}
	return append(args, "--", o.source, o.mountpoint)
}

func readReport(r io.Reader, cmd *exec.Cmd, log string) error {
	var rep startReport
	if err := json.NewDecoder(r).Decode(&rep); err != nil {
		err := cmd.Wait()
		return fmt.Errorf("the process that serves the mount has ended before it was ready (%v): see %s", err, log)
	}
	if rep.Code == exitOK {
		return cmd.Process.Release()
	}
	_ = cmd.Wait() // its code is in the report
	return codeError{rep.Code, errors.New(rep.Error)}
}

// reportStart runs serve in the process in the background. serve calls ready
// when it is, and ends if nobody waits for that any more.
func reportStart(serve func(ready func() error) error) error {
	pipe := os.NewFile(3, "report")
	syscall.CloseOnExec(3)
	os.Unsetenv(detachedEnv)
	reported := false
	report := func(rep startReport) error {
		if reported {
			return nil
		}
		reported = true
		return errors.Join(json.NewEncoder(pipe).Encode(rep), pipe.Close())
	}
	err := serve(func() error { return report(startReport{}) })
	if err != nil {
		_ = report(startReport{exitCode(err), err.Error()}) // whoever is gone needs no report
	}
	return err
}
