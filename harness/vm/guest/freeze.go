package main

import (
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

const (
	heldFile = mnt + "/held"
	heldMiB  = 16
	// frozenFor is how long the exported file system stays frozen.
	frozenFor = 5 * time.Second
)

// freeze freezes the exported file system under dirty pages of its loop-back
// mount: first in the wrong order, then in the right one.
func (r *run) freeze() error {
	<-r.worker.done
	holder, err := dirtyFile()
	if err != nil {
		return err
	}
	defer holder.Process.Kill()
	if err := r.freezeWrong(); err != nil {
		return err
	}
	if err := redirty(); err != nil {
		return err
	}
	return r.freezeRight()
}

// dirtyFile leaves a process that holds a file open with dirty pages: to close
// it would flush.
func dirtyFile() (*exec.Cmd, error) {
	cmd := plain("sh", "-c", fmt.Sprintf("exec 3>%s; sleep 10000", heldFile))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := await(heldFile, 10*time.Second); err != nil {
		return nil, err
	}
	return cmd, redirty()
}

// redirty writes to the held file through another open of it, in another
// process, which is stopped before it closes.
func redirty() error {
	cmd := plain("sh", "-c", fmt.Sprintf("dd if=/dev/urandom of=%s bs=1M count=%d conv=notrunc 2>/dev/null; kill -STOP $$", heldFile, heldMiB))
	return cmd.Run()
}

func (r *run) freezeWrong() error {
	sayf("freezing in the wrong order")
	if err := command("fsfreeze", "-f", srv); err != nil {
		return err
	}
	synced := make(chan error, 1)
	go func() { synced <- command("sync", "-f", mnt) }()
	pinned := int64(0)
	select {
	case err := <-synced:
		r.note("freeze, then sync of the mount: ended although the file system was frozen (%v)", err)
	case <-time.After(frozenFor):
		m := r.mem.read()
		pinned = (m.dirty + m.writeback) >> 10
		r.note("freeze, then sync of the mount: %d MiB of dirty pages stood still until thaw", pinned)
	}
	if err := command("fsfreeze", "-u", srv); err != nil {
		return err
	}
	return within("the sync after the thaw", func() error {
		if pinned == 0 {
			return nil
		}
		return <-synced
	})
}

func (r *run) freezeRight() error {
	sayf("freezing in the right order")
	if err := within("sync of the mount", func() error { return command("sync", "-f", mnt) }); err != nil {
		return err
	}
	if err := command("fsfreeze", "-f", srv); err != nil {
		return err
	}
	began := time.Now()
	err := within("sync of the mount of a frozen file system", func() error { return command("sync", "-f", mnt) })
	took := time.Since(began)
	if err := command("fsfreeze", "-u", srv); err != nil {
		return err
	}
	r.note("sync of the mount, then freeze: nothing was left to write, a second sync took %.1f s", took.Seconds())
	if err == nil && took > frozenFor {
		err = fmt.Errorf("sync, then freeze: the mount still had dirty pages for %v", took)
	}
	unix.Sync()
	return err
}
