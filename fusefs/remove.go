package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// target is what a name stands for just before it goes: the descriptor tells
// afterwards whether that was the last name.
type target struct {
	fd  int
	was fileID // with a table of handles; and where it was
	at  place

	// Of what is going to have another name.
	naming uint64 // idTable.begin
	had    []place
}

// lookAt notes what name stands for; that there is nothing is no error.
func (d *dirOp) lookAt(name string) target {
	d.b.name.set(name)
	fd, err := d.s.openAt(d.fd, d.b, 0)
	if err != nil {
		return target{fd: -1}
	}
	t := target{fd: fd}
	if d.s.ids != nil {
		t.at = placeIn(d.in, name)
		if identify(fd, &t.was) != nil {
			unix.Close(fd)
			return target{fd: -1}
		}
	}
	return t
}

// lookAtMoved is lookAt for what is going to have another name, in the directory to, and
// tells the table of handles, if there is one. If that cannot note it, the file must stay.
// moved has to follow.
func (d *dirOp) lookAtMoved(name string, to *dirOp, newName string) (t target, err error) {
	ids := d.s.ids
	if ids == nil {
		return target{fd: -1}, nil
	}
	t = d.lookAt(name)
	t.naming = ids.begin()
	if t.fd >= 0 {
		t.had, err = ids.moving(&t.was, t.at, placeIn(to.in, newName))
	}
	return t, err
}

// moved tells the table of handles whether it has the new name. The lock of its directory is
// held.
func (t target) moved(d *dirOp, name string, made bool) {
	ids := d.s.ids
	if ids == nil {
		return
	}
	to := placeIn(d.in, name)
	switch {
	case t.fd < 0:
	case made:
		ids.moved(t.fd, &t.was, t.at, to)
	default:
		ids.stays(&t.was, t.at, to, t.had)
	}
	ids.end(t.naming)
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
}

// gone reports whether the file has no name any more, and its handle in raw, if
// it can have one.
func (t target) gone(s *Store, raw *rawHandle, mountID *int32) (gone, ok bool) {
	if s.ids == nil {
		return false, nameToHandle(t.fd, raw, mountID) == nil
	}
	if !s.ids.known(&t.was, raw) {
		return false, false
	}
	if gone = s.ids.gone(t.fd, &t.was, raw); gone {
		s.ids.drop(raw)
	}
	return gone, true
}

// finish ends a call that took the name away, or did not. It forgets the file if it
// has no name any more and is in memory. No lock is held.
func (t target) finish(s *Store, op *vfs.Op, taken bool) {
	if t.fd < 0 {
		return
	}
	defer unix.Close(t.fd)
	if !taken {
		return
	}
	b := s.scratch.get()
	defer s.scratch.put(b)
	gone, ok := t.gone(s, &b.raw, &b.mountID)
	if !ok {
		return
	}
	in := s.nodes.findRaw(&b.raw)
	if in == nil {
		return
	}
	in.changes.Add(1)
	in.bump()
	in.am.Lock()
	gone = fstat(t.fd, &in.st) == nil && in.st.Nlink == 0 || gone
	in.adopt()
	in.am.Unlock()
	if gone {
		s.reap(op.Scope.Task(), in)
	}
}

// Remove implements vfs.FS.
func (s *Store) Remove(op *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	return s.unlink(op, dir, name, 0)
}

// Rmdir implements vfs.FS.
func (s *Store) Rmdir(op *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	return s.unlink(op, dir, name, unix.AT_REMOVEDIR)
}

func (s *Store) unlink(op *vfs.Op, dir vfs.NodeID, name string, flags int) (vfs.WCC, error) {
	s.makeRoom(op)
	d, err := s.enter(op, dir, name)
	if err != nil {
		return vfs.WCC{}, err
	}
	t := d.lookAt(name)
	err = d.asRemover(name, &t, func() error { return unix.Unlinkat(d.fd, name, flags) })
	d.leave(err == nil)
	t.finish(s, op, err == nil)
	return d.wcc, err
}

