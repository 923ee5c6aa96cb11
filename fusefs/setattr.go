package fusefs

import (
	"strconv"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/vfs"
)

// SetAttr implements vfs.FS. Several changes are several system calls: one that
// fails leaves those before it done, in the order size, owner, mode, times; times that
// are to be now come before the owner.
func (s *Store) SetAttr(op *vfs.Op, node vfs.NodeID, set *vfs.SetAttr) (w vfs.WCC, err error) {
	in, err := s.inode(node)
	if err != nil {
		return w, err
	}
	kind := fdRead
	if set.SetSize {
		if in.typ == vfs.TypeDirectory {
			return w, unix.EISDIR
		}
		if in.typ != vfs.TypeRegular {
			return w, unix.EINVAL
		}
		kind = fdWrite
	}
	fd, err := s.acquire(in, kind)
	if err != nil {
		return w, err
	}
	defer s.fds.release(in)
	task := op.Scope.Task()
	in.lock.Lock(task, "")
	defer in.lock.Unlock(task)
	if in.dead.Load() {
		return w, vfs.ErrStale
	}
	if err := s.pre(in, fd, &w); err != nil {
		return w, err
	}
	if set.HasGuard && set.Guard != w.Pre.Ctime {
		w.HasPost = true
		return w, vfs.ErrNotSync
	}
	if err = s.setAttr(op, in, fd, set); err == nil {
		in.bump()
		if s.ids != nil {
			s.ids.copied(in, fd, nil, false)
		}
	}
	in.changes.Add(1)
	s.post(in, fd, &w)
	return w, err
}

// setAttr changes what set says. The lock is held exclusively.
func (s *Store) setAttr(op *vfs.Op, in *inode, fd int, set *vfs.SetAttr) error {
	if err := s.held(); err != nil {
		return err
	}
	if set.SetSize {
		if err := s.mayTruncate(op, in, fd, set.Size); err != nil {
			return err
		}
		if err := s.truncate(op, in, fd, set.Size); err != nil {
			return err
		}
		in.am.Lock()
		s.stripSuid(op, in, fd)
		in.am.Unlock()
		if err := s.held(); err != nil { // the disk may have taken its time
			return err
		}
	}
	if set.SetAtime != vfs.SetToClientTime && set.SetMtime != vfs.SetToClientTime {
		if err := s.touch(op, in, fd, set); err != nil {
			return err
		}
	}
	id, err := s.become(&op.Cred)
	if err != nil {
		return err
	}
	defer id.restore()
	if err := setOwner(fd, set); err != nil {
		return err
	}
	if set.SetMode {
		if err := setMode(in.typ, fd, set.Mode); err != nil {
			return err
		}
	}
	if set.SetAtime != vfs.SetToClientTime && set.SetMtime != vfs.SetToClientTime {
		return nil
	}
	return in.setTimes(fd, set)
}

// touch sets times to now, which who may write may do, as part of O_TRUNC for example
// (setattr_prepare); utimensat(2) wants the owner if it is one of them. The lock is held
// exclusively.
func (s *Store) touch(op *vfs.Op, in *inode, fd int, set *vfs.SetAttr) error {
	if set.SetAtime == vfs.DontChange && set.SetMtime == vfs.DontChange {
		return nil
	}
	in.am.Lock()
	var err error
	if op.Cred.UID != in.st.Uid {
		err = s.permission(op, in, fd, vfs.MayWrite)
	}
	in.am.Unlock()
	if err != nil {
		return err
	}
	return in.setTimes(fd, set)
}

func setOwner(fd int, set *vfs.SetAttr) error {
	if !set.SetUID && !set.SetGID {
		return nil
	}
	uid, gid := -1, -1
	if set.SetUID {
		uid = int(set.UID)
	}
	if set.SetGID {
		gid = int(set.GID)
	}
	return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
}

// setMode changes the mode. A file or directory is open otherwise than with O_PATH.
func setMode(typ vfs.FileType, fd int, mode uint32) error {
	mode &= 0o7777
	switch typ {
	case vfs.TypeRegular, vfs.TypeDirectory:
		return unix.Fchmod(fd, mode)
	case vfs.TypeSymlink:
		return nil // a symbolic link has no mode that means something
	}
	return chmodPath(fd, mode)
}

