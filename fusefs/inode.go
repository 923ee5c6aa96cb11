package fusefs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// inode is one file object in memory.
type inode struct {
	// Set when it is made.
	id  vfs.NodeID
	key handle
	typ vfs.FileType
	ino uint64
	m   *pagecache.Mapping // of a regular file or a directory
	dir *listing           // of a directory; guarded by lock

	lock  inodeLock
	size  atomic.Uint64 // of a regular file; changes with lock and am held
	stale atomic.Bool   // clean pages may be out of date
	opens atomic.Int32  // Open without Close
	dead  atomic.Bool   // the file is gone

	syncs     syncs
	changes   atomic.Uint64 // counts changes of the backing file
	writeFail writeFailure
	maxSeen   atomic.Uint64 // a size that the backing file is known to be allowed to have
	wbErr     vfs.WbErr     // data that is lost

	fds fdSet // guarded by fdCache.mu

	// Guarded by table.mu.
	refs       uint64
	gone       bool   // reaped: nothing is left but the references
	prev, next *inode // the list of unreferenced inodes
	listed     bool

	am           sync.Mutex
	st           unix.Stat_t // the backing file, when we looked last
	batch        uint64      // the number of the calls that this was for (vfs.Op)
	snap         stamp       // the backing file, after we touched it last
	mtime, ctime vfs.Time    // what callers see
	ownIO        int         // our own operations that change the backing file now
	acl          aclState
}

// dirty reports whether there are pages that the backing file does not have.
func (in *inode) dirty() bool {
	return in.m != nil && in.m.HasDirty()
}

// stamp is what tells that a file was changed.
type stamp struct {
	size         uint64
	mtime, ctime vfs.Time
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{uint64(st.Size), timeOf(st.Mtim), timeOf(st.Ctim)}
}

func timeOf(ts unix.Timespec) vfs.Time { return vfs.Time{Sec: ts.Sec, Nsec: uint32(ts.Nsec)} }

// later returns t, or the next instant after old if t is not later than that:
// a change must show.
func later(old, t vfs.Time) vfs.Time {
	if t.Sec > old.Sec || t.Sec == old.Sec && t.Nsec > old.Nsec {
		return t
	}
	old.Nsec++
	if old.Nsec == 1e9 {
		old.Sec, old.Nsec = old.Sec+1, 0
	}
	return old
}

func typeOf(mode uint32) vfs.FileType {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return vfs.TypeRegular
	case unix.S_IFDIR:
		return vfs.TypeDirectory
	case unix.S_IFLNK:
		return vfs.TypeSymlink
	case unix.S_IFBLK:
		return vfs.TypeBlock
	case unix.S_IFCHR:
		return vfs.TypeChar
	case unix.S_IFSOCK:
		return vfs.TypeSocket
	}
	return vfs.TypeFIFO
}

// newInode makes the inode of the file open as fd. It is in no table yet.
func (s *Store) newInode(fd int, key *handle) (*inode, error) {
	in := &inode{key: *key}
	if err := fstat(fd, &in.st); err != nil {
		return nil, err
	}
	if in.st.Dev != s.dev {
		return nil, unix.EACCES // something is mounted there
	}
	in.typ, in.ino = typeOf(in.st.Mode), in.st.Ino
	in.snap = stampOf(&in.st)
	in.mtime, in.ctime = in.snap.mtime, in.snap.ctime
	in.size.Store(in.snap.size)
	in.changes.Store(1) // what happened before is not known to be on disk
	in.fds.init()
	in.lock.init(in.ino, in.typ == vfs.TypeDirectory)
	switch in.typ {
	case vfs.TypeDirectory:
		in.dir = &listing{}
		fallthrough
	case vfs.TypeRegular:
		in.m = s.back.NewMapping(in.ino, in)
	}
	return in, nil
}

// inode returns a node that the caller has a reference of.
func (s *Store) inode(node vfs.NodeID) (*inode, error) {
	in := s.nodes.get(node)
	if in == nil || in.dead.Load() {
		return nil, vfs.ErrStale
	}
	return in, nil
}

