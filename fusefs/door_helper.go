package fusefs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// helperIdle is how long a helper that is not needed stays.
	helperIdle = 10 * time.Second
	// helperLimit is how long it may take before it is killed.
	helperLimit = 10 * time.Second
	// helperPause is the time between two calls.
	helperPause = time.Second / 2
)

// errCannotDrop is for a door that has no helper.
var errCannotDrop = errors.New("this takes Linux 6.18, or root and Linux 5.2")

// helper is another process, which has the kernel drop what it does not use of a mount.
// The call may wait for requests that only this process serves. A thread of this process
// that did would keep the connection open when it is killed, and everybody would wait for
// ever.
//
// The process is started when it is needed and stays for a while. To start one takes
// memory, and a processor of Go's runtime until it runs (vfork).
type helper struct {
	door    *Door
	in      io.WriteCloser // of the process; nil if there is none
	cmd     *exec.Cmd
	answers chan syscall.Errno // closed when the process is gone
	last    time.Time          // when it was asked
	told    bool               // somebody knows that it is not possible
	never   bool               // and will not be
}

// drop drops what it can, and reports whether something was done. It waits for the process
// at most helperLimit.
func (h *helper) drop() bool {
	if h.never || !h.pause(helperPause-time.Since(h.last)) {
		return false
	}
	err := h.call()
	h.last = time.Now()
	if err == nil {
		return true
	}
	h.door.cfg.Logger.Debug("fuse: the kernel could not be asked to forget files", "error", err)
	switch {
	case errors.Is(err, errNotNow), errors.Is(err, unix.ENODEV): // it is out of the mount table
	case errors.Is(err, errCannotDrop), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		h.never = true
		h.stop()
		fallthrough
	default:
		h.warn(err)
	}
	return false
}

// errNotNow is the error of a try that another one follows.
var errNotNow = errors.New("not now")

// warn says once what it costs that the kernel drops nothing.
func (h *helper) warn(err error) {
	if h.told {
		return
	}
	h.told = true
	h.door.cfg.Logger.Warn("fuse: the kernel cannot be made to forget files that nobody uses", "error", err,
		"mountpoint", h.door.Mountpoint(), "costs", "about 1.2 KB of memory for each file that it remembers",
		"remedy", "use Linux 6.18 or newer, or mount as root of the host; until then echo 2 > /proc/sys/vm/drop_caches helps")
}

func (h *helper) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-h.door.conn.over:
		return false
	}
}

func (h *helper) call() error {
	if err := h.start(); err != nil {
		return err
	}
	if _, err := h.in.Write([]byte{'\n'}); err != nil {
		h.stop()
		return fmt.Errorf("%w: %w", errNotNow, err)
	}
	select {
	case errno, ok := <-h.answers:
		switch {
		case !ok:
			h.in, h.cmd = nil, nil
			return fmt.Errorf("%w: the helper has ended", errNotNow)
		case errno != 0:
			return errno
		}
		return nil
	case <-time.After(helperLimit):
		h.stop()
		return fmt.Errorf("%w: it takes longer than %v", errNotNow, helperLimit)
	case <-h.door.conn.over:
		return fmt.Errorf("%w: the mount has ended", errNotNow)
	}
}

// start starts the process if there is none. One that was stopped has to be gone before.
func (h *helper) start() error {
	if h.in != nil {
		return nil
	}
	if h.answers != nil {
		select {
		case _, ok := <-h.answers:
			if ok {
				return errNotNow
			}
		default:
			return errNotNow
		}
	}
	if h.door.cfg.Dropper == nil {
		return errCannotDrop
	}
	cmd, err := h.door.cfg.Dropper(h.door.Mountpoint(), h.door.ConnectionID())
	if err != nil {
		return fmt.Errorf("%w: %w", errNotNow, err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", errNotNow, err)
	}
	h.in, h.cmd, h.answers = in, cmd, make(chan syscall.Errno, 1)
	go listenTo(cmd, out, h.answers)
	return nil
}

// listenTo passes on what a helper answers until it is gone.
func listenTo(cmd *exec.Cmd, out io.Reader, answers chan<- syscall.Errno) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var n int
		fmt.Sscan(lines.Text(), &n)
		select {
		case answers <- syscall.Errno(n):
		default: // nobody waits for it any more
		}
	}
	_ = cmd.Wait()
	close(answers)
}

// stop ends the process, if there is one. It may be in the kernel for as long as a request
// takes; nobody waits for that.
func (h *helper) stop() {
	if h.in == nil {
		return
	}
	h.in.Close()
	_ = h.cmd.Process.Kill()
	h.in, h.cmd = nil, nil
}

// ServeDrops is what the command of DoorConfig.Dropper does: for each line of in it has the
// kernel drop what it does not use of the mount, and answers with a line, an error number or
// 0. It returns when in ends. It must be called in a process of its own.
func ServeDrops(mountpoint string, id int, in io.Reader, out io.Writer) error {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var errno syscall.Errno
		if err := dropUnused(mountpoint, id); err != nil && !errors.As(err, &errno) {
			errno = unix.EIO
		}
		if _, err := fmt.Fprintln(out, int(errno)); err != nil {
			return err
		}
	}
	return nil
}

// dropUnused drops the dentries of a mount that nobody uses, and with them the inodes: to
// configure it anew, though with nothing that is new, does that. Unlike what the device
// offers it leaves alone what is in use. It first writes what was changed through memory
// maps.
func dropUnused(mountpoint string, id int) error {
	m, err := FindMount(mountpoint)
	if err != nil {
		return err
	}
	if m == nil || m.ID != id {
		return unix.ENODEV
	}
	fd, err := unix.Fspick(unix.AT_FDCWD, mountpoint, unix.FSPICK_CLOEXEC|unix.FSPICK_NO_AUTOMOUNT|unix.FSPICK_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FsconfigReconfigure(fd)
}
