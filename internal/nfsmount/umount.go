package nfsmount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// IsNFS reports whether e is a mount of the kernel's NFS client.
func (e *Entry) IsNFS() bool { return e.Type == "nfs" || e.Type == "nfs4" }

// mounted reports whether e is still the topmost mount at its path.
func (h *Host) mounted(e *Entry) bool {
	now, err := h.Find(e.Path)
	return err == nil && now != nil && now.ID == e.ID && now.Device == e.Device
}

// Unmount takes e away and returns when the server has everything. If it does not
// answer, that is never, and the process cannot be killed; but the mount is gone from
// the table. unix.EBUSY says that it is in use.
//
// umount(2) alone returns before that if pages were written through memory maps: each
// of them keeps the file system from ending (kernel: nfs_sb_active), and it ends,
// written, whenever the flusher is through.
func (h *Host) Unmount(e *Entry) error {
	hold, err := h.Kernel.Hold(e.Path)
	if err != nil {
		return h.unmountError(e, err)
	}
	defer hold.Close()
	if err := h.Kernel.Unmount(e.Path, unix.UMOUNT_NOFOLLOW); err != nil {
		return h.unmountError(e, err)
	}
	if err := hold.Sync(); err != nil {
		return fmt.Errorf("unmounted %s, but cannot tell whether everything is written: %w", e.Path, err)
	}
	return nil
}

// Sync writes everything of e to the server. If it does not answer, that may be never.
func (h *Host) Sync(e *Entry) error {
	hold, err := h.Kernel.Hold(e.Path)
	if err != nil {
		return err
	}
	defer hold.Close()
	return hold.Sync()
}

// Abort ends what waits for the server with an error, and takes the mount out of the
// way, in use or not. What others have mounted, too, it only takes out of the way. Like
// Unmount it may not return, if GiveUp could not do its part.
func (h *Host) Abort(e *Entry) error {
	err := h.elsewhere(e)
	if err == nil {
		err = h.Kernel.Unmount(e.Path, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	}
	if errors.Is(err, unix.EBUSY) || errors.Is(err, ErrShared) {
		err = h.Kernel.Unmount(e.Path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	return h.unmountError(e, err)
}

// unmountError says what to do; nothing, if somebody else was faster.
func (h *Host) unmountError(e *Entry, err error) error {
	switch {
	case err == nil, !h.mounted(e):
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("cannot unmount %s: %w: only root may: use sudo", e.Path, err)
	}
	return fmt.Errorf("cannot unmount %s: %w", e.Path, err)
}

// Reasons not to give up a mount.
var (
	ErrNoGiveUp = errors.New("this kernel cannot give up what is not written, which takes Linux 6.5")
	ErrShared   = errors.New("it is mounted")
)

// GiveUp ends all requests of what e mounts with an error, now and later (kernel: the
// attribute shutdown of nfs_sysfs). What was not written is lost. e may be unmounted.
func (h *Host) GiveUp(e *Entry) error {
	if err := h.elsewhere(e); err != nil {
		return err
	}
	err := writeAttribute(h.path("/sys/fs/nfs", e.Device, "shutdown"), "1")
	if errors.Is(err, os.ErrNotExist) {
		return ErrNoGiveUp
	}
	return err
}

// Unwritten returns how many bytes of the mount on device the server does not have on
// stable storage; -1 if nobody can tell.
func (h *Host) Unwritten(device string) int64 {
	text, err := h.Kernel.BDIStats(device)
	if err != nil {
		return -1
	}
	writeback, err1 := kilobytes(text, "BdiWriteback:")
	dirty, err2 := kilobytes(text, "BdiReclaimable:")
	if errors.Join(err1, err2) != nil {
		return -1
	}
	return (writeback + dirty) << 10
}

// kilobytes returns the value of a line "key: N kB".
func kilobytes(text []byte, key string) (int64, error) {
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) == 3 && string(f[0]) == key && string(f[2]) == "kB" {
			return strconv.ParseInt(string(f[1]), 10, 52)
		}
	}
	return 0, fmt.Errorf("no %s", key)
}