// chmodPath changes the mode of what is open with O_PATH: by way of /proc where the kernel has
// no fchmodat2 (before Linux 6.6).
func chmodPath(fd int, mode uint32) error {
	err := unix.Fchmodat(fd, "", mode, unix.AT_EMPTY_PATH)
	if err == unix.ENOSYS || err == unix.EOPNOTSUPP {
		err = unix.Fchmodat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), mode, 0)
	}
	return err
}

// timespec returns what the kernel is told for one time stamp.
func timespec(how vfs.SetTime, t vfs.Time) unix.Timespec {
	switch how {
	case vfs.SetToServerTime:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case vfs.SetToClientTime:
		return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
	}
	return unix.Timespec{Nsec: unix.UTIME_OMIT}
}

// setTimes changes the times. The mtime counts as that of the data, which may
// still have to be written.
func (in *inode) setTimes(fd int, set *vfs.SetAttr) error {
	if set.SetAtime == vfs.SetToClientTime && set.Atime.Nsec >= 1e9 || set.SetMtime == vfs.SetToClientTime && set.Mtime.Nsec >= 1e9 {
		return unix.EINVAL
	}
	ts := [2]unix.Timespec{timespec(set.SetAtime, set.Atime), timespec(set.SetMtime, set.Mtime)}
	in.am.Lock()
	defer in.am.Unlock()
	if err := setTimes(fd, &ts); err != nil {
		return err
	}
	if err := fstat(fd, &in.st); err != nil {
		return err
	}
	now := stampOf(&in.st)
	if set.SetMtime != vfs.DontChange {
		in.mtime = now.mtime
	}
	in.ctime = later(in.ctime, now.ctime)
	in.snap.mtime, in.snap.ctime = now.mtime, now.ctime
	return nil
}

// mayTruncate checks a change of the size.
func (s *Store) mayTruncate(op *vfs.Op, in *inode, fd int, size uint64) error {
	if err := s.mayGrow(in, fd, size, 0); err != nil {
		return err
	}
	in.am.Lock()
	defer in.am.Unlock()
	return s.ioPermission(op, in, fd, vfs.MayWrite)
}

// truncate sets the size of a regular file. The backing file is first: it may refuse, and
// nobody must have taken pages for what lies behind the end then. Pages under write-back are
// waited for, since they could make the file longer again; others learn the new size before
// they are written. The lock is held exclusively.
func (s *Store) truncate(op *vfs.Op, in *inode, fd int, size uint64) error {
	in.beginIO(fd)
	in.freshen()
	was := in.backingSize()
	err := ftruncate(fd, size)
	switch {
	case err != nil && lengthOf(fd) < was:
		s.afterLoss(in, err) // a disk that fails in the middle
	case err == nil && size < in.size.Load():
		in.size.Store(size)
		in.m.WaitWriteback(op.Scope, in.m.Seq(), nil)
		if err = s.held(); err == nil && lengthOf(fd) > size {
			err = ftruncate(fd, size)
		}
		s.cut(in, size)
	}
	if err == nil {
		in.am.Lock()
		in.size.Store(size)
		in.touch()
		in.am.Unlock()
	}
	s.endIO(in, fd)
	if !in.dirty() {
		in.writeFail.clear(s, in)
	}
	return err
}

// cut drops what is cached behind size.
func (s *Store) cut(in *inode, size uint64) {
	index := size >> alloc.PageShift
	if rest := int(size & (alloc.PageSize - 1)); rest > 0 {
		if f := in.m.Get(index); f != nil {
			in.m.WaitFolio(f, nil)
			clear(s.arena.Bytes(f)[rest:])
			s.arena.Put(f)
		}
		index++
	}
	in.m.Truncate(index)
}

// lengthOf returns how long the file open as fd is; 0 if that cannot be told.
func lengthOf(fd int) uint64 {
	var st unix.Stat_t
	if fstat(fd, &st) != nil {
		return 0
	}
	return uint64(st.Size)
}

func ftruncate(fd int, size uint64) error {
	for {
		if err := unix.Ftruncate(fd, int64(size)); err != unix.EINTR {
			return err
		}
	}
}
