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

// hasACL reports whether mode bits are not enough. The answer is kept until the
// file changes under us.
func (in *inode) hasACL(fd int) bool {
	if in.acl == aclUnknown {
		in.acl = aclNone
		_, err := unix.Fgetxattr(fd, "system.posix_acl_access", nil)
		if err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP && err != unix.EBADF {
			in.acl = aclUnknown // ask again, and let the kernel decide now
			return true
		}
		if err == nil {
			in.acl = aclSome
		}
	}
	return in.acl == aclSome
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
