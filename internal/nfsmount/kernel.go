package nfsmount

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel makes mounts. Linux is the one there is; tests have others.
type Kernel interface {
	// Probe reports why a mount cannot be made here at all (Unavailable), nil if
	// it can. It loads the module of the NFS client if there is one.
	Probe() error
	// Create makes a mount that is nowhere yet; attrs are MOUNT_ATTR_*.
	Create(params []Param, attrs int) (Detached, error)
	// Stat looks at a path of this host.
	Stat(path string) (Stat, error)
	// Hold returns another mount of the file system on path, which is nowhere
	// and not in the way of an Unmount. It asks no server.
	Hold(path string) (Held, error)
	// Unmount is umount2(2).
	Unmount(path string, flags int) error
	// BDIStats is the file bdi/DEVICE/stats of debugfs.
	BDIStats(device string) ([]byte, error)
}

// Held keeps a file system from ending with its last mount, until Close.
type Held interface {
	// Sync returns when everything that was written is with the server.
	Sync() error
	Close() error
}

// Detached is a mount that is nowhere yet. Close ends it, unless it was attached.
type Detached interface {
	// Stat asks the server for the attributes of the root.
	Stat() (Stat, error)
	Attach(path string) error
	Close() error
}

// Stat is what tells one directory from another, and the device it is on.
type Stat struct {
	Device  string // MAJOR:MINOR, as in /sys/class/bdi
	Ino     uint64
	IsDir   bool
	Changed unix.StatxTimestamp // ctime
}

// Unavailable says why the kernel's client cannot be used at all.
type Unavailable struct{ Why, Remedy string }

func (e *Unavailable) Error() string { return e.Why + ": " + e.Remedy }

// Linux is the Kernel that this program runs on.
type Linux struct{}

// Probe implements Kernel: fsopen(2) loads the module.
func (Linux) Probe() error {
	fs, err := fsopen()
	if err == nil {
		unix.Close(fs)
	}
	return err
}

func fsopen() (int, error) {
	fs, err := unix.Fsopen("nfs", unix.FSOPEN_CLOEXEC)
	switch err {
	case nil:
		return fs, nil
	case unix.ENODEV:
		return -1, &Unavailable{"this kernel has no NFS client", "install the module nfs (Ubuntu: linux-modules-extra), or use --via fuse"}
	case unix.EPERM:
		return -1, &Unavailable{"only root may use the kernel's NFS client (CAP_SYS_ADMIN is missing)", "use sudo, or --via fuse"}
	case unix.ENOSYS:
		return -1, &Unavailable{"this kernel is older than Linux 5.2 and cannot mount in steps", "use mount -t nfs, or --via fuse"}
	}
	return -1, fmt.Errorf("fsopen: %w", err)
}

// Create implements Kernel. It returns when the server has answered; until then
// only a signal that kills ends it.
func (Linux) Create(params []Param, attrs int) (Detached, error) {
	fs, err := fsopen()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	for _, p := range params {
		if p.Value == "" {
			err = unix.FsconfigSetFlag(fs, p.Key)
		} else {
			err = unix.FsconfigSetString(fs, p.Key, p.Value)
		}
		if err != nil {
			return nil, fmt.Errorf("the kernel does not take the option %s: %w%s", p, err, messages(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("%w%s", explain(err), messages(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return detached(fd), nil
}

func (p Param) String() string {
	if p.Value == "" {
		return p.Key
	}
	return p.Key + "=" + p.Value
}

// explained are the errors of a mount in words.
var explained = map[error]string{
	unix.ENOENT:          "the server exports nothing by this name",
	unix.EACCES:          "the server does not let this client in",
	unix.EPERM:           "the server does not let this client in",
	unix.ECONNREFUSED:    "nobody listens there for NFS or MOUNT: give their ports with -o port=N,mountport=N",
	unix.EPROTONOSUPPORT: "NFSv3 is not spoken by the server, or by this kernel (module nfsv3)",
	unix.ETIMEDOUT:       "the server does not answer",
}

// explain puts err into words, but leaves it what it is.
func explain(err error) error {
	if text, ok := explained[err]; ok {
		return fmt.Errorf("%s: %w", text, err)
	}
	return err
}

// messages returns what the kernel has to say about the last error (kernel:
// fs_context logs, one message per read, with a letter in front).
func messages(fs int) string {
	var all strings.Builder
	for range 8 { // it keeps so many
		var buf [256]byte
		n, err := unix.Read(fs, buf[:])
		if err != nil || n < 3 {
			break
		}
		all.WriteString(": " + strings.TrimSpace(string(buf[2:n])))
	}
	return all.String()
}

// Stat implements Kernel. It asks no server: the path may be in a dead mount.
func (Linux) Stat(path string) (Stat, error) {
	return statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT)
}

func statx(fd int, path string, flags int) (Stat, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, path, flags, unix.STATX_BASIC_STATS, &st); err != nil {
		return Stat{}, err
	}
	return Stat{
		Device: fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor),
		Ino:    st.Ino, IsDir: st.Mode&unix.S_IFMT == unix.S_IFDIR, Changed: st.Ctime,
	}, nil
}

// detached is the descriptor of fsmount(2).
type detached int

func (d detached) Stat() (Stat, error) {
	return statx(int(d), "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC)
}

func (d detached) Attach(path string) error {
	return unix.MoveMount(int(d), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (d detached) Close() error { return unix.Close(int(d)) }

// Hold implements Kernel.
func (Linux) Hold(path string) (Held, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	return held(fd), nil
}

// held is the descriptor of open_tree(2).
type held int

// Sync implements Held by a remount that changes nothing, which writes everything
// first (kernel: nfs_reconfigure). Opening the directory for syncfs(2) would ask the
// server whether we may, although there may be nothing to write.
func (h held) Sync() error {
	fs, err := unix.Fspick(int(h), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fspick: %w", err)
	}
	defer unix.Close(fs)
	return unix.FsconfigReconfigure(fs)
}

func (h held) Close() error { return unix.Close(int(h)) }

// Unmount implements Kernel.
func (Linux) Unmount(path string, flags int) error { return unix.Unmount(path, flags) }

// BDIStats implements Kernel. debugfs need not be mounted.
func (Linux) BDIStats(device string) ([]byte, error) {
	fs, err := unix.Fsopen("debugfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("debugfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("debugfs: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("debugfs: %w", err)
	}
	defer unix.Close(mnt)
	fd, err := unix.Openat(mnt, "bdi/"+device+"/stats", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("debugfs: %w", err)
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	return buf[:max(n, 0)], err
}
