package nfsmount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Entry is a mount as the mount table has it.
type Entry struct {
	ID                 int // of the mount, not of what is mounted
	Path, Source, Type string
	Device             string // MAJOR:MINOR
}

// Find returns what is mounted on path, an absolute path without symbolic links;
// the topmost if there are several, nil if there is nothing. It does not look at
// the mount, which may be a dead one.
func (h *Host) Find(path string) (*Entry, error) {
	all, err := h.entries(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[len(all)-1], nil
}

// entries returns the mounts that filter lets pass.
func (h *Host) entries(filter mountinfo.FilterFunc) ([]Entry, error) {
	f, err := os.Open(h.path("/proc/self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, filter)
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	all := make([]Entry, len(infos))
	for i, m := range infos {
		all[i] = Entry{ID: m.ID, Path: m.Mountpoint, Source: m.Source, Type: m.FSType, Device: deviceOf(m)}
	}
	return all, nil
}

func deviceOf(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// elsewhere reports whether what e mounts is mounted by others, too: mounts of one
// export share their pages and their requests, and bind mounts are such mounts.
func (h *Host) elsewhere(e *Entry) error {
	all, err := h.entries(func(m *mountinfo.Info) (skip, stop bool) {
		return m.ID == e.ID || deviceOf(m) != e.Device, false
	})
	if err == nil && len(all) > 0 {
		err = fmt.Errorf("%w on %s: unmount that, too", ErrShared, all[0].Path)
	}
	return err
}

// checkMountpoint returns the real path of a directory where nothing is mounted.
func (h *Host) checkMountpoint(path string) (string, error) {
	if err := h.notMounted(path); err != nil {
		return "", err
	}
	st, err := h.Kernel.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("mount point %s does not exist: create it with mkdir -p %s", path, path)
	case err != nil:
		return "", fmt.Errorf("mount point %s: %w", path, err)
	case !st.IsDir:
		return "", fmt.Errorf("mount point %s is not a directory: name an existing directory", path)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	return path, h.notMounted(path)
}

func (h *Host) notMounted(path string) error {
	m, err := h.Find(path)
	if err == nil && m != nil {
		err = fmt.Errorf("mount point %s is in use: %s (%s) is mounted there; unmount it first or name another directory",
			path, m.Source, m.Type)
	}
	return err
}

// checkNotOwnExport refuses to mount on, below or above the directory that is
// mounted: the server would then find its own mount there, now or when it starts
// again, and wait for itself.
func (h *Host) checkNotOwnExport(mnt Detached, mountpoint, export string) error {
	for dir := mountpoint; ; dir = filepath.Dir(dir) {
		if same, err := h.same(mnt, dir); same || err != nil {
			return ownExport(mountpoint, dir, err)
		}
		if dir == "/" {
			break
		}
	}
	// The name of an export is often its path.
	if export = filepath.Clean(export); !strings.HasPrefix(export+"/", mountpoint+"/") {
		return nil
	}
	same, err := h.same(mnt, export)
	if !same && err == nil {
		return nil
	}
	return ownExport(mountpoint, export, err)
}

func ownExport(mountpoint, dir string, err error) error {
	if err != nil {
		return fmt.Errorf("cannot find out whether %s is the directory that is mounted: %w", dir, err)
	}
	return fmt.Errorf("%s is the directory that the server exports, and would be hidden or entered by a mount on %s: the server would wait for itself; name a directory outside of it",
		dir, mountpoint)
}

// same reports whether the root of the mount is the directory dir of this host:
// a server shows the number of the inode and when it changed.
func (h *Host) same(mnt Detached, dir string) (bool, error) {
	for range 3 { // it may be changing
		st, err := h.Kernel.Stat(dir)
		if err != nil {
			return false, nil // nobody can get there
		}
		root, err := mnt.Stat()
		if err != nil || root.Ino != st.Ino {
			return false, err
		}
		if root.Changed == st.Changed {
			return true, nil
		}
	}
	return false, nil
}
