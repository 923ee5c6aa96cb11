package fusefs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
)

// Outside reports whether path, which need not be there yet, is out of reach for clients
// of the directory dir. Its error begins with path. Bind mounts are seen through: what
// counts is where both are in their file system.
func Outside(path, dir string) error {
	a, err := realPath(path)
	if err != nil {
		return err
	}
	b, err := realPath(dir)
	if err != nil {
		return err
	}
	in := below(a, b)
	if !in {
		in, err = sameTree(a, b)
	}
	if err == nil && in {
		err = fmt.Errorf("%s lies in the export", path)
	}
	return err
}

// realPath follows all links of p, as far as it is there.
func realPath(p string) (string, error) {
	p, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	rest := ""
	for {
		real, err := filepath.EvalSymlinks(p)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if there := !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR); there || p == "/" {
			return "", err
		}
		p, rest = filepath.Dir(p), filepath.Join(filepath.Base(p), rest)
	}
}

// below reports whether a is b or lies below it.
func below(a, b string) bool {
	return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/")
}

// sameTree reports whether a, in its file system, is b or lies below it.
func sameTree(a, b string) (bool, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return false, fmt.Errorf("cannot tell where %s is: %w; mount /proc", a, err)
	}
	ma, ina := inside(mounts, a)
	mb, inb := inside(mounts, b)
	return ma != nil && mb != nil && ma.Major == mb.Major && ma.Minor == mb.Minor && below(ina, inb), nil
}

// inside returns the mount that path, without links, is on, and where it is in the file
// system that is mounted there.
func inside(mounts []*mountinfo.Info, path string) (on *mountinfo.Info, in string) {
	for _, m := range mounts { // of those at one place, the last is on top
		if below(path, m.Mountpoint) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
			on = m
		}
	}
	if on == nil {
		return nil, ""
	}
	return on, filepath.Join(on.Root, strings.TrimPrefix(path, on.Mountpoint))
}
