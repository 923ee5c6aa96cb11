package billyfs

import (
	"slices"
	"syscall"

	"loopnfs/internal/vfs"
)

// Rights, as in a mode.
const (
	mayExec  = 1
	mayWrite = 2
	mayRead  = 4
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
		if want&mayExec != 0 && a.Type != vfs.TypeDirectory && a.Mode&0o111 == 0 {
			return syscall.EACCES
		}
		return nil
	}
	bits := a.Mode & 7
	switch {
	case c.UID == a.UID:
		bits = a.Mode >> 6 & 7
	case inGroup(c, a.GID):
		bits = a.Mode >> 3 & 7
	}
	if bits&want != want {
		return syscall.EACCES
	}
	return nil
}

// ioPermission is permission for READ and WRITE: the owner always may, for the
// right was checked when the file was opened, and the mode may have been changed
// since (NFSD_MAY_OWNER_OVERRIDE); who may execute may read.
func ioPermission(c *vfs.Cred, a *vfs.Attr, want uint32) error {
	if c.UID == a.UID && a.Type == vfs.TypeRegular {
		return nil
	}
	err := permission(c, a, want)
	if err != nil && want == mayRead && a.Type == vfs.TypeRegular {
		return permission(c, a, mayExec)
	}
	return err
}

func inGroup(c *vfs.Cred, gid uint32) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }

// mayDelete reports whether c may take child out of dir, which it may write
// (check_sticky).
func mayDelete(c *vfs.Cred, dir, child *vfs.Attr) error {
	if dir.Mode&sticky != 0 && c.UID != 0 && c.UID != dir.UID && c.UID != child.UID {
		return syscall.EPERM
	}
	return nil
}

// access bits and the rights they need, for directories and for other files.
var (
	dirAccess = [...]struct{ bit, want uint32 }{
		{vfs.AccessRead, mayRead}, {vfs.AccessLookup, mayExec},
		{vfs.AccessModify, mayWrite | mayExec}, {vfs.AccessExtend, mayWrite | mayExec},
		{vfs.AccessDelete, mayWrite | mayExec},
	}
	fileAccess = [...]struct{ bit, want uint32 }{
		{vfs.AccessRead, mayRead}, {vfs.AccessModify, mayWrite},
		{vfs.AccessExtend, mayWrite}, {vfs.AccessExecute, mayExec},
	}
)

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
	table := fileAccess[:]
	if n.typ == vfs.TypeDirectory {
		table = dirAccess[:]
	}
	var have uint32
	for _, t := range table {
		if want&t.bit != 0 && permission(&op.Cred, &a, t.want) == nil {
			have |= t.bit
		}
	}
	if fs.readOnly {
		have &^= vfs.AccessModify | vfs.AccessExtend | vfs.AccessDelete
	}
	return have, nil
}
