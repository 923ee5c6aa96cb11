package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"loopnfs/internal/nfsmount"
)

// unmountKernel takes a mount of the kernel's client away.
func unmountKernel(ctx context.Context, host *nfsmount.Host, k *nfsmount.Entry, opts *umountOptions) error {
	deadline := time.Now().Add(opts.timeout)
	if opts.force {
		return forceKernel(ctx, host, k, deadline)
	}
	s, err := startStep(ctx, stepUnmount, k.Path)
	if err != nil {
		return err
	}
	if s.endedShowing(unwrittenOf(host, k), deadline) {
		return busyError(s.err(), k.Path)
	}
	if stillThere(host, k) {
		return fmt.Errorf("%s is still being unmounted by process %d: use --force", k.Path, s.cmd.Process.Pid)
	}
	return codeError{exitLost, fmt.Errorf("unmounted, but %s are not written to the server yet: process %d goes on; run this again to wait, or with --force to give up",
		amount(host.Unwritten(k.Device)), s.cmd.Process.Pid)}
}

func unwrittenOf(host *nfsmount.Host, k *nfsmount.Entry) func() int64 {
	return func() int64 { return host.Unwritten(k.Device) }
}

// stillThere reports whether k is in the mount table.
func stillThere(host *nfsmount.Host, k *nfsmount.Entry) bool {
	now, err := host.Find(k.Path)
	return err != nil || now != nil && now.ID == k.ID && now.Device == k.Device
}

// forceKernel writes what can be written by deadline and gives the rest up. Each
// step that may wait for the server is a process that can be left behind.
func forceKernel(ctx context.Context, host *nfsmount.Host, k *nfsmount.Entry, deadline time.Time) error {
	written, err := startStep(ctx, stepSync, k.Path)
	if err != nil {
		return err
	}
	complete := written.endedShowing(unwrittenOf(host, k), deadline) && written.err() == nil
	lost := amount(host.Unwritten(k.Device))
	gaveUp := host.GiveUp(k)
	s, err := startStep(ctx, stepAbort, k.Path)
	if err != nil {
		return err
	}
	ended := s.ended(time.Now().Add(giveUpTime))
	switch {
	case ended && s.err() != nil:
		return s.err()
	case stillThere(host, k):
		return fmt.Errorf("%s cannot be unmounted: process %d is still trying", k.Path, s.cmd.Process.Pid)
	case complete:
		return nil
	case errors.Is(gaveUp, nfsmount.ErrNoGiveUp), errors.Is(gaveUp, nfsmount.ErrShared):
		return codeError{exitLost, fmt.Errorf("unmounted, but up to %s are not written to %s: %w; it goes on until the server is back", lost, k.Source, gaveUp)}
	}
	return codeError{exitLost, fmt.Errorf("unmounted; %s did not answer in time, and what was not written to it is lost: %s", k.Source, lost)}
}
