package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/vm/job"
)

// perform does what the host asks for.
func perform() error {
	j, err := unpack(jobDisk, job.Dir)
	if err != nil {
		return err
	}
	if err := makeDisk(j.Disk); err != nil {
		return err
	}
	kernel, err := kernelRelease()
	if err != nil {
		return err
	}
	say(job.Event{Ready: &job.Ready{Kernel: kernel, MemKB: newMeminfo().read().total}})
	if err := connect(j.Address); err != nil {
		return err
	}
	switch {
	case j.Load != nil:
		say(job.Event{Result: runLoad(j.Load)})
		return nil
	case j.Serve != nil:
		return serve(*j.Serve)
	case j.Agent:
		return obey(j.Host)
	}
	return runCommand(j.Command)
}

// connect joins the network of two guests.
func connect(address string) error {
	if address == "" {
		return nil
	}
	if err := await("/sys/class/net/eth0", 10*time.Second); err != nil {
		return err
	}
	return errors.Join(command("ip", "addr", "add", address, "dev", "eth0"), command("ip", "link", "set", "eth0", "up"))
}

// serve runs a server for another guest, until this one is killed.
func serve(cfg job.Server) error {
	s := &server{cfg: cfg}
	if err := s.start(); err != nil {
		return err
	}
	say(job.Event{Serving: true})
	select {}
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
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = in, in
	if err := errors.Join(cmd.Start(), in.Close()); err != nil {
		return err
	}
	ended, passed := make(chan struct{}), make(chan struct{})
	go func() {
		passOn(out, ended)
		close(passed)
	}()
	err = cmd.Wait()
	close(ended)
	_ = out.SetReadDeadline(time.Now().Add(quiet)) // pipes have deadlines
	<-passed
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	code := exitCode(cmd.ProcessState)
	say(job.Event{Exit: &code})
	return nil
}

// quiet is how long a command that has ended says nothing before it is taken to
// have said everything: it may have left somebody who could.
const quiet = 250 * time.Millisecond

// passOn passes on what a command says.
func passOn(out *os.File, ended <-chan struct{}) {
	buf := make([]byte, 32<<10)
	for {
		n, err := out.Read(buf)
		if n > 0 {
			say(job.Event{Output: buf[:n]})
		}
		if err != nil { // nobody is left, or nobody says anything
			return
		}
		select {
		case <-ended:
			_ = out.SetReadDeadline(time.Now().Add(quiet)) // the host may have taken its time
		default:
		}
	}
}

// exitCode returns the code that a shell has for how a process ended.
func exitCode(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}
