package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
)

// Attributes. While data waits in the page cache, and afterwards, callers see
// the size and the times that their own calls made, not those that write-out
// leaves in the backing file. What the backing file looked like after we touched
// it last is kept (snap); if it looks different, somebody else changed it.

// look brings what is known of in up to date through fd, for op. am is held.
func (s *Store) look(op *vfs.Op, in *inode, fd int) error {
	if err := fstat(fd, &in.st); err != nil {
		return err
	}
	in.batch = op.Batch
	if in.nameless() && in.opens.Load() == 0 {
		if op.MustWait() {
			return errWouldWait // the last close of a file may take long
		}
		s.fds.drop(in)
		return vfs.ErrStale
	}
	in.adopt()
	return nil
}

// lookOnce is look, unless that was done for a call of op's batch. It is for what only
// tells: what is allowed, or done, goes by what is there now. am is held.
func (s *Store) lookOnce(op *vfs.Op, in *inode, fd int) error {
	if op.Batch != 0 && op.Batch <= in.batch && !in.nameless() {
		return nil
	}
	return s.look(op, in, fd)
}

// nameless reports whether the file had no name left when we looked last. am is
// held.
func (in *inode) nameless() bool { return in.st.Nlink == 0 }

// adopt takes over what somebody else did to the backing file. am is held.
func (in *inode) adopt() {
	now := stampOf(&in.st)
	if in.ownIO > 0 || now == in.snap {
		return
	}
	old := in.snap
	in.snap = now
	in.acl = aclUnknown
	in.ctime = later(in.ctime, now.ctime)
	if now.size == old.size && now.mtime == old.mtime {
		return // only its names, owner or rights
	}
	in.mtime = now.mtime
	in.stale.Store(true)
	if in.typ == vfs.TypeRegular && in.dirty() {
		now.size = max(now.size, in.size.Load())
	}
	in.size.Store(now.size)
}

// beginIO says that we are about to change the backing file. Changes of others
// up to now are taken over first.
func (in *inode) beginIO(fd int) {
	in.am.Lock()
	defer in.am.Unlock()
	if in.ownIO == 0 && fstat(fd, &in.st) == nil {
		in.adopt()
	}
	in.ownIO++
}

// endIO says that we changed the backing file. If nothing is left to be written to it, it
// gets the time of change that callers see; until then it has a later one.
func (s *Store) endIO(in *inode, fd int) {
	in.am.Lock()
	defer in.am.Unlock()
	if (in.m == nil || in.m.Nr(pagecache.Dirty) == 0) && s.held() == nil {
		_ = setMtime(fd, in.mtime.Sec, in.mtime.Nsec)
	}
	in.settle(fd)
	in.ownIO--
	in.changes.Add(1)
}

// backingSize returns how long the backing file was when we looked last.
func (in *inode) backingSize() uint64 {
	in.am.Lock()
	defer in.am.Unlock()
	return in.snap.size
}

// settle remembers what the backing file looks like after our own change. am is held.
func (in *inode) settle(fd int) {
	if fstat(fd, &in.st) != nil {
		return
	}
	in.snap = stampOf(&in.st)
	in.acl = aclUnknown // may have been set while we did not look
	if in.snap.size > in.size.Load() && in.ownIO == 1 {
		in.size.Store(in.snap.size) // only somebody else can have made it that long
		in.stale.Store(true)
	}
}

// touch sets the times of a change to the data. The clock is the one that the
// kernel stamps files with: files must not look older than those written before
// them. am is held.
func (in *inode) touch() {
	in.mtime = timeOf(stampNow())
	in.ctime = later(in.ctime, in.mtime)
}

// bump makes a change of something else than the data show. The backing file
// shows it, too, but cannot be told from our own write-out while that runs.
func (in *inode) bump() {
	now := timeOf(stampNow())
	in.am.Lock()
	in.ctime = later(in.ctime, now)
	in.batch = 0
	in.am.Unlock()
}

// stampNow returns the time that the kernel would stamp a file with now.
func stampNow() (ts unix.Timespec) {
	_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts)
	return ts
}