func (s *Store) regular(node vfs.NodeID) (*inode, error) {
	in, err := s.inode(node)
	switch {
	case err != nil:
		return nil, err
	case in.typ == vfs.TypeDirectory:
		return nil, unix.EISDIR
	case in.typ != vfs.TypeRegular:
		return nil, unix.EINVAL
	}
	return in, nil
}

func (s *Store) directory(node vfs.NodeID) (*inode, error) {
	in, err := s.inode(node)
	if err == nil && in.typ != vfs.TypeDirectory {
		return nil, unix.ENOTDIR
	}
	return in, err
}

// instantiate returns the inode of the file open as fd, referenced once, and whether it
// was made for that. key is its handle if the caller knows it. Who may wait calls evict
// afterwards.
func (s *Store) instantiate(fd int, key *handle) (in *inode, made bool, err error) {
	var h handle
	if key == nil {
		if h, err = s.handleOf(fd); err != nil {
			return nil, false, err
		}
		key = &h
	}
	if in := s.nodes.ref(key); in != nil {
		return in, false, nil
	}
	in, err = s.newInode(fd, key)
	if err != nil {
		return nil, false, err
	}
	won, err := s.nodes.insert(in)
	if won != in && in.m != nil {
		in.m.Close()
	}
	return won, won == in, err
}

// handleOf returns the handle of the file open as fd.
func (s *Store) handleOf(fd int) (handle, error) {
	b := s.scratch.get()
	defer s.scratch.put(b)
	if err := s.nameOf(fd, b, found{}); err != nil {
		return handle{}, err
	}
	return s.handleFor(&b.raw)
}

// handleFor finds or makes the handle for what the kernel returned. The check
// is computed only for files that are not in memory.
func (s *Store) handleFor(raw *rawHandle) (handle, error) {
	if in := s.nodes.findRaw(raw); in != nil {
		return in.key, nil
	}
	return s.seal(raw)
}

// Forget implements vfs.FS.
func (s *Store) Forget(node vfs.NodeID, n uint64) {
	if in := s.nodes.forget(node, n); in != nil {
		s.discard(in)
	}
	s.evict()
}

// reap lets go of what is kept of a file that has no name any more and is not
// open. No lock is held.
func (s *Store) reap(task *waitfor.Task, in *inode) {
	if in.opens.Load() > 0 || in.dead.Swap(true) {
		return
	}
	s.nodes.unkey(in)
	in.lock.Lock(task, "")
	in.drop()
	in.lock.Unlock(task)
	in.writeFail.clear(s, in)
	s.fds.drop(in)
	if s.nodes.bury(in) {
		s.discard(in)
	}
}

// drop forgets every page. The lock is held exclusively.
func (in *inode) drop() {
	if in.dir != nil {
		in.dir.reset()
	}
	if in.m != nil {
		in.m.Truncate(0)
	}
}

// maxEvict bounds what one call drops: not much more than there is room for above the
// limit (table.hasSlack).
const maxEvict = 64

// evict forgets unreferenced, clean inodes while there are too many, and reports whether
// there may be more of them. No lock is held.
func (s *Store) evict() (more bool) {
	for range maxEvict {
		in := s.nodes.victim(s.busy)
		if in == nil {
			return false
		}
		s.discard(in)
	}
	return true
}

// SetMaxInodes changes how many inodes stay in memory when nobody refers to them, at least
// MinInodes. Those that are too many and not in use go before it returns.
func (s *Store) SetMaxInodes(n int) {
	s.nodes.setLimit(max(n, MinInodes))
	for s.evict() {
	}
}

func (s *Store) busy(in *inode) bool {
	return in.dirty() || in.opens.Load() > 0 || s.fds.pinned(in)
}

// discard gives up what an inode that left the table still holds. Only reclaim
// can still know it.
func (s *Store) discard(in *inode) {
	s.fds.drop(in)
	in.lock.Lock(nil, "")
	in.drop()
	in.lock.Unlock(nil)
	if in.m != nil {
		in.m.Close()
	}
}
