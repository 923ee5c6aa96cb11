package billyfs

import (
	"syscall"

	"loopnfs/internal/vfs"
)

// taking is one entry that is taken out of a directory.
type taking struct {
	dir  *node
	attr vfs.Attr // of dir
	wcc  vfs.WCC  // of dir
	n    *node
	was  vfs.Attr // of n
}

// take prepares that name goes from dir.
func (fs *fileSystem) take(op *vfs.Op, dir vfs.NodeID, name string, t *taking) error {
	var err error
	if t.dir, err = fs.directory(&op.Cred, dir, vfs.MayExec, &t.attr); err != nil {
		return err
	}
	t.wcc = begin(&t.attr)
	if err := checkName(name); err != nil {
		return err
	}
	if t.n, err = fs.child(t.dir, name, &t.was); err != nil {
		return err
	}
	if fs.readOnly {
		return syscall.EROFS
	}
	if err := permission(&op.Cred, &t.attr, vfs.MayWrite|vfs.MayExec); err != nil {
		return err
	}
	if err := mayDelete(&op.Cred, &t.attr, &t.was); err != nil {
		return err
	}
	if fs.derefs && t.n.typ == vfs.TypeSymlink {
		return syscall.EOPNOTSUPP
	}
	return nil
}

// Remove implements vfs.FS.
func (fs *fileSystem) Remove(op *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	return fs.remove(op, dir, name, false)
}

// Rmdir implements vfs.FS.
func (fs *fileSystem) Rmdir(op *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	return fs.remove(op, dir, name, true)
}

func (fs *fileSystem) remove(op *vfs.Op, dir vfs.NodeID, name string, isDir bool) (vfs.WCC, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var t taking
	if err := fs.take(op, dir, name, &t); err != nil {
		return t.wcc, err
	}
	switch {
	case isDir && t.n.typ != vfs.TypeDirectory:
		return t.wcc, syscall.ENOTDIR
	case !isDir && t.n.typ == vfs.TypeDirectory:
		return t.wcc, syscall.EISDIR
	}
	err := fs.erase(t.n)
	fs.finish(t.dir, &t.wcc, true)
	return t.wcc, err
}

// erase removes n, which must be empty if it is a directory.
func (fs *fileSystem) erase(n *node) error {
	p, err := fs.path(n)
	if err != nil {
		return err
	}
	if n.typ == vfs.TypeDirectory {
		list, err := fs.fs.ReadDir(p)
		if err != nil {
			return errnoOf(err)
		}
		if len(list) > 0 {
			return syscall.ENOTEMPTY
		}
	}
	if err := fs.fs.Remove(p); err != nil {
		return errnoOf(err)
	}
	n.parent.version++
	fs.drop(n)
	return nil
}

// Rename implements vfs.FS.
func (fs *fileSystem) Rename(op *vfs.Op, dir vfs.NodeID, name string, newDir vfs.NodeID, newName string) (from, to vfs.WCC, err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var src, dst taking
	if err := fs.take(op, dir, name, &src); err != nil {
		return src.wcc, vfs.WCC{}, err
	}
	err = fs.take(op, newDir, newName, &dst)
	if err == syscall.ENOENT && dst.dir != nil {
		dst.n, err = nil, permission(&op.Cred, &dst.attr, vfs.MayWrite|vfs.MayExec)
	}
	if err == nil && src.n == dst.n {
		return src.wcc, dst.wcc, nil
	}
	if err == nil {
		err = fs.mayReplace(op, &src, &dst)
	}
	if err == nil {
		err = fs.rename(&src, &dst, newName)
	}
	if err == nil {
		fs.finish(src.dir, &src.wcc, true)
		fs.finish(dst.dir, &dst.wcc, true)
		moved := begin(&src.was)
		fs.finish(src.n, &moved, false)
	}
	return src.wcc, dst.wcc, err
}

// mayReplace reports whether src can become dst (vfs_rename).
func (fs *fileSystem) mayReplace(op *vfs.Op, src, dst *taking) error {
	isDir := src.n.typ == vfs.TypeDirectory
	switch {
	case isDir && dst.dir.isBelow(src.n):
		return syscall.EINVAL
	case dst.n == nil:
	case isDir && dst.n.typ != vfs.TypeDirectory:
		return syscall.ENOTDIR
	case !isDir && dst.n.typ == vfs.TypeDirectory:
		return syscall.EISDIR
	}
	if isDir && src.dir != dst.dir { // its ".." changes
		return permission(&op.Cred, &src.was, vfs.MayWrite)
	}
	return nil
}

// rename moves src to newName in the directory of dst. billy promises to replace
// files, not directories.
func (fs *fileSystem) rename(src, dst *taking, newName string) error {
	if dst.n != nil && (dst.n.typ == vfs.TypeDirectory || fs.copies) {
		if err := fs.erase(dst.n); err != nil {
			return err
		}
	}
	oldPath, err := fs.path(src.n)
	if err != nil {
		return err
	}
	newPath, err := fs.childPath(dst.dir, newName)
	if err != nil {
		return err
	}
	if fs.copies {
		err = fs.copyTree(oldPath, newPath)
	} else {
		err = fs.fs.Rename(oldPath, newPath)
	}
	if err != nil {
		return errnoOf(err)
	}
	src.dir.version++
	dst.dir.version++
	fs.drop(dst.n)
	fs.move(src.n, dst.dir, newName)
	return nil
}
