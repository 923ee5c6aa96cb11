package fusefs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MountPoint is a FUSE mount as the mount table has it. None of its methods
// looks at the mounted file system, which may be dead.
type MountPoint struct {
	Path   string // absolute
	Source string // FsName
	Type   string // "fuse.loopnfs"
	ID     int    // minor device number, the number of the connection
	Owner  int    // the user who has mounted it
}

// FindMount returns what is mounted on path, an absolute path without symbolic
// links; the topmost if there are several, nil if there is nothing.
func FindMount(path string) (*MountPoint, error) {
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	m := all[len(all)-1]
	return &MountPoint{Path: m.Mountpoint, Source: m.Source, Type: m.FSType, ID: m.Minor, Owner: ownerOf(m.VFSOptions)}, nil
}

// ownerOf returns the user in the options of a FUSE mount; 0 if there is none.
func ownerOf(options string) int {
	for opt := range strings.SplitSeq(options, ",") {
		if id, ok := strings.CutPrefix(opt, "user_id="); ok {
			n, _ := strconv.Atoi(id)
			return n
		}
	}
	return 0
}

// maxLinks is how many symbolic links a path may have, as in the kernel.
const maxLinks = 40

// RealMountpoint follows the symbolic links of path, an absolute one, up to where
// something is mounted, which is not looked at: it may be dead. What it cannot follow
// stays as it is.
func RealMountpoint(path string) (string, error) {
	for range maxLinks {
		if m, err := FindMount(path); m != nil || err != nil {
			return path, err
		}
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return path, nil
		}
		path = filepath.Join(dir, filepath.Base(path))
		if m, err := FindMount(path); m != nil || err != nil {
			return path, err
		}
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(dir, to)
		}
		path = filepath.Clean(to)
	}
	return path, nil
}

// device is one connection to the kernel's FUSE, and where it is mounted. The
// door mounts by itself, so that nothing here ever looks at a path inside the mount.
type device struct {
	MountPoint
	serveFD int // the connection's (doorConn)

	mu      sync.Mutex
	watchFD int  // the same device, to ask whether it is still connected
	gone    bool // it is not: the number may be that of another file
}

func newDevice(cfg *DoorConfig) (*device, error) {
	path, err := filepath.Abs(cfg.Mountpoint)
	if err != nil {
		return nil, fmt.Errorf("mount point %s: %w", cfg.Mountpoint, err)
	}
	if path, err = RealMountpoint(path); err != nil {
		return nil, err
	}
	if err := clearDead(path, cfg); err != nil {
		return nil, err
	}
	if err := checkMountpoint(path); err != nil {
		return nil, err
	}
	d := &device{watchFD: -1}
	if d.serveFD, err = attach(path, cfg); err != nil {
		return nil, err
	}
	if err := d.identify(path); err != nil {
		unix.Close(d.serveFD) // which ends the connection
		_ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		return nil, err
	}
	return d, nil
}

// identify finds the mount in the mount table and duplicates the descriptor.
func (d *device) identify(path string) error {
	m, err := FindMount(path)
	if err == nil && m == nil {
		err = errors.New("it is not in the mount table")
	}
	if err == nil {
		d.MountPoint = *m
		d.watchFD, err = unix.FcntlInt(uintptr(d.serveFD), unix.F_DUPFD_CLOEXEC, 3)
	}
	if err != nil {
		return fmt.Errorf("mounted %s, but cannot use it: %w", path, err)
	}
	return nil
}

// clearDead takes away what a process that was killed has left at the mount point:
// a mount of the same thing, whose connection is gone.
func clearDead(path string, cfg *DoorConfig) error {
	m, err := FindMount(path)
	if err != nil || m == nil || m.Type != "fuse."+cfg.Type || m.Source != cfg.FsName || !m.dead() {
		return err
	}
	return m.Detach()
}

// deadLimit is how long a mount has to say that its process is gone; a living one
// may hang.
const deadLimit = time.Second

func (m *MountPoint) dead() bool {
	said := make(chan error, 1)
	go func() {
		var st unix.Statfs_t // nothing of it is cached
		said <- unix.Statfs(m.Path, &st)
	}()
	select {
	case err := <-said:
		return err == unix.ENOTCONN
	case <-time.After(deadLimit):
		return false
	}
}

