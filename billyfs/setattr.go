package billyfs

import (
	"os"
	"syscall"
	"time"

	"loopnfs/internal/vfs"
)

// SetAttr implements vfs.FS.
func (fs *fileSystem) SetAttr(op *vfs.Op, id vfs.NodeID, set *vfs.SetAttr) (vfs.WCC, error) {
	n, err := fs.lockFile(id)
	if err != nil {
		return vfs.WCC{}, err
	}
	defer fs.unlockFile(n)
	var a vfs.Attr
	if err := fs.look(n, &a); err != nil {
		return vfs.WCC{}, err
	}
	w := begin(&a)
	if set.HasGuard && set.Guard != a.Ctime {
		return w, vfs.ErrNotSync
	}
	if err := fs.maySet(&op.Cred, n, &a, set); err != nil {
		return w, err
	}
	err = fs.apply(op, n, &a, set)
	fs.finish(n, &w, set.SetSize)
	return w, err
}

// maySet reports whether c may change what set says (setattr_prepare), and
// whether the file system can.
func (fs *fileSystem) maySet(c *vfs.Cred, n *node, a *vfs.Attr, set *vfs.SetAttr) error {
	owner := c.UID == 0 || c.UID == a.UID
	newUID, newGID := set.SetUID && set.UID != a.UID, set.SetGID && set.GID != a.GID
	newMode := set.SetMode && set.Mode&0o7777 != a.Mode
	toClient := set.SetAtime == vfs.SetToClientTime || set.SetMtime == vfs.SetToClientTime
	toServer := set.SetAtime == vfs.SetToServerTime || set.SetMtime == vfs.SetToServerTime
	switch {
	case fs.readOnly:
		return syscall.EROFS
	case newUID && c.UID != 0,
		newGID && c.UID != 0 && !(owner && c.InGroup(set.GID)),
		(set.SetMode || toClient) && !owner:
		return syscall.EPERM
	case toServer && !owner && permission(c, a, vfs.MayWrite) != nil:
		return syscall.EACCES
	case (newMode || newUID || newGID) && fs.change == nil && !fs.keeps,
		(toClient || toServer) && fs.change == nil && !fs.keeps && !fs.timeless,
		(newMode || toClient || toServer) && n.typ == vfs.TypeSymlink: // billy.Change follows it
		return syscall.EOPNOTSUPP
	case set.SetSize:
		return fs.mayResize(c, n, a, set.Size)
	}
	return nil
}

func (fs *fileSystem) mayResize(c *vfs.Cred, n *node, a *vfs.Attr, size uint64) error {
	switch {
	case n.typ == vfs.TypeDirectory:
		return syscall.EISDIR
	case n.typ != vfs.TypeRegular:
		return syscall.EINVAL
	case size > a.Size && size > fs.maxFile:
		fs.tellLimit()
		return syscall.EFBIG
	}
	return ioPermission(c, a, vfs.MayWrite)
}

// apply changes what set says, as far as it is not so yet.
func (fs *fileSystem) apply(op *vfs.Op, n *node, a *vfs.Attr, set *vfs.SetAttr) error {
	p, err := fs.path(n)
	if err != nil {
		return err
	}
	uid, gid, mode := a.UID, a.GID, a.Mode
	if set.SetUID {
		uid = set.UID
	}
	if set.SetGID {
		gid = set.GID
	}
	if set.SetMode {
		mode = set.Mode & 0o7777
	}
	mode = killPriv(&op.Cred, a, set, uid, gid, mode)
	if set.SetSize {
		if err := fs.truncate(p, set.Size); err != nil {
			return err
		}
	}
	if uid != a.UID || gid != a.GID {
		if err := fs.chown(n, p, uid, gid); err != nil {
			return err
		}
	}
	if mode != a.Mode && n.typ != vfs.TypeSymlink || (uid != a.UID || gid != a.GID) && mode&(setuid|setgid) != 0 {
		if err := fs.chmod(n, p, mode); err != nil {
			return err
		}
	}
	return fs.setTimes(n, p, a, set)
}

// killPriv returns mode without the bits that the caller must not leave behind
// (setattr_should_drop_suidgid). Root may, if it says so.
func killPriv(c *vfs.Cred, a *vfs.Attr, set *vfs.SetAttr, uid, gid, mode uint32) uint32 {
	given := uid != a.UID || gid != a.GID
	switch {
	case a.Type == vfs.TypeDirectory:
		return mode
	case c.UID == 0:
		if given && !set.SetMode {
			mode = unprivileged(mode)
		}
		return mode
	}
	if set.SetMode && !c.InGroup(gid) {
		mode &^= setgid
	}
	if set.SetSize || given {
		mode = unprivileged(mode)
	}
	return mode
}

// unprivileged returns mode without setuid, and without setgid where that is not
// a mark for locking.
func unprivileged(mode uint32) uint32 {
	mode &^= setuid
	if mode&0o010 != 0 {
		mode &^= setgid
	}
	return mode
}

func (fs *fileSystem) truncate(path string, size uint64) error {
	f, err := fs.fs.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return errnoOf(err)
	}
	err = f.Truncate(int64(size))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return errnoOf(err)
}

func (fs *fileSystem) chown(n *node, path string, uid, gid uint32) error {
	if fs.keeps {
		n.hasOwner, n.uid, n.gid = true, uid, gid
		return nil
	}
	return errnoOf(fs.change.Lchown(path, int(uid), int(gid)))
}

func (fs *fileSystem) chmod(n *node, path string, mode uint32) error {
	switch {
	case fs.keeps:
		n.hasMode, n.mode = true, mode
	case fs.change != nil:
		return errnoOf(fs.change.Chmod(path, fileMode(mode)))
	}
	return nil
}

// setTimes sets the time stamps that set names.
func (fs *fileSystem) setTimes(n *node, path string, a *vfs.Attr, set *vfs.SetAttr) error {
	if set.SetAtime == vfs.DontChange && set.SetMtime == vfs.DontChange {
		return nil
	}
	now := fs.now()
	atime := pick(set.SetAtime, a.Atime, set.Atime, now)
	mtime := pick(set.SetMtime, a.Mtime, set.Mtime, now)
	if fs.change != nil && !fs.timeless {
		n.mtime = 0
		return errnoOf(fs.change.Chtimes(path, atime, mtime))
	}
	fi, err := fs.stat(n)
	if err != nil {
		return err
	}
	if set.SetAtime != vfs.DontChange {
		n.atime = atime.UnixNano()
	}
	n.mtime, n.seen = mtime.UnixNano(), modNanos(fi)
	return nil
}

// pick returns the time that how asks for.
func pick(how vfs.SetTime, is, client vfs.Time, now int64) time.Time {
	switch how {
	case vfs.SetToServerTime:
		return time.Unix(0, now)
	case vfs.SetToClientTime:
		return time.Unix(client.Sec, int64(client.Nsec))
	}
	return time.Unix(is.Sec, int64(is.Nsec))
}
