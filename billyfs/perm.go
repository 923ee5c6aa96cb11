package billyfs

import (
	"syscall"

	"loopnfs/internal/vfs"
)

const (
	setuid = 0o4000
	setgid = 0o2000
	sticky = 0o1000
)

// permission reports whether c has all of the rights want to what a describes
// (generic_permission).
func permission(c *vfs.Cred, a *vfs.Attr, want uint32) error {
	if c.UID == 0 {
		if want&vfs.MayExec != 0 && a.Type != vfs.TypeDirectory && a.Mode&0o111 == 0 {
			return syscall.EACCES
		}
		return nil
	}
	if c.ClassBits(a.Mode, a.UID, a.GID)&want != want {
		return syscall.EACCES
	}
	return nil
}

// ioPermission is permission for READ and WRITE.
func ioPermission(c *vfs.Cred, a *vfs.Attr, want uint32) error {
	return vfs.MayIO(c.UID == a.UID, a.Type, want, func(want uint32) error { return permission(c, a, want) })
}

// mayDelete reports whether c may take child out of dir, which it may write
// (check_sticky).
func mayDelete(c *vfs.Cred, dir, child *vfs.Attr) error {
	if dir.Mode&sticky != 0 && c.UID != 0 && c.UID != dir.UID && c.UID != child.UID {
		return syscall.EPERM
	}
	return nil
}

// Access implements vfs.FS.
func (fs *fileSystem) Access(op *vfs.Op, id vfs.NodeID, want uint32) (uint32, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.node(id)
	if err != nil {
		return 0, err
	}
	var a vfs.Attr
	if err := fs.look(n, &a); err != nil {
		return 0, err
	}
	have := vfs.MayAccess(n.typ, want, func(want uint32) error { return permission(&op.Cred, &a, want) })
	if fs.readOnly {
		have &^= vfs.AccessModify | vfs.AccessExtend | vfs.AccessDelete
	}
	return have, nil
}
