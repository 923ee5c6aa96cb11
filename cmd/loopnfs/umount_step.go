package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"loopnfs/fusefs"
	"loopnfs/internal/nfsmount"
)

// unmountCommand is a hidden one: umount(2) waits for pages that a dead server
// never takes, and a process in it cannot even be killed. So it is done by one that
// we can leave behind.
const unmountCommand = "umount-only"

// What such a process does.
const (
	stepUnmount = "unmount"
	stepSync    = "sync"  // of a mount of the kernel's client
	stepAbort   = "abort" // the same
)

func newUmountOnlyCommand() *cobra.Command {
	var step string
	cmd := &cobra.Command{
		Use: unmountCommand, Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := runStep(step, args[0])
			if errors.Is(err, unix.EBUSY) {
				return codeError{exitBusy, err}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&step, "step", stepUnmount, "what to do")
	return cmd
}

func runStep(step, path string) error {
	host := nfsmount.ThisHost()
	k, err := host.Find(path)
	if err != nil || k == nil {
		return err
	}
	switch {
	case !k.IsNFS():
		return unmountFuse(path)
	case step == stepSync:
		return host.Sync(k)
	case step == stepAbort:
		return host.Abort(k)
	}
	return unmountAnswering(host, k)
}

func unmountFuse(path string) error {
	m, err := fusefs.FindMount(path)
	if err != nil || m == nil {
		return err
	}
	return m.Unmount()
}

// unmountAnswering unmounts and says meanwhile how much is left, like the process
// behind a mount by FUSE.
func unmountAnswering(host *nfsmount.Host, k *nfsmount.Entry) error {
	st, err := listenStatus(k.Path)
	if err != nil { // an earlier one is still at it
		return host.Unmount(k)
	}
	defer st.close()
	go st.serve(func() int64 { return host.Unwritten(k.Device) })
	lost := make(chan error, 1)
	go func() {
		<-st.giveUp
		lost <- fmt.Errorf("it was told to give up: %s were not written to the server", amount(host.Unwritten(k.Device)))
		_ = host.GiveUp(k) // where it cannot, this goes on until it is killed
	}()
	err = host.Unmount(k)
	select {
	case e := <-lost:
		st.finish(e)
	default:
		st.finish(nil)
	}
	return err
}

// step is a process that does what may never end.
type step struct {
	cmd  *exec.Cmd
	out  strings.Builder // valid once done
	done chan struct{}
}

func startStep(ctx context.Context, what, path string) (*step, error) {
	s := &step{cmd: selfCommand(ctx, unmountCommand, "--step="+what, "--", path), done: make(chan struct{})}
	s.cmd.Stderr = &s.out
	s.cmd.WaitDelay = time.Second
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = s.cmd.Wait() // its code says how it went
		close(s.done)
	}()
	return s, nil
}

// ended waits for the end of the process, until deadline at most.
func (s *step) ended(deadline time.Time) bool {
	select {
	case <-s.done:
		return true
	case <-time.After(time.Until(deadline)):
		return false
	}
}

// endedShowing is ended, and shows how much there is left.
func (s *step) endedShowing(left func() int64, deadline time.Time) bool {
	for before := int64(-1); ; {
		if s.ended(time.Now().Add(min(statusEvery, time.Until(deadline)))) {
			progress(before, 0)
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		now := left()
		progress(before, now)
		before = now
	}
}

// err returns what an ended process has to say; unix.EBUSY for exitBusy.
func (s *step) err() error {
	switch code := s.cmd.ProcessState.ExitCode(); code {
	case exitOK:
		return nil
	case exitBusy:
		return unix.EBUSY
	}
	return errors.New(strings.TrimPrefix(strings.TrimSpace(s.out.String()), "loopnfs: "))
}
