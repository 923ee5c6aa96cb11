package main

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/vm/job"
)

const (
	stackDir   = "/stack"
	stackImage = mnt + "/image"
	stackSize  = 384 << 20
	nbdDevice  = "/dev/nbd0"
	nbdSocket  = "/run/nbd"
)

// stackOn puts a file system on a network block device, whose server keeps it in
// a file of the mount: each layer needs memory to clean the one above.
func stackOn(typ string) script {
	return script{
		prepare: func(*run) error {
			return errors.Join(os.MkdirAll(stackDir, 0o755), makeImage(), openStack(typ, true))
		},
		finish: func(*run) error { return closeStack() },
		reopen: func(*run) error { return openStack(typ, false) },
		close:  func(*run) error { return closeStack() },
	}
}

func makeImage() error {
	f, err := os.Create(stackImage)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(stackSize), f.Close())
}

// openStack attaches the device and mounts what is on it.
func openStack(typ string, fresh bool) error {
	// Its threads reserve more than a small machine has.
	if err := setSysctl(map[string]string{"vm/overcommit_memory": "1"}); err != nil {
		return err
	}
	// The disk of a file system is not for the OOM killer to take.
	if err := command("choom", "-n", "-1000", "--", "nbdkit", "--unix", nbdSocket, "file", stackImage); err != nil {
		return err
	}
	if err := command("nbd-client", "-unix", nbdSocket, nbdDevice, "-b", "4096", "-C", "1"); err != nil {
		return err
	}
	if fresh {
		opts := []string{"-q", nbdDevice}
		if typ == "ext4" {
			opts = []string{"-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", nbdDevice}
		}
		if err := command("mkfs."+typ, opts...); err != nil {
			return err
		}
	}
	return unix.Mount(nbdDevice, stackDir, typ, 0, "")
}

// closeStack takes it apart, in order.
func closeStack() error {
	err := errors.Join(unix.Unmount(stackDir, 0), command("nbd-client", "-d", nbdDevice), command("pkill", "-x", "nbdkit"), os.Remove(nbdSocket))
	for end := time.Now().Add(10 * time.Second); command("pgrep", "-x", "nbdkit") == nil && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// storePort is that of the upper store.
const storePort = "2050"

// stackOnStore puts a store of loopnfs on the mount, with a FUSE door of its own:
// its memory becomes clean through the mount below.
func stackOnStore() script {
	upper := &server{cfg: job.Server{Name: "loopnfs"}}
	open := func(*run) error {
		for _, dir := range []string{stackDir, mnt + "/upper"} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		err := upper.spawn(storePort, job.Dir+"/loopnfs", "serve", "--export", mnt+"/upper", "--fuse", stackDir,
			"--listen", "127.0.0.1:"+storePort, "--memory", "8MiB", "--state", srv+"/upper", "--squash", "none")
		return errors.Join(err, awaitMount(stackDir))
	}
	end := func(*run) error { return upper.terminate() }
	return script{prepare: open, finish: end, reopen: open, close: end}
}

// awaitMount waits until something is mounted at dir.
func awaitMount(dir string) error {
	for end := time.Now().Add(startLimit); ; time.Sleep(50 * time.Millisecond) {
		if err := command("mountpoint", "-q", dir); err == nil || time.Now().After(end) {
			return err
		}
	}
}
