package nfsclient

import (
	"sync"
	"sync/atomic"
	"syscall"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/waitq"
)

// inode is a file object of the server that is known here.
type inode struct {
	id  vfs.NodeID
	fh  nfs3.FileHandle
	ino uint64 // fileid3, for messages
	key uint64 // of the inode in the wait-for graph
	typ vfs.FileType
	m   *pagecache.Mapping // of a regular file

	// ios counts asynchronous calls in flight.
	ios atomic.Int32

	// refs, opens and silly are guarded by table.mu.
	refs  uint64
	opens int
	silly *sillyName

	// sem is held, with one token in it, while the content or the size is
	// changed here (i_rwsem).
	sem chan struct{}

	commits waitq.Queue // those who wait for a COMMIT to end
	wbErr   vfs.WbErr

	// Guarded by Client.listMu.
	unstable   inodeLink // on Client.unstable
	wantCommit inodeLink // on Client.wanted

	mu sync.Mutex // guards what follows

	attr    vfs.Attr // of the server
	fetched int64    // when, ns; 0: not to be trusted
	applied uint64   // Client.seq when attr was last taken
	barrier uint64   // replies to calls begun before that are ignored
	base    vfs.PreAttr
	hasBase bool // base is what the cached pages were read under
	stale   bool // pages may be older than the server's
	suspect bool // likewise, those that were written to here and are not committed
	gen     uint64
	access  [2]accessEntry
	nextAcc int
	fresh   bool // just created here, by maker
	made    bool // likewise, and open since
	maker   uint32

	size     uint64   // i_size
	grown    bool     // others have written behind ours, and the pages here lack it
	ours     uint64   // the size before, if grown
	mtime    vfs.Time // of the last write here
	pending  int      // writes between growing size and marking dirty
	writes   int      // WRITE calls in flight
	overlap  bool     // there was more than one since there was none
	writer   identity // of the last write
	hasWrite bool

	answered uint64       // WRITEs that were answered UNSTABLE
	covered  uint64       // as many of them are committed, or to be written again
	verf     vfs.Verifier // of what is unstable
	hasVerf  bool
	lost     uint64 // how often unstable pages had to be written again
	rerr     error  // of the last failed READ

	committing  bool
	commitAgain bool
	commitGen   uint64           // counts COMMITs that ended
	commitReply waitfor.Resource // of the COMMIT in flight
	commitVerf  vfs.Verifier     // verf when it was sent

	ra readAhead
}

// isFile reports whether ino is a regular file.
func (ino *inode) isFile() bool { return ino.typ == vfs.TypeRegular }

// lockResource stands for inode.sem.
func (ino *inode) lockResource() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.InodeLock, ID: ino.key}
}

// lockFor takes ino.sem for op. It returns EINTR when op.Cancel is closed.
func (ino *inode) lockFor(op *vfs.Op) error {
	task := op.Scope.Task()
	if ino.tryLock() {
		task.Hold(ino.lockResource())
		return nil
	}
	if op.MustWait() {
		return errWouldWait
	}
	task.Wait("", "the client's lock of inode", ino.ino, ino.lockResource())
	defer task.Done()
	select {
	case ino.sem <- struct{}{}:
		task.Hold(ino.lockResource())
		return nil
	case <-op.Cancel:
		return syscall.EINTR
	}
}

func (ino *inode) tryLock() bool {
	select {
	case ino.sem <- struct{}{}:
		return true
	default:
		return false
	}
}

func (ino *inode) unlock(sc gfp.Scope) {
	sc.Task().Release(ino.lockResource())
	<-ino.sem
}

// dirty reports whether there is data here that was not sent. ino.mu is held.
func (ino *inode) dirty() bool {
	return ino.m != nil && (ino.pending > 0 || ino.m.HasDirty())
}

// unwritten reports whether anything is here that the server does not have on
// stable storage, or is on its way in any direction.
func (ino *inode) unwritten() bool {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	return ino.dirty() || ino.hasUnstable()
}

// hasUnstable reports whether there is data that was sent and not committed. ino.mu is held.
func (ino *inode) hasUnstable() bool { return ino.covered < ino.answered }

// coverage returns answered and covered.
func (ino *inode) coverage() (answered, covered uint64) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	return ino.answered, ino.covered
}

// inodeLink chains an inode in a list; see inodeList.
type inodeLink struct {
	on         bool
	prev, next *inode
}

// inodeList is a list of inodes, chained by the link that at returns.
type inodeList struct {
	at         func(*inode) *inodeLink
	head, tail *inode
}

func (l *inodeList) add(i *inode) {
	k := l.at(i)
	if k.on {
		return
	}
	*k = inodeLink{on: true, prev: l.tail}
	if l.tail != nil {
		l.at(l.tail).next = i
	} else {
		l.head = i
	}
	l.tail = i
}

func (l *inodeList) remove(i *inode) {
	k := l.at(i)
	if !k.on {
		return
	}
	if k.prev != nil {
		l.at(k.prev).next = k.next
	} else {
		l.head = k.next
	}
	if k.next != nil {
		l.at(k.next).prev = k.prev
	} else {
		l.tail = k.prev
	}
	*k = inodeLink{}
}