// checkMountpoint checks that path is that of a directory where nothing is mounted.
func checkMountpoint(path string) error {
	if err := notMounted(path); err != nil {
		return err
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount point %s does not exist: create it with mkdir -p %s", path, path)
	case err != nil:
		return fmt.Errorf("mount point %s: %w", path, err)
	case !st.IsDir():
		return fmt.Errorf("mount point %s is not a directory: name an existing directory", path)
	}
	return nil
}

func notMounted(abs string) error {
	m, err := FindMount(abs)
	if err != nil {
		return err
	}
	if m != nil {
		return fmt.Errorf("mount point %s is in use: %s (%s) is mounted there; unmount it first or name another directory",
			abs, m.Source, m.Type)
	}
	return nil
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
func (d *device) setReadAhead(bytes int) error {
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", d.ID)
	return os.WriteFile(path, fmt.Appendf(nil, "%d", bytes>>10), 0)
}

// disconnected reports whether the kernel has given up the connection.
func (d *device) disconnected() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(d.watchFD)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// close ends the watch over the connection.
func (d *device) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.watchFD >= 0 {
		unix.Close(d.watchFD)
	}
	d.watchFD, d.gone = -1, true
}

// mounted reports whether m is still the topmost mount at its path.
func (m *MountPoint) mounted() bool {
	now, err := FindMount(m.Path)
	return err == nil && now != nil && now.ID == m.ID && now.Type == m.Type
}

// Unmount is umount(2), or fusermount3 for those who may not. It does nothing if
// m is no longer mounted.
func (m *MountPoint) Unmount() error {
	if !m.mounted() {
		return nil
	}
	err := unix.Unmount(m.Path, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.EINVAL) && !m.mounted(): // somebody else was faster
		return nil
	case errors.Is(err, unix.EPERM):
		return fusermountU(m.Path)
	}
	return fmt.Errorf("cannot unmount %s: %w", m.Path, err)
}

func fusermountU(path string) error {
	out, err := exec.Command("fusermount3", "-u", "--", path).CombinedOutput()
	switch text := strings.TrimSpace(string(out)); {
	case err == nil, errors.Is(err, exec.ErrNotFound):
		return err
	case strings.Contains(text, "busy"):
		return fmt.Errorf("cannot unmount %s: %w", path, unix.EBUSY)
	default:
		return fmt.Errorf("cannot unmount %s: %w: %s", path, err, text)
	}
}

// abort ends the connection, wherever it is mounted: by fusectl where the system has it
// mounted, which those may use who are not root; else by a mount of it that has no place.
func (m *MountPoint) abort() {
	if os.WriteFile("/sys/fs/fuse/connections/"+m.abortFile(), []byte("1"), 0) != nil {
		_ = m.abortByOwn()
	}
}

func (m *MountPoint) abortFile() string { return fmt.Sprintf("%d/abort", m.ID) }

// abortByOwn is abort with a fusectl that is mounted nowhere.
func (m *MountPoint) abortByOwn() error {
	control, err := fusectl()
	if err != nil {
		return err
	}
	defer unix.Close(control)
	fd, err := unix.Openat(control, m.abortFile(), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("1"))
	return err
}

// fusectl returns the root of a fusectl that is mounted nowhere; the caller closes it.
func fusectl() (fd int, err error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// Detach ends the connection, so that everybody who waits for it gets an error,
// and takes the mount out of the way. It waits for nobody.
func (m *MountPoint) Detach() error {
	if !m.mounted() {
		return nil // and its number may be that of another mount by now
	}
	m.abort()
	// This aborts the connection too, even if it fails with EBUSY.
	_ = unix.Unmount(m.Path, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if !m.mounted() {
		return nil
	}
	err := unix.Unmount(m.Path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		err = exec.Command("fusermount3", "-u", "-z", "--", m.Path).Run()
	}
	if err != nil && m.mounted() {
		return fmt.Errorf("cannot detach %s: %w", m.Path, err)
	}
	return nil
}