// Rename implements vfs.FS. The locks of two directories are taken in the order
// of their node numbers.
func (s *Store) Rename(op *vfs.Op, dir vfs.NodeID, name string, newDir vfs.NodeID, newName string) (from, to vfs.WCC, err error) {
	s.makeRoom(op)
	if dir == newDir {
		from, err = s.renameIn(op, dir, name, newName)
		return from, from, err
	}
	a, b, err := s.enterTwo(op, dir, name, newDir, newName)
	if err != nil {
		return from, to, err
	}
	t := b.lookAt(newName)
	src, err := a.lookAtMoved(name, b, newName)
	if err == nil {
		err = a.asMover(name, &src, b, newName, &t, func() error {
			err := unix.Renameat(a.fd, name, b.fd, newName)
			if err != nil && isGone(b.fd) {
				return vfs.ErrStale
			}
			return err
		})
	}
	src.moved(b, newName, err == nil)
	a.leave(err == nil)
	b.leave(err == nil)
	t.finish(s, op, err == nil)
	return a.wcc, b.wcc, err
}

func (s *Store) enterTwo(op *vfs.Op, dir vfs.NodeID, name string, newDir vfs.NodeID, newName string) (a, b *dirOp, err error) {
	if dir < newDir {
		if a, err = s.enter(op, dir, name); err != nil {
			return nil, nil, err
		}
		if b, err = s.enter(op, newDir, newName); err != nil {
			a.release()
		}
		return a, b, err
	}
	if b, err = s.enter(op, newDir, newName); err != nil {
		return nil, nil, err
	}
	if a, err = s.enter(op, dir, name); err != nil {
		b.release()
	}
	return a, b, err
}

func (s *Store) renameIn(op *vfs.Op, dir vfs.NodeID, name, newName string) (vfs.WCC, error) {
	if err := checkName(newName); err != nil {
		return vfs.WCC{}, err
	}
	d, err := s.enter(op, dir, name)
	if err != nil {
		return vfs.WCC{}, err
	}
	t := d.lookAt(newName)
	src, err := d.lookAtMoved(name, d, newName)
	if err == nil {
		err = d.asMover(name, &src, d, newName, &t, func() error { return unix.Renameat(d.fd, name, d.fd, newName) })
	}
	src.moved(d, newName, err == nil)
	d.leave(err == nil)
	t.finish(s, op, err == nil)
	return d.wcc, err
}

// Link implements vfs.FS.
func (s *Store) Link(op *vfs.Op, node, dir vfs.NodeID, name string) (vfs.Attr, vfs.WCC, error) {
	in, err := s.inode(node)
	if err != nil {
		return vfs.Attr{}, vfs.WCC{}, err
	}
	if in.typ == vfs.TypeDirectory {
		return vfs.Attr{}, vfs.WCC{}, unix.EPERM
	}
	s.makeRoom(op)
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return vfs.Attr{}, vfs.WCC{}, err
	}
	defer s.fds.release(in)
	d, err := s.enter(op, dir, name)
	if err != nil {
		return vfs.Attr{}, vfs.WCC{}, err
	}
	naming, err := s.linking()
	if err == nil {
		err = d.asMaker(name, true, func() error {
			err := linkFD(fd, d.fd, name)
			if err != nil && isGone(fd) {
				return vfs.ErrStale // also if the name exists: the kernel looks at that first
			}
			return err
		})
	}
	made := err == nil
	var a vfs.Attr
	if made {
		in.changes.Add(1)
		in.bump()
		err = s.attr(in, fd, &a) // before somebody can remove it
	}
	s.linked(d, in, fd, name, made, naming)
	d.leave(made)
	return a, d.wcc, err
}

// linking says that a file is going to have another name, unless the table of handles cannot
// note it. linked has to follow.
func (s *Store) linking() (naming uint64, err error) {
	if s.ids == nil {
		return 0, nil
	}
	return s.ids.begin(), s.ids.disk.works()
}

// linked tells the table of handles about another name of in, open as fd.
func (s *Store) linked(d *dirOp, in *inode, fd int, name string, made bool, naming uint64) {
	if s.ids == nil {
		return
	}
	if made {
		p := placeIn(d.in, name)
		s.ids.copied(in, fd, &p, true)
	}
	s.ids.end(naming)
}
