package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// Rights, as in a mode.
const (
	mayExec  = 1
	mayWrite = 2
	mayRead  = 4
)

// aclState says whether a file has a POSIX ACL that mode bits do not tell.
type aclState uint8

const (
	aclUnknown aclState = iota
	aclNone
	aclSome
)

// permission reports whether c has all of the rights want to in, which is open
// as fd and was looked at just now; am is held. It is generic_permission of the
// kernel, which is asked itself if the file has an ACL.
func (s *Store) permission(in *inode, fd int, c *vfs.Cred, want uint32) error {
	if c.UID == 0 {
		if want&mayExec != 0 && in.typ != vfs.TypeDirectory && in.st.Mode&0o111 == 0 {
			return unix.EACCES
		}
		return nil
	}
	if in.hasACL(fd) {
		id, err := s.become(c)
		if err != nil {
			return err
		}
		defer id.restore()
		return faccess(fd, want)
	}
	if classBits(&in.st, c)&want != want {
		return unix.EACCES
	}
	return nil
}

// ioPermission is permission for READ and WRITE: the owner always may, for the
// right was checked when the file was opened, and the mode may have been
// changed since (NFSD_MAY_OWNER_OVERRIDE); who may execute may read.
func (s *Store) ioPermission(in *inode, fd int, c *vfs.Cred, want uint32) error {
	if c.UID == in.st.Uid && in.typ == vfs.TypeRegular {
		return nil
	}
	err := s.permission(in, fd, c, want)
	if err != nil && want == mayRead && in.typ == vfs.TypeRegular {
		return s.permission(in, fd, c, mayExec)
	}
	return err
}

// classBits returns the bits of the mode that are for c.
func classBits(st *unix.Stat_t, c *vfs.Cred) uint32 {
	switch {
	case c.UID == st.Uid:
		return st.Mode >> 6 & 7
	case inGroup(c, st.Gid):
		return st.Mode >> 3 & 7
	}
	return st.Mode & 7
}

func inGroup(c *vfs.Cred, gid uint32) bool {
	if c.GID == gid {
		return true
	}
	for _, g := range c.Groups {
		if g == gid {
			return true
		}
	}
	return false
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
func (s *Store) Access(op *vfs.Op, node vfs.NodeID, want uint32) (uint32, error) {
	in, err := s.inode(node)
	if err != nil {
		return 0, err
	}
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return 0, err
	}
	defer s.fds.release(in)
	in.am.Lock()
	defer in.am.Unlock()
	if err := s.look(in, fd); err != nil {
		return 0, err
	}
	table := fileAccess[:]
	if in.typ == vfs.TypeDirectory {
		table = dirAccess[:]
	}
	var have uint32
	for _, a := range table {
		if want&a.bit != 0 && s.permission(in, fd, &op.Cred, a.want) == nil {
			have |= a.bit
		}
	}
	if s.readOnly {
		have &^= vfs.AccessModify | vfs.AccessExtend | vfs.AccessDelete
	}
	return have, nil
}