// fill writes the attributes that callers see. am is held.
func (s *Store) fill(in *inode, a *vfs.Attr) {
	*a = s.attrOf(&in.st)
	a.Mtime, a.Ctime = in.mtime, in.ctime
	if in.typ == vfs.TypeRegular {
		a.Size = in.size.Load()
		a.Used = in.used(a.Used)
	}
}

// used adds to the bytes on disk those on their way there: programs take a file
// that uses nothing for one big hole.
func (in *inode) used(disk uint64) uint64 {
	n := uint64(in.m.Nr(pagecache.Dirty)+in.m.Nr(pagecache.Writeback)) << alloc.PageShift
	most := (in.size.Load() + alloc.PageSize - 1) &^ (alloc.PageSize - 1)
	return max(disk, min(disk+n, most))
}

// attr reads the attributes of in through fd.
func (s *Store) attr(in *inode, fd int, a *vfs.Attr) error {
	return s.attrNow(&vfs.Op{}, in, fd, a)
}

// attrNow is attr, for op.
func (s *Store) attrNow(op *vfs.Op, in *inode, fd int, a *vfs.Attr) error {
	if !in.lockAttr(op) {
		return errWouldWait
	}
	defer in.am.Unlock()
	if err := s.lookOnce(op, in, fd); err != nil {
		return err
	}
	s.fill(in, a)
	return nil
}

// attrNew is attrNow for an inode that was made just now: nothing is newer than what it
// was made from.
func (s *Store) attrNew(op *vfs.Op, in *inode, a *vfs.Attr) error {
	if !in.lockAttr(op) {
		return errWouldWait
	}
	defer in.am.Unlock()
	if in.nameless() {
		return vfs.ErrStale
	}
	s.fill(in, a)
	return nil
}

// GetAttr implements vfs.FS.
func (s *Store) GetAttr(op *vfs.Op, node vfs.NodeID, a *vfs.Attr) error {
	in, err := s.inode(node)
	if err != nil {
		return err
	}
	fd, err := s.acquireNow(op, in, fdRead)
	if err != nil {
		return err
	}
	defer s.fds.release(in)
	return s.attrNow(op, in, fd, a)
}

// pre returns the weak cache consistency data of in before a change. The lock
// is held exclusively.
func (s *Store) pre(in *inode, fd int, w *vfs.WCC) error {
	*w = vfs.WCC{}
	if err := s.attr(in, fd, &w.Post); err != nil {
		return err
	}
	w.Pre, w.HasPre = w.Post.Pre(), true
	return nil
}

// post completes w after the change.
func (s *Store) post(in *inode, fd int, w *vfs.WCC) {
	w.HasPost = s.attr(in, fd, &w.Post) == nil
}

// Readlink implements vfs.FS.
func (s *Store) Readlink(_ *vfs.Op, node vfs.NodeID, buf []byte) ([]byte, error) {
	in, err := s.inode(node)
	if err != nil {
		return buf, err
	}
	if in.typ != vfs.TypeSymlink {
		return buf, unix.EINVAL
	}
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return buf, err
	}
	defer s.fds.release(in)
	return readlink(fd, buf)
}

// StatFS implements vfs.FS. Data that waits to be written is counted as written.
func (s *Store) StatFS(*vfs.Op, vfs.NodeID) (vfs.StatFS, error) {
	var sf unix.Statfs_t
	if err := unix.Fstatfs(s.rootFD, &sf); err != nil {
		return vfs.StatFS{}, err
	}
	bs := uint64(sf.Frsize)
	if bs == 0 {
		bs = uint64(sf.Bsize)
	}
	waiting := uint64(s.bdi.Pages()) << alloc.PageShift
	return vfs.StatFS{
		TotalBytes: sf.Blocks * bs,
		FreeBytes:  sf.Bfree*bs - min(waiting, sf.Bfree*bs),
		AvailBytes: sf.Bavail*bs - min(waiting, sf.Bavail*bs),
		TotalFiles: sf.Files, FreeFiles: sf.Ffree, AvailFiles: sf.Ffree,
		BlockSize: uint32(sf.Bsize), NameMax: uint32(min(uint64(sf.Namelen), maxName)),
		MaxFile: s.maxFile,
	}, nil
}
