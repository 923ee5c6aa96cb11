package main

import (
	"os"
	"path/filepath"
	"time"
)

// change implements billy.Change, which osfs leaves out, below a directory.
type change struct{ root string }

func (c change) path(name string) string { return filepath.Join(c.root, filepath.Clean("/"+name)) }

func (c change) Chmod(name string, mode os.FileMode) error { return os.Chmod(c.path(name), mode) }

func (c change) Lchown(name string, uid, gid int) error { return os.Lchown(c.path(name), uid, gid) }

func (c change) Chown(name string, uid, gid int) error { return os.Chown(c.path(name), uid, gid) }

func (c change) Chtimes(name string, atime, mtime time.Time) error {
	return os.Chtimes(c.path(name), atime, mtime)
}
