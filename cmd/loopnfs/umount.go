package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"loopnfs/fusefs"
	"loopnfs/internal/nfsmount"
)

type umountOptions struct {
	mountpoint string
	force      bool
	timeout    time.Duration
}

func newUmountCommand() *cobra.Command {
	var opts umountOptions
	cmd := &cobra.Command{
		Use:   "umount MOUNTPOINT",
		Short: "Unmount, also when the server is gone",
		Long: `Unmounts what loopnfs has mounted, or the kernel's NFS client, and returns when
everything that was written is with the server. If that takes longer than --timeout,
the mount is gone all the same, a process goes on writing, and the command says how
much is left; run it again to wait again.

With --force everybody who uses the mount gets an error, and what cannot be
written to the server within --timeout is lost; the command says how much. It never
hangs, not even if the server or the process behind the mount does. A kernel older
than Linux 6.5 keeps what it cannot write until the server is back.`,
		Example: `  loopnfs umount /mnt
  loopnfs umount /mnt --timeout 5m
  loopnfs umount /mnt --force`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.mountpoint = args[0]
			return runUmount(cmd.Context(), &opts)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&opts.force, "force", false, "unmount also what is in use, or hangs")
	f.DurationVar(&opts.timeout, "timeout", 10*time.Second, "how long to wait for data to be written")
	return cmd
}

func runUmount(ctx context.Context, opts *umountOptions) error {
	if opts.timeout <= 0 {
		return usagef("--timeout %v: give a time, like 10s", opts.timeout)
	}
	m, path, err := findMount(opts.mountpoint)
	if err != nil {
		return err
	}
	host := nfsmount.ThisHost()
	if k, err := host.Find(path); err != nil || k != nil && k.IsNFS() {
		if err != nil {
			return err
		}
		return unmountKernel(ctx, host, k, opts)
	}
	if m != nil && m.Type != "fuse.loopnfs" {
		return fmt.Errorf("%s is not a mount of loopnfs: %s of type %s is mounted there; use umount", path, m.Source, m.Type)
	}
	daemon, err := dialStatus(path, func(uid int) bool { return os.Geteuid() == 0 && (m == nil || m.Owner == uid) })
	if err != nil {
		return err
	}
	defer daemon.close()
	if m == nil && daemon == nil {
		return fmt.Errorf("nothing is mounted on %s", path)
	}
	deadline := time.Now().Add(opts.timeout)
	if m != nil {
		if err := unmount(ctx, m, opts, deadline); err != nil {
			return err
		}
	}
	if daemon == nil {
		return aloneError(m)
	}
	if opts.force {
		return awaitForced(daemon, deadline)
	}
	return awaitWritten(daemon, deadline)
}

// aloneError is the error of a mount behind which there was no process that
// could be asked. That of a server, which mounts a directory, is none.
func aloneError(m *fusefs.MountPoint) error {
	if !strings.Contains(m.Source, ":/") {
		return nil
	}
	return codeError{exitLost, fmt.Errorf("unmounted %s, but the process behind it was gone already: what it had not written to %s is lost", m.Path, m.Source)}
}

// unmount takes the mount away.
func unmount(ctx context.Context, m *fusefs.MountPoint, opts *umountOptions, deadline time.Time) error {
	if opts.force {
		return m.Detach()
	}
	err := unmountInChild(ctx, m, deadline)
	return busyError(err, m.Path)
}

// busyError says who is in the way, if err is that somebody is.
func busyError(err error, path string) error {
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	return codeError{exitBusy, fmt.Errorf("%s is in use%s: end that first, or use --force, which gives them errors", path, usersOf(path))}
}

func unmountInChild(ctx context.Context, m *fusefs.MountPoint, deadline time.Time) error {
	c, err := startStep(ctx, stepUnmount, m.Path)
	if err != nil {
		return err
	}
	if !c.ended(deadline) {
		return fmt.Errorf("%s is still being unmounted: its server does not answer; it will be gone when the server is back, or use --force", m.Path)
	}
	return c.err()
}

// await waits until the process behind the mount has written everything, or
// given up.
func await(daemon *statusClient, deadline time.Time) error {
	for {
		rep, err := daemon.next(deadline)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errNotYet
		case err != nil:
			return codeError{exitLost, fmt.Errorf("unmounted, but process %d has ended without a word: up to %s are lost", daemon.pid, amount(daemon.left))}
		case rep.Lost != "":
			return codeError{exitLost, fmt.Errorf("unmounted, but data is lost: %s", rep.Lost)}
		case rep.Ended:
			return nil
		}
		progress(daemon.left, rep.Unwritten)
		daemon.left = rep.Unwritten
	}
}

// errNotYet is returned by await when its time is over.
var errNotYet = errors.New("not everything is written yet")

// awaitWritten is for umount without --force.
func awaitWritten(daemon *statusClient, deadline time.Time) error {
	err := await(daemon, deadline)
	if err == errNotYet {
		return codeError{exitLost, fmt.Errorf("unmounted, but %s are not written to the server yet: process %d goes on; run this again to wait, or with --force to give up",
			amount(daemon.left), daemon.pid)}
	}
	return err
}

// awaitForced gives the process behind the mount until deadline to write what
// it can, then tells it to give up, and kills it if it does not.
func awaitForced(daemon *statusClient, deadline time.Time) error {
	err := await(daemon, deadline)
	if err != errNotYet {
		return err
	}
	if daemon.tellGiveUp() == nil {
		if err := await(daemon, time.Now().Add(giveUpTime)); err != errNotYet {
			return err
		}
	}
	daemon.kill()
	return codeError{exitLost, fmt.Errorf("unmounted; process %d did not end and was killed: %s are lost", daemon.pid, amount(daemon.left))}
}

// giveUpTime is how long a process may take to give up.
const giveUpTime = 5 * time.Second

func amount(n int64) string {
	if n < 0 {
		return "an unknown number of bytes"
	}
	return formatSize(n)
}

// progress tells how much is left, on a terminal only.
func progress(before, now int64) {
	if now != before && now >= 0 && isTerminal(os.Stderr) {
		fmt.Fprintf(os.Stderr, "\r%s left to write\033[K", formatSize(now))
		if now == 0 {
			fmt.Fprint(os.Stderr, "\r\033[K")
		}
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
