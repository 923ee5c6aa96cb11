package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

const (
	heldFile = mnt + "/held"
	heldMiB  = 8
	// frozenFor is how long the exported file system stays frozen.
	frozenFor = 5 * time.Second
)

// lazyLimits let heldMiB stay dirty until somebody wants them written.
var lazyLimits = map[string]string{"vm/dirty_bytes": "67108864", "vm/dirty_background_bytes": "50331648"}

// freeze freezes the exported file system under dirty pages of its loop-back
// mount: first in the wrong order, then in the right one.
func (r *run) freeze() error {
	<-r.worker.done
	if err := setSysctl(lazyLimits); err != nil {
		return err
	}
	h, err := startHolder()
	if err != nil {
		return err
	}
	for _, order := range []func(*holder) error{r.freezeWrong, r.freezeRight} {
		if err := within("dirtying", h.dirty); err != nil {
			return err
		}
		if err := order(h); err != nil {
			return err
		}
	}
	return within("closing the file that was dirty", h.end)
}

// holder is a process that holds a file of the mount open and makes it dirty: a
// close would write it, also that of a child which inherited it.
type holder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startHolder() (*holder, error) {
	h := &holder{cmd: plain(hogName, "hold", heldFile)}
	in, inErr := h.cmd.StdinPipe()
	out, outErr := h.cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr); err != nil {
		return nil, err
	}
	h.in, h.out = in, bufio.NewReader(out)
	return h, h.cmd.Start()
}

// dirty has the holder write, and waits until it has.
func (h *holder) dirty() error { return errors.Join(h.begin(), h.await()) }

func (h *holder) begin() error {
	_, err := fmt.Fprintln(h.in)
	return err
}

func (h *holder) await() error {
	_, err := h.out.ReadString('\n')
	return err
}

func (h *holder) end() error {
	return errors.Join(h.in.Close(), h.cmd.Wait())
}

// hold is the process: it leaves heldMiB of path to the page cache for each line
// that it is given.
func hold(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := bytes.Repeat([]byte("dirty!!!"), 1<<20/8)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for i := range heldMiB {
			if _, err := f.WriteAt(block, int64(i)<<20); err != nil {
				return err
			}
		}
		fmt.Println("dirty")
	}
	return nil
}

func (r *run) freezeWrong(h *holder) error {
	sayf("freezing in the wrong order")
	if err := command("fsfreeze", "-f", srv); err != nil {
		return err
	}
	// What was dirty may have been written for its memory meanwhile.
	if err := h.begin(); err != nil {
		return err
	}
	synced := make(chan error, 1)
	go func() { synced <- command("sync", "-f", mnt) }()
	select {
	case err := <-synced:
		return fmt.Errorf("sync of the mount ended although what it had to write to was frozen (%v): the drill shows nothing", err)
	case <-time.After(frozenFor):
	}
	m := r.mem.read()
	r.note("freeze, then sync of the mount: %.1f MiB of dirty pages stood still until the thaw", float64(m.dirty+m.writeback)/1024)
	if err := command("fsfreeze", "-u", srv); err != nil {
		return err
	}
	return errors.Join(within("the sync after the thaw", func() error { return <-synced }), within("the write after the thaw", h.await))
}

func (r *run) freezeRight(*holder) error {
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
