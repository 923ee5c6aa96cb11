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

// realMountpoint is absolute without symbolic links: those of the path are followed up to
// what is mounted there.
func realMountpoint(path string) (string, error) {
	abs, err := absolute(path)
	if err != nil {
		return "", err
	}
	return fusefs.RealMountpoint(abs)
}

// findMount returns our mount at path, and where that is.
func findMount(path string) (*fusefs.MountPoint, string, error) {
	path, err := realMountpoint(path)
	if err != nil {
		return nil, "", err
	}
	m, err := fusefs.FindMount(path)
	return m, path, err
}
