package fusefs

import (
	"encoding/binary"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"loopnfs/internal/fslog"
	"loopnfs/internal/vfs"
)

// dirOp is one change of a directory, under its lock.
type dirOp struct {
	s   *Store
	op  *vfs.Op
	in  *inode
	fd  int
	wcc vfs.WCC
	b   *scratch
	ids uint64 // idTable.mark
	was handle // of what a name stands for, for the witness
}

// enter begins a change of directory dir: its lock is taken and its attributes
// are read. leave ends it.
func (s *Store) enter(op *vfs.Op, dir vfs.NodeID, name string) (*dirOp, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	in, err := s.directory(dir)
	if err != nil {
		return nil, err
	}
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return nil, err
	}
	d := &dirOp{s: s, op: op, in: in, fd: fd, b: s.scratch.get()}
	in.lock.Lock(op.Scope.Task(), "")
	err = s.pre(in, fd, &d.wcc)
	if err == nil && in.dead.Load() {
		err = vfs.ErrStale
	}
	if err != nil {
		d.release()
		return nil, err
	}
	return d, nil
}

// enterNew is enter for calls that make something.
func (s *Store) enterNew(op *vfs.Op, dir vfs.NodeID, name string) (*dirOp, error) {
	s.makeRoom(op)
	if s.nodes.noRoom() {
		return nil, unix.ENOMEM // and nothing is made
	}
	d, err := s.enter(op, dir, name)
	if err != nil || s.ids == nil {
		return d, err
	}
	if err := s.ids.room(); err != nil {
		d.release()
		return nil, err
	}
	d.ids = s.ids.mark()
	return d, nil
}

// leave ends the change: the attributes are read again, and what is cached of
// the directory's content is brought up to date.
func (d *dirOp) leave(changed bool) {
	d.s.post(d.in, d.fd, &d.wcc)
	if changed {
		d.show()
		d.in.changes.Add(1)
		d.s.relist(d.op, d.in, d.fd)
	}
	d.release()
}

// show makes the change show in the time of change. Most kernels stamp files with a clock that
// stands still for some milliseconds, and who listed the directory in them would not look again.
func (d *dirOp) show() {
	d.in.am.Lock()
	defer d.in.am.Unlock()
	if d.in.ctime == d.wcc.Pre.Ctime {
		d.in.ctime = later(d.in.ctime, d.in.ctime)
		d.in.batch = 0
		d.wcc.Post.Ctime = d.in.ctime
	}
}

func (d *dirOp) release() {
	d.in.lock.Unlock(d.op.Scope.Task())
	d.s.scratch.put(d.b)
	d.s.fds.release(d.in)
}

// as runs do with the identity of the caller.
func (d *dirOp) as(do func() error) error {
	id, err := d.s.become(&d.op.Cred)
	if err != nil {
		return err
	}
	defer id.restore()
	if err := d.s.held(); err != nil {
		return err
	}
	err = do()
	if err != nil && isGone(d.fd) {
		return vfs.ErrStale // removed since enter: that takes the lock of its parent
	}
	return err
}

// announced is as, of which the witness of the call is told; was and whole are for it.
func (d *dirOp) announced(was []byte, whole bool, do func() error) error {
	w := d.op.Witness
	if err := w.Before(was, whole); err != nil {
		return err
	}
	err := d.as(do)
	if err != nil {
		w.Undone()
	}
	return err
}

// asMaker is as for what makes something called name; whole is for the witness, which is
// not told of what exists.
func (d *dirOp) asMaker(name string, whole bool, do func() error) error {
	if d.op.Witness != nil {
		var st unix.Stat_t
		d.b.name.set(name)
		if fstatat(d.fd, &d.b.name, &st) == unix.ENOENT {
			return d.announced(nil, whole, do)
		}
	}
	return d.as(do)
}

// asRemover is as for what takes name away from t. The witness is not told of what it could
// not know again.
func (d *dirOp) asRemover(name string, t *target, do func() error) error {
	if d.op.Witness == nil || !d.handleOf(name, t) {
		return d.as(do)
	}
	return d.announced(d.was.bytes(), true, do)
}

