package main

import (
	"errors"
	"os"
	"strconv"
)

const (
	swapFile = mnt + "/swap"
	swapMiB  = 192
)

// swapOnMount puts the swap space of the guest on the mount.
func (r *run) swapOnMount() error {
	if err := command("dd", "if=/dev/zero", "of="+swapFile, "bs=1M", "count="+strconv.Itoa(swapMiB), "conv=fsync"); err != nil {
		return err
	}
	if err := os.Chmod(swapFile, 0o600); err != nil {
		return err
	}
	if err := command("mkswap", swapFile); err != nil {
		return err
	}
	return command("swapon", swapFile)
}

// swapOff brings everything back and notes how much went out.
func (r *run) swapOff() error {
	t := r.stat.p.read()
	out, in := field(t, "pswpout "), field(t, "pswpin ")
	if out == 0 {
		return errors.New("nothing was swapped out: the drill shows nothing")
	}
	r.note("%d pages were swapped out, %d came back", out, in)
	return errors.Join(command("swapoff", swapFile), os.Remove(swapFile))
}
