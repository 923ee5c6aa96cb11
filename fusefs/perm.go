package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// aclState says whether a file has a POSIX ACL that mode bits do not tell.
type aclState uint8

const (
	aclUnknown aclState = iota
	aclNone
	aclSome
)

// permission reports whether the caller of op has all of the rights want to in, which is open
// as fd and was looked at just now; am is held. It is generic_permission of the
// kernel, which is asked itself if the file has an ACL.
func (s *Store) permission(op *vfs.Op, in *inode, fd int, want uint32) error {
	c := &op.Cred
	if c.UID == 0 {
		if want&vfs.MayExec != 0 && in.typ != vfs.TypeDirectory && in.st.Mode&0o111 == 0 {
			return unix.EACCES
		}
		return nil
	}
	if in.acl != aclNone && op.MustWait() {
		return errWouldWait // ACLs are on the disk
	}
	if in.hasACL(fd) {
		id, err := s.become(c)
		if err != nil {
			return err
		}
		defer id.restore()
		return faccess(fd, want)
	}
	if c.ClassBits(in.st.Mode, in.st.Uid, in.st.Gid)&want != want {
		return unix.EACCES
	}
	return nil
}

// ioPermission is permission for READ and WRITE.
func (s *Store) ioPermission(op *vfs.Op, in *inode, fd int, want uint32) error {
	return vfs.MayIO(op.Cred.UID == in.st.Uid, in.typ, want, func(want uint32) error { return s.permission(op, in, fd, want) })
}

// finder is become for a system call that does nothing but look for a name in the directory
// in, open as dir. If that right is known the thread stays who it is, which saves five calls
// before it and five after it.
func (s *Store) finder(op *vfs.Op, in *inode, dir int) (identity, error) {
	c := &op.Cred
	if c.UID == 0 {
		return identity{}, nil
	}
	if known, err := s.maySearch(op, in, dir); known {
		return identity{}, err
	}
	return s.become(c)
}

// maySearch reports whether the caller of op may look for names in the directory in, open as
// dir; known is false if the kernel is to be asked.
func (s *Store) maySearch(op *vfs.Op, in *inode, dir int) (known bool, err error) {
	if !s.posixRights || !in.am.TryLock() {
		return false, nil
	}
	defer in.am.Unlock()
	if s.look(op, in, dir) != nil {
		return false, nil
	}
	if op.NoWait && in.acl != aclNone && (in.acl == aclSome || !in.settled()) {
		return false, nil // permission would wait each time, the kernel most often does not
	}
	return true, s.permission(op, in, dir, vfs.MayExec)
}

// hasACL reports whether mode bits of in, which was looked at just now, are not enough. The
// answer is kept until the file changes under us, if that will show: what changes within one
// tick of the kernel's clock does not.
func (in *inode) hasACL(fd int) bool {
	if in.acl != aclUnknown {
		return in.acl == aclSome
	}
	settled := in.settled() // before it is asked
	found := aclNone
	switch hasXattr(fd, aclXattr) {
	case nil:
		found = aclSome
	case unix.ENODATA, unix.EOPNOTSUPP, unix.EBADF:
	default:
		return true // ask again, and let the kernel decide now
	}
	if settled {
		in.acl = found
	}
	return found == aclSome
}

// settled reports whether any change from now on will show in the time of change.
func (in *inode) settled() bool {
	now := stampNow()
	return isBefore(&in.st.Ctim, now.Nano())
}

// isBefore reports whether a file has a time that no change at a later one, in ns, can leave
// it with. Who has none but whole seconds may have only every other.
func isBefore(stamp *unix.Timespec, then int64) bool {
	if stamp.Nsec == 0 {
		return stamp.Sec+1 < then/1e9
	}
	return stamp.Nano() < then
}

// Access implements vfs.FS.
func (s *Store) Access(op *vfs.Op, node vfs.NodeID, want uint32) (uint32, error) {
	in, err := s.inode(node)
	if err != nil {
		return 0, err
	}
	fd, err := s.acquireNow(op, in, fdRead)
	if err != nil {
		return 0, err
	}
	defer s.fds.release(in)
	if !in.lockAttr(op) {
		return 0, errWouldWait
	}
	defer in.am.Unlock()
	if err := s.look(op, in, fd); err != nil {
		return 0, err
	}
	have := vfs.MayAccess(in.typ, want, func(want uint32) error { return s.permission(op, in, fd, want) })
	if s.readOnly {
		have &^= vfs.AccessModify | vfs.AccessExtend | vfs.AccessDelete
	}
	return have, nil
}
