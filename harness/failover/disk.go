package failover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is what both nodes have: a loop device over a file without a name. It goes with
// this process and the last mount, however they end.
type disk struct {
	path string
	f    *os.File // of the device
	// elsewhere says that another kernel has it mounted: this one must not.
	elsewhere bool
}

const diskBytes = 512 << 20

// newDisk makes a disk with an ext4 in which there is an empty directory to export. The
// file is in dir.
func newDisk(dir string) (d *disk, err error) {
	backing, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot make a disk: %w", err)
	}
	defer backing.Close()
	if err := backing.Truncate(diskBytes); err != nil {
		return nil, err
	}
	if d, err = attach(backing); err != nil {
		return nil, err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,root_owner=0:0", d.path).CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("mkfs.ext4: %w: %s", err, out), d.close())
	}
	err = d.mounted(dir, func(root string) error { return os.Mkdir(filepath.Join(root, "export"), 0o777) })
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// attach gives backing a loop device, which the kernel takes away again after the last
// use.
func attach(backing *os.File) (*disk, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("no loop devices: %w", err)
	}
	defer control.Close()
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		err = unix.IoctlLoopConfigure(int(f.Fd()), &cfg)
		if err == nil {
			return &disk{path: path, f: f}, nil
		}
		f.Close()
		if !errors.Is(err, unix.EBUSY) || try > 16 { // somebody else was faster
			return nil, fmt.Errorf("loop device %s: %w", path, err)
		}
	}
}

func (d *disk) close() error { return d.f.Close() }

// mounted calls f with the path of a directory in which the disk is mounted for as long.
// It is the very superblock of the node that has it mounted.
func (d *disk) mounted(dir string, f func(root string) error) error {
	at := filepath.Join(dir, "disk")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(d.path, at, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", d.path, err)
	}
	return errors.Join(f(at), unix.Unmount(at, unix.MNT_DETACH))
}

// The requests of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// stall has the disk take no more writes until its counterpart is called: whoever writes,
// or syncs, waits in the kernel.
func (d *disk) stall(dir string) error { return d.freezer(dir, fiFreeze) }

// resume ends a stall; if there is none, nothing happens.
func (d *disk) resume(dir string) error {
	if err := d.freezer(dir, fiThaw); !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

func (d *disk) freezer(dir string, request uint) error {
	if d.elsewhere {
		return unix.EINVAL // as if it was not mounted
	}
	return d.mounted(dir, func(root string) error {
		f, err := os.Open(root)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.IoctlSetInt(int(f.Fd()), request, 0)
	})
}
