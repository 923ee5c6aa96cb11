package main

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"loopnfs/fusefs"
)

// absolute makes path absolute without looking at anything: the path, and the
// working directory too, may be in a dead mount.
func absolute(path string) (string, error) {
	if path == "" {
		return "", usagef("the mount point is empty")
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path), nil
	}
	var buf [unix.PathMax]byte
	n, err := unix.Getcwd(buf[:])
	if err != nil || n < 1 {
		return "", fmt.Errorf("cannot find out the working directory: %w; give an absolute path", err)
	}
	return filepath.Join(string(buf[:n-1]), path), nil
}

// findMount returns our mount at path. Symbolic links are followed up to the
// mount point itself, which is not looked at.
func findMount(path string) (*fusefs.MountPoint, string, error) {
	abs, err := absolute(path)
	if err != nil {
		return nil, "", err
	}
	m, err := fusefs.FindMount(abs)
	if m == nil && err == nil {
		if dir, err2 := filepath.EvalSymlinks(filepath.Dir(abs)); err2 == nil {
			abs = filepath.Join(dir, filepath.Base(abs))
			m, err = fusefs.FindMount(abs)
		}
	}
	return m, abs, err
}