// asMover is asRemover for what gives t another name, newName in to, which is over's so
// far. If both are one file, nothing is changed.
func (d *dirOp) asMover(name string, t *target, to *dirOp, newName string, over *target, do func() error) error {
	if d.op.Witness == nil || !d.handleOf(name, t) {
		return d.as(do)
	}
	was := d.was
	if over.fd >= 0 && to.handleOf(newName, over) && to.was == was {
		return d.as(do)
	}
	d.was = was
	return d.announced(d.was.bytes(), true, do)
}

// handleOf puts the handle of what name stands for into was.
func (d *dirOp) handleOf(name string, t *target) (ok bool) {
	if d.s.ids != nil {
		// Of a record that is lost, the file would have another handle later.
		ok = t.fd >= 0 && d.s.ids.known(&t.was, &d.b.raw) && d.s.ids.disk.sync() == nil
	} else {
		d.b.name.set(name)
		ok = nameToHandleAt(d.fd, &d.b.name, &d.b.raw, &d.b.mountID) == nil
	}
	if !ok {
		return false
	}
	h, err := d.s.seal(&d.b.raw)
	d.was = h
	return err == nil
}

// isGone reports whether the file open as fd has no name any more.
func isGone(fd int) bool {
	var st unix.Stat_t
	return fstat(fd, &st) == nil && st.Nlink == 0
}

// newMode returns the mode that an object is made with; the rest is set by
// setNew.
func newMode(set *vfs.SetAttr) uint32 {
	if set.SetMode {
		return set.Mode & 0o7777
	}
	return 0
}

// inOneStep reports whether an object is as set says when it gets its name.
func inOneStep(op *vfs.Op, set *vfs.SetAttr) bool {
	owner := op.Cred.UID == 0 && (set.SetUID || set.SetGID)
	times := set.SetAtime != vfs.DontChange || set.SetMtime != vfs.DontChange
	return !owner && !times && newMode(set)&0o7000 == 0 && !(set.SetSize && set.Size > 0)
}

// withDir reports whether what is made so that it is whole when it gets its name is on stable
// storage when the directory is: all of it is in the log by then. XFS logs an ACL or a label
// that is inherited later, so what is made there is synced itself.
func (d *dirOp) withDir(whole bool) bool { return whole && d.s.fsLog == fslog.Ext4 }

// setNew gives a new object, open as fd, what the call that made it could not.
// Only root may choose the owner. It runs with the identity of the caller.
func setNew(op *vfs.Op, typ vfs.FileType, fd int, set *vfs.SetAttr) error {
	own := *set
	if op.Cred.UID != 0 {
		own.SetUID, own.SetGID = false, false
	}
	if err := setOwner(fd, &own); err != nil {
		return err
	}
	if err := setRest(typ, fd, set); err != nil {
		return err
	}
	if set.SetAtime == vfs.DontChange && set.SetMtime == vfs.DontChange {
		return nil
	}
	ts := [2]unix.Timespec{timespec(set.SetAtime, set.Atime), timespec(set.SetMtime, set.Mtime)}
	return setTimes(fd, &ts)
}

// setRest sets the bits of the mode that the call which made the object leaves out. A
// directory, which is open with O_PATH, keeps the set-gid bit that it has inherited.
func setRest(typ vfs.FileType, fd int, set *vfs.SetAttr) error {
	switch {
	case !set.SetMode || set.Mode&0o7000 == 0:
		return nil
	case typ != vfs.TypeDirectory:
		return setMode(typ, fd, set.Mode)
	case set.Mode&0o6000 == 0:
		return nil // mkdir(2) knows the sticky bit
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return err
	}
	return chmodPath(fd, set.Mode&0o7777|st.Mode&unix.S_ISGID)
}

