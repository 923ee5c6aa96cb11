package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// Stat implements vfs.Stater. A file comes into memory if no other has to go for it: it
// may be looked at again, and then costs a tenth.
func (s *Store) Stat(op *vfs.Op, b []byte, a *vfs.Attr) error {
	h, ok := parseHandle(b)
	if !ok {
		return vfs.ErrBadHandle
	}
	if in := s.nodes.ref(&h); in != nil {
		defer s.Forget(in.id, 1)
		return s.GetAttr(op, in.id, a)
	}
	if op.MustWait() {
		return errWouldWait
	}
	s.makeRoom(op)
	return s.statOther(op, h, a)
}

// statOther is Stat for a file that is not in memory.
func (s *Store) statOther(op *vfs.Op, h handle, a *vfs.Attr) error {
	if s.nodes.hasRoom() {
		node, err := s.byNewHandle(h)
		if err != nil {
			return err
		}
		defer s.Forget(node, 1)
		return s.GetAttr(op, node, a)
	}
	raw, ok := s.open(&h)
	if !ok {
		return vfs.ErrBadHandle
	}
	fd, err := s.openRaw(&raw, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.statFD(fd, a)
}

// StatEntry implements vfs.Stater.
func (s *Store) StatEntry(op *vfs.Op, dir vfs.NodeID, name string, a *vfs.Attr, buf []byte) ([]byte, error) {
	d, err := s.beginStat(op, dir)
	if err != nil {
		return buf, err
	}
	defer d.end()
	return d.stat(name, a, buf)
}

// StatEntries implements vfs.Stater.
func (s *Store) StatEntries(op *vfs.Op, dir vfs.NodeID, list vfs.StatList) error {
	d, err := s.beginStat(op, dir)
	if err != nil {
		return err
	}
	defer d.end()
	for name, buf := list.Next(); name != ""; name, buf = list.Next() {
		h, err := d.stat(name, &d.b.attr, buf)
		list.Tell(&d.b.attr, h, err)
	}
	return nil
}

// dirStat tells of entries of one directory.
type dirStat struct {
	s   *Store
	op  *vfs.Op
	in  *inode
	fd  int
	b   *scratch
	may bool // the caller may look for names
	// before is when it was begun, by the clock that files are stamped with, in ns.
	before int64
}

// beginStat is followed by end if there is no error.
func (s *Store) beginStat(op *vfs.Op, dir vfs.NodeID) (d dirStat, err error) {
	d = dirStat{s: s, op: op, may: op.Cred.UID == 0}
	if d.in, err = s.directory(dir); err != nil {
		return d, err
	}
	if d.fd, err = s.acquireNow(op, d.in, fdRead); err != nil {
		return d, err
	}
	if !d.may {
		if d.may, err = s.maySearch(op, d.in, d.fd); err != nil {
			s.fds.release(d.in)
			return d, err
		}
	}
	now := stampNow()
	d.before, d.b = now.Nano(), s.scratch.get()
	return d, nil
}

func (d *dirStat) end() {
	d.s.scratch.put(d.b)
	d.s.fds.release(d.in)
}

// stat is StatEntry.
func (d *dirStat) stat(name string, a *vfs.Attr, buf []byte) ([]byte, error) {
	s, b := d.s, d.b
	if err := checkName(name); err != nil {
		return buf, err
	}
	if !d.op.NoWait {
		s.makeRoom(d.op)
	}
	b.name.set(name)
	if h, ok := d.statNamed(a); ok {
		return append(buf, h.bytes()...), nil
	}
	child, err := s.openChild(d.op, d.in, d.fd, b)
	if err != nil {
		return buf, err
	}
	defer unix.Close(child)
	if err := s.nameOf(child, b, found{in: d.in, name: name}); err != nil {
		return buf, err
	}
	if known := s.nodes.findRaw(&b.raw); known != nil {
		return append(buf, known.key.bytes()...), s.attrNow(d.op, known, child, a)
	}
	h, err := s.seal(&b.raw)
	if err != nil {
		return buf, err
	}
	return append(buf, h.bytes()...), s.statFD(child, a)
}

// statNamed is stat for a file that is not in memory, in two system calls instead of
// four. Each of them looks b.name up by itself, so they must say that they mean the same
// inode, and it must be older than the first: its number could be that of a new file. False
// if they do not, or cannot, or anything is unusual.
func (d *dirStat) statNamed(a *vfs.Attr) (h handle, ok bool) {
	s, b := d.s, d.b
	if s.ids != nil || d.op.NoWait {
		return h, false
	}
	var id identity
	var err error
	if !d.may {
		if id, err = s.become(&d.op.Cred); err != nil {
			return h, false
		}
	}
	err = nameToHandleAt(d.fd, &b.name, &b.raw, &b.mountID)
	if err == nil {
		err = fstatat(d.fd, &b.name, &b.st)
	}
	id.restore()
	st := &b.st
	if err != nil || b.mountID != s.rootMount || st.Dev != s.dev || b.raw.ino() != st.Ino || !isBefore(&st.Ctim, d.before) || s.nodes.findRaw(&b.raw) != nil {
		return h, false
	}
	if h, err = s.seal(&b.raw); err != nil {
		return h, false
	}
	*a = s.attrOf(st)
	return h, true
}

// statFD tells what the backing file system says of a file that is not in memory.
func (s *Store) statFD(fd int, a *vfs.Attr) error {
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case st.Dev != s.dev:
		return unix.EACCES // something is mounted there
	case st.Nlink == 0:
		return vfs.ErrStale
	}
	*a = s.attrOf(&st)
	return nil
}

// attrOf returns the attributes of the backing file.
func (s *Store) attrOf(st *unix.Stat_t) vfs.Attr {
	return vfs.Attr{
		Type: typeOf(st.Mode), Mode: st.Mode & 0o7777, Nlink: uint32(st.Nlink),
		UID: st.Uid, GID: st.Gid, Size: uint64(st.Size), Used: uint64(st.Blocks) * 512,
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), FSID: s.fsid, Ino: st.Ino,
		Atime: timeOf(st.Atim), Mtime: timeOf(st.Mtim), Ctime: timeOf(st.Ctim),
	}
}
