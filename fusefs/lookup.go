package fusefs

import (
	"strings"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// checkName refuses what is not a single path component.
func checkName(name string) error {
	switch {
	case len(name) > maxName:
		return unix.ENAMETOOLONG
	case name == "", name == ".", name == "..", strings.IndexByte(name, '/') >= 0, strings.IndexByte(name, 0) >= 0:
		return unix.EINVAL
	}
	return nil
}

// Lookup implements vfs.FS.
func (s *Store) Lookup(op *vfs.Op, dir vfs.NodeID, name string) (vfs.Entry, error) {
	in, err := s.directory(dir)
	if err != nil {
		return vfs.Entry{}, err
	}
	if name == ".." {
		if op.MustWait() {
			return vfs.Entry{}, errWouldWait
		}
		return s.parent(op, in)
	}
	if err := checkName(name); err != nil {
		return vfs.Entry{}, err
	}
	fd, err := s.acquireNow(op, in, fdRead)
	if err != nil {
		return vfs.Entry{}, err
	}
	defer s.fds.release(in)
	if !op.NoWait {
		s.makeRoom(op)
	}
	e, err := s.lookupIn(op, in, fd, name)
	if err == vfs.ErrStale && !op.MustWait() {
		// It was removed, or replaced, when it was open already.
		in.lock.RLock(op.Scope.Task())
		defer in.lock.RUnlock(op.Scope.Task())
		e, err = s.lookupIn(op, in, fd, name)
	}
	if err == unix.ENOENT && isGone(fd) {
		err = vfs.ErrStale
	}
	return e, err
}

// lookupIn returns the entry for name in the directory in, open as dir.
func (s *Store) lookupIn(op *vfs.Op, in *inode, dir int, name string) (vfs.Entry, error) {
	b := s.scratch.get()
	defer s.scratch.put(b)
	b.name.set(name)
	child, err := s.openChild(op, in, dir, b)
	if err != nil {
		return vfs.Entry{}, err
	}
	defer unix.Close(child)
	return s.entry(op, child, b, found{in: in, name: name})
}

// openChild opens b.name in the directory in, open as dir, if the caller may, and with
// O_PATH: nothing happens to what is found there, whatever it is.
func (s *Store) openChild(op *vfs.Op, in *inode, dir int, b *scratch) (int, error) {
	id, err := s.finder(op, in, dir)
	if err != nil {
		return -1, err
	}
	defer id.restore()
	if !op.NoWait {
		return s.openAt(dir, b, 0)
	}
	fd, err := s.openAt(dir, b, resolveCached)
	if err == unix.EAGAIN || err == unix.EINVAL {
		op.MustWait()
	}
	return fd, err
}

// openAt opens b.name, a single component, without following links or entering another
// mount. RESOLVE_BENEATH would add nothing but EXDEV for a file that is being moved to
// another directory.
func (s *Store) openAt(dir int, b *scratch, resolve uint64) (int, error) {
	b.how = unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: resolve | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := openat2(dir, &b.name, &b.how)
	if err != nil && resolve&resolveCached == 0 && s.spareFiles(err) {
		fd, err = openat2(dir, &b.name, &b.how)
	}
	switch err {
	case unix.EXDEV: // a mount point; what is mounted there is not exported
		return -1, unix.EACCES
	case unix.EMFILE, unix.ENFILE: // if cached, closing files may take long
		return -1, vfs.ErrJukebox
	}
	return fd, err
}

// openReal is openAt without O_PATH, for what is made, or was.
func (s *Store) openReal(dir int, name string, flags int, mode uint32) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, mode)
	if err != nil && s.spareFiles(err) {
		fd, err = unix.Openat(dir, name, flags, mode)
	}
	if err == unix.EMFILE || err == unix.ENFILE {
		err = vfs.ErrJukebox
	}
	return fd, err
}

// found says how a file was found, which a table of handles has to know.
type found struct {
	in    *inode // the directory; nil if it was not found by name
	name  string
	since uint64 // idTable.mark from before it was made; 0 if it was there
}

// nameOf gets the handle of the file open as fd into b.raw.
func (s *Store) nameOf(fd int, b *scratch, how found) error {
	switch {
	case s.ids == nil:
		return nameToHandle(fd, &b.raw, &b.mountID)
	case how.in == nil:
		return s.ids.nameUp(fd, &b.raw)
	}
	return s.ids.name(fd, placeIn(how.in, how.name), how.since, &b.raw)
}

// entry returns the inode of the file open as fd, with a reference for the
// caller of the operation.
func (s *Store) entry(op *vfs.Op, fd int, b *scratch, how found) (e vfs.Entry, err error) {
	if s.ids != nil && op.MustWait() { // for its log
		return e, errWouldWait
	}
	if err := s.nameOf(fd, b, how); err != nil {
		return e, err
	}
	if op.NoWait && s.nodes.findRaw(&b.raw) == nil && !s.nodes.hasSlack() {
		op.MustWait() // to drop other inodes may take long
		return e, errWouldWait
	}
	key, err := s.handleFor(&b.raw)
	if err != nil {
		return e, err
	}
	in, made, err := s.instantiate(fd, &key)
	if err != nil {
		return e, err
	}
	if made && !op.NoWait {
		s.evict()
	}
	e.Node = in.id
	if made {
		err = s.attrNew(op, in, &e.Attr)
	} else {
		err = s.attrNow(op, in, fd, &e.Attr)
	}
	if err != nil {
		s.unref(op, in)
		return vfs.Entry{}, err
	}
	return e, nil
}

// unref gives back a reference that was taken for op.
func (s *Store) unref(op *vfs.Op, in *inode) {
	if !op.NoWait {
		s.Forget(in.id, 1)
		return
	}
	if gone := s.nodes.forget(in.id, 1); gone != nil {
		go s.discard(gone)
	}
}

// parent looks up "..", which never leads out of the export, not even from a
// directory that somebody moved out of it.
func (s *Store) parent(op *vfs.Op, in *inode) (vfs.Entry, error) {
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return vfs.Entry{}, err
	}
	defer s.fds.release(in)
	b := s.scratch.get()
	defer s.scratch.put(b)
	if in.id == vfs.RootID {
		return s.entry(op, fd, b, found{})
	}
	b.name.set("..")
	id, err := s.finder(op, in, fd)
	if err != nil {
		return vfs.Entry{}, err
	}
	up, err := s.openAt(fd, b, 0)
	id.restore()
	if err != nil {
		return vfs.Entry{}, err
	}
	defer unix.Close(up)
	if err := s.inExport(up, b); err != nil {
		return vfs.Entry{}, err
	}
	return s.entry(op, up, b, found{})
}

// inExport returns ErrStale unless the directory open as fd is the root of the export
// or lies below it.
func (s *Store) inExport(fd int, b *scratch) error {
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return err
	}
	b.name.set("..")
	at, own := fd, false
	defer func() {
		if own {
			unix.Close(at)
		}
	}()
	for depth := 0; depth < 4096; depth++ {
		if st.Ino == s.rootIno && st.Dev == s.dev {
			return nil
		}
		last := st.Ino
		up, err := s.openAt(at, b, 0)
		if err == unix.EACCES || err != nil && notThere(err) { // EACCES: the root of a mount
			return vfs.ErrStale
		}
		if err != nil {
			return err
		}
		if own {
			unix.Close(at)
		}
		at, own = up, true
		if err := fstat(at, &st); err != nil {
			return err
		}
		if st.Ino == last {
			break
		}
	}
	return vfs.ErrStale
}
