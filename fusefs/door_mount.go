package fusefs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mount is one connection to the kernel's FUSE, and where it is mounted. The
// door mounts by itself and hands go-fuse the finished device, so that nothing
// here ever looks at a path inside the mount.
type mount struct {
	path    string
	id      int // minor device number, the number of the connection
	serveFD int // go-fuse's
	watchFD int // ours: the same device, to ask whether it is still connected
	logger  interface{ Debug(string, ...any) }
}

func newMount(cfg *DoorConfig) (mount, error) {
	m := mount{logger: cfg.Logger, watchFD: -1}
	var err error
	if m.path, err = checkMountpoint(cfg.Mountpoint); err != nil {
		return m, err
	}
	if m.serveFD, err = attach(m.path, cfg); err != nil {
		return m, err
	}
	if err := m.identify(); err != nil {
		unix.Close(m.serveFD) // which ends the connection
		_ = unix.Unmount(m.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		return m, err
	}
	return m, nil
}

// identify finds the device number of the mount and duplicates its descriptor.
func (m *mount) identify() error {
	info, err := lastMount(m.path)
	if err == nil && info == nil {
		err = errors.New("it is not in /proc/self/mountinfo")
	}
	if err == nil {
		m.id = info.Minor
		m.watchFD, err = unix.FcntlInt(uintptr(m.serveFD), unix.F_DUPFD_CLOEXEC, 3)
	}
	if err != nil {
		return fmt.Errorf("mounted %s, but cannot use it: %w", m.path, err)
	}
	return nil
}

// checkMountpoint returns the real path of a directory where nothing is mounted.
// A mount point is recognised without touching it: it may be a dead one.
func checkMountpoint(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", path, err)
	}
	if err := notMounted(abs); err != nil {
		return "", err
	}
	st, err := os.Stat(abs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("mount point %s does not exist: create it with mkdir -p %s", abs, abs)
	case err != nil:
		return "", fmt.Errorf("mount point %s: %w", abs, err)
	case !st.IsDir():
		return "", fmt.Errorf("mount point %s is not a directory: name an existing directory", abs)
	}
	abs, err = filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", path, err)
	}
	return abs, notMounted(abs)
}

func notMounted(abs string) error {
	info, err := lastMount(abs)
	if err != nil {
		return err
	}
	if info != nil {
		return fmt.Errorf("mount point %s is in use: %s (%s) is mounted there; unmount it first or name another directory",
			abs, info.Source, info.FSType)
	}
	return nil
}

// lastMount returns what is mounted on path, the topmost, or nil.
func lastMount(path string) (*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	var last *mountinfo.Info
	for _, m := range all {
		if m.Mountpoint == path {
			last = m
		}
	}
	return last, nil
}

// attach opens the FUSE device and mounts it on path, as root by itself,
// otherwise with fusermount3.
func attach(path string, cfg *DoorConfig) (fd int, err error) {
	if os.Geteuid() != 0 {
		return fusermount(path, cfg)
	}
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return -1, fmt.Errorf("cannot open /dev/fuse: %w: this kernel has no FUSE; load it with modprobe fuse, or give the container the device", err)
	}
	if err != nil {
		return -1, fmt.Errorf("cannot open /dev/fuse: %w: this process may not use it; in a container, allow the device", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,max_read=%d",
		fd, os.Geteuid(), os.Getegid(), cfg.MaxWrite)
	if cfg.AllowOther {
		data += ",allow_other"
	}
	err = unix.Mount(cfg.FsName, path, "fuse."+cfg.Type, unix.MS_NOSUID|unix.MS_NODEV, data)
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EPERM) {
		if fd, err2 := fusermount(path, cfg); err2 == nil {
			return fd, nil
		}
		return -1, fmt.Errorf("cannot mount %s: %w: this process may not mount (CAP_SYS_ADMIN is missing)", path, err)
	}
	return -1, fmt.Errorf("cannot mount %s: %w", path, err)
}

// fusermount asks the set-user-id helper to mount; it sends the device back.
func fusermount(path string, cfg *DoorConfig) (fd int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("cannot talk to fusermount3: %w", err)
	}
	defer unix.Close(pair[0])
	remote := os.NewFile(uintptr(pair[1]), "fusermount3")
	var out strings.Builder
	opts := fmt.Sprintf("fsname=%s,subtype=%s,max_read=%d,nosuid,nodev", escapeOption(cfg.FsName), cfg.Type, cfg.MaxWrite)
	if cfg.AllowOther {
		opts += ",allow_other"
	}
	cmd := exec.Command("fusermount3", "-o", opts, "--", path)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{remote}
	cmd.Stderr = &out
	err = cmd.Run()
	remote.Close()
	if errors.Is(err, exec.ErrNotFound) {
		return -1, errors.New("only root can mount without fusermount3: install the package fuse3, or run this as root")
	}
	if err != nil {
		return -1, fmt.Errorf("cannot mount %s: %s", path, strings.TrimSpace(out.String()))
	}
	return receiveFD(pair[0])
}

func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}

func receiveFD(sock int) (int, error) {
	var data [4]byte
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, data[:], control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fusermount3 did not send the device: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("fusermount3 did not send the device (%d messages): %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("fusermount3 sent %d devices: %w", len(fds), err)
	}
	return fds[0], nil
}

// setReadAhead raises the kernel's read-ahead, which FUSE itself can only lower.
// Only root may.
func (m *mount) setReadAhead(bytes int) {
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", m.id)
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d", bytes>>10), 0); err != nil {
		m.logger.Debug("fuse: read-ahead stays as it is", "error", err)
	}
}

// disconnected reports whether the kernel has given up the connection.
func (m *mount) disconnected() bool {
	fds := []unix.PollFd{{Fd: int32(m.watchFD)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// unmount is umount(2), or fusermount3 for those who may not.
func (m *mount) unmount() error {
	if !m.mounted() {
		return nil
	}
	err := unix.Unmount(m.path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		out, err := exec.Command("fusermount3", "-u", "--", m.path).CombinedOutput()
		if err != nil {
			return fmt.Errorf("cannot unmount %s: %s", m.path, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot unmount %s: %w", m.path, err)
	}
	return nil
}

// mounted reports whether our mount is the topmost at its path.
func (m *mount) mounted() bool {
	info, err := lastMount(m.path)
	return err == nil && info != nil && info.Major == 0 && info.Minor == m.id
}

// detach ends the connection and takes the mount out of the way. It never
// waits for anybody.
func (m *mount) detach() {
	abort := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", m.id)
	_ = os.WriteFile(abort, []byte("1"), 0) // fusectl need not be mounted
	if !m.mounted() {
		return
	}
	_ = unix.Unmount(m.path, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW) // aborts, even if it fails with EBUSY
	if err := unix.Unmount(m.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); errors.Is(err, unix.EPERM) {
		_ = exec.Command("fusermount3", "-u", "-z", "--", m.path).Run()
	}
}

func (m *mount) close() {
	if m.watchFD >= 0 {
		unix.Close(m.watchFD)
	}
}