// Create implements vfs.FS.
func (s *Store) Create(op *vfs.Op, dir vfs.NodeID, name string, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (vfs.Entry, vfs.WCC, error) {
	d, err := s.enterNew(op, dir, name)
	if err != nil {
		return vfs.Entry{}, vfs.WCC{}, err
	}
	e, made, err := d.create(name, how, set, verf)
	d.leave(made)
	if err == nil && !made && how == vfs.Unchecked && set.SetSize {
		// An existing file is only given its size, RFC 1813 §3.3.8.
		err = s.resize(op, &e, set.Size)
	}
	return e, d.wcc, err
}

func (s *Store) resize(op *vfs.Op, e *vfs.Entry, size uint64) error {
	w, err := s.SetAttr(op, e.Node, &vfs.SetAttr{SetSize: true, Size: size})
	if err != nil {
		s.Forget(e.Node, 1)
		*e = vfs.Entry{}
		return err
	}
	e.Attr = w.Post
	return nil
}

func (d *dirOp) create(name string, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (e vfs.Entry, made bool, err error) {
	atime, mtime := verifierTimes(verf)
	if how == vfs.Exclusive {
		set = &vfs.SetAttr{SetAtime: vfs.SetToClientTime, Atime: atime, SetMtime: vfs.SetToClientTime, Mtime: mtime}
	}
	fd := -1
	err = unix.EOPNOTSUPP
	whole := true
	if how == vfs.Exclusive {
		err = d.asMaker(name, true, func() (err error) {
			fd, err = d.createWhole(name, set)
			made = err == nil
			return err
		})
	}
	if err == unix.EOPNOTSUPP {
		whole = inOneStep(d.op, set)
		err = d.asMaker(name, whole, func() (err error) {
			fd, made, err = d.createInSteps(name, set)
			return err
		})
	}
	if fd >= 0 {
		defer func() { d.s.keep(e.Node, fd) }()
	}
	if err == nil {
		e, err = d.s.entry(d.op, fd, d.b, found{d.in, name, d.ids})
		e.WithDir = d.withDir(whole)
		return e, made, err
	}
	if made || !errors.Is(err, unix.EEXIST) || how == vfs.Guarded {
		return e, made, err
	}
	if e, err = d.existing(name); err != nil {
		return e, false, err
	}
	if how == vfs.Exclusive && (e.Attr.Size != 0 || e.Attr.Atime != atime || e.Attr.Mtime != mtime) {
		err = unix.EEXIST
	}
	if err != nil {
		d.s.Forget(e.Node, 1)
		return vfs.Entry{}, false, err
	}
	return e, false, nil
}

// createInSteps makes a file, and then gives it its attributes.
func (d *dirOp) createInSteps(name string, set *vfs.SetAttr) (fd int, made bool, err error) {
	fd, err = d.s.openReal(d.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, newMode(set))
	if err != nil {
		return -1, false, err
	}
	if set.SetSize && set.Size > 0 {
		if err := ftruncate(fd, set.Size); err != nil {
			return fd, true, err
		}
	}
	return fd, true, setNew(d.op, vfs.TypeRegular, fd, set)
}

// createWhole makes a file that has its attributes when it gets its name: a server that
// dies in between leaves no file without a verifier. EOPNOTSUPP if the file system cannot.
func (d *dirOp) createWhole(name string, set *vfs.SetAttr) (int, error) {
	fd, err := d.s.openReal(d.fd, ".", unix.O_TMPFILE|unix.O_RDWR, newMode(set))
	if err == unix.EPERM && isGone(d.fd) {
		return -1, vfs.ErrStale // ext4 makes no inode there
	}
	if err != nil {
		return -1, err
	}
	if err = setNew(d.op, vfs.TypeRegular, fd, set); err == nil {
		err = linkFD(fd, d.fd, name)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// linkFD gives the file open as fd a name. A link from a descriptor needs a capability
// that the caller does not have; /proc is the way that needs none.
func linkFD(fd, dir int, name string) error {
	return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), dir, name, unix.AT_SYMLINK_FOLLOW)
}

// keep leaves the descriptor that a file was made with to its inode: most new
// files are written next. Without a node it is closed.
func (s *Store) keep(node vfs.NodeID, fd int) {
	in := s.nodes.get(node)
	if in == nil {
		unix.Close(fd)
		return
	}
	s.fds.pin(in, fdWrite)
	s.fds.install(in, fdWrite, fd)
	s.fds.release(in)
}

// existing looks up a regular file that is there already, as the caller.
func (d *dirOp) existing(name string) (vfs.Entry, error) {
	d.b.name.set(name)
	fd, err := d.s.openChild(d.op, d.in, d.fd, d.b)
	if err != nil {
		return vfs.Entry{}, err
	}
	defer unix.Close(fd)
	e, err := d.s.entry(d.op, fd, d.b, found{in: d.in, name: name})
	if err == nil && e.Attr.Type != vfs.TypeRegular {
		d.s.Forget(e.Node, 1)
		return vfs.Entry{}, unix.EEXIST
	}
	return e, err
}

// verifierTimes hides the verifier of an exclusive CREATE in the times of the
// file, where it is on stable storage with the file; 31 bits of each half, so
// that every file system can keep them.
func verifierTimes(v vfs.Verifier) (atime, mtime vfs.Time) {
	return vfs.Time{Sec: int64(binary.BigEndian.Uint32(v[4:]) &^ (1 << 31))},
		vfs.Time{Sec: int64(binary.BigEndian.Uint32(v[:4]) &^ (1 << 31))}
}

// make makes an object with call and returns its entry.
func (s *Store) make(op *vfs.Op, dir vfs.NodeID, name string, typ vfs.FileType, set *vfs.SetAttr, call func(dirFD int) error) (vfs.Entry, vfs.WCC, error) {
	d, err := s.enterNew(op, dir, name)
	if err != nil {
		return vfs.Entry{}, vfs.WCC{}, err
	}
	fd, made, whole := -1, false, inOneStep(op, set)
	err = d.asMaker(name, whole, func() error {
		if err := call(d.fd); err != nil {
			return err
		}
		made = true
		fd, err = d.dress(name, typ, set)
		if err == vfs.ErrJukebox { // who tries again must not find that it is there
			d.unmake(name, typ)
		}
		return err
	})
	var e vfs.Entry
	if err == nil {
		e, err = d.s.entry(op, fd, d.b, found{d.in, name, d.ids})
		// What is neither file nor directory has nothing that could be logged apart.
		e.WithDir = d.withDir(whole) || whole && typ != vfs.TypeDirectory
	}
	if fd >= 0 {
		unix.Close(fd)
	}
	d.leave(made)
	return e, d.wcc, err
}

// dress gives a new object the attributes asked for, and returns it open with O_PATH.
func (d *dirOp) dress(name string, typ vfs.FileType, set *vfs.SetAttr) (int, error) {
	d.b.name.set(name)
	fd, err := d.s.openAt(d.fd, d.b, 0)
	if err != nil {
		return -1, err
	}
	if err = setNew(d.op, typ, fd, set); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// unmake takes away what was made just now.
func (d *dirOp) unmake(name string, typ vfs.FileType) {
	flags := 0
	if typ == vfs.TypeDirectory {
		flags = unix.AT_REMOVEDIR
	}
	_ = unix.Unlinkat(d.fd, name, flags)
}

// Mkdir implements vfs.FS.
func (s *Store) Mkdir(op *vfs.Op, dir vfs.NodeID, name string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	return s.make(op, dir, name, vfs.TypeDirectory, set, func(fd int) error {
		return unix.Mkdirat(fd, name, newMode(set))
	})
}

// Symlink implements vfs.FS.
func (s *Store) Symlink(op *vfs.Op, dir vfs.NodeID, name, target string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	return s.make(op, dir, name, vfs.TypeSymlink, set, func(fd int) error {
		return unix.Symlinkat(target, fd, name)
	})
}

// Mknod implements vfs.FS.
func (s *Store) Mknod(op *vfs.Op, dir vfs.NodeID, name string, typ vfs.FileType, major, minor uint32, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	var fmtBits uint32
	switch typ {
	case vfs.TypeBlock:
		fmtBits = unix.S_IFBLK
	case vfs.TypeChar:
		fmtBits = unix.S_IFCHR
	case vfs.TypeSocket:
		fmtBits = unix.S_IFSOCK
	case vfs.TypeFIFO:
		fmtBits = unix.S_IFIFO
	default:
		return vfs.Entry{}, vfs.WCC{}, unix.EINVAL
	}
	return s.make(op, dir, name, typ, set, func(fd int) error {
		return unix.Mknodat(fd, name, fmtBits|newMode(set), int(unix.Mkdev(major, minor)))
	})
}
