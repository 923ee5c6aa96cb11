package fusefs

import (
	"cmp"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// syncGroup lets those who want an inode synced share the work (group commit): who comes
// while one sync runs takes part in the next, and that waits for as many as are still
// writing when it begins, for else they would need one more.
type syncGroup struct {
	mu      sync.Mutex
	cond    sync.Cond
	running bool
	writing int       // those who will come
	came    uint64    // how many have
	all     sync.Cond // came has changed
	full    bool      // the next one does metadata, too
	started uint64    // syncs
	done    uint64
	failed  uint64 // the last that failed, and why
	err     error

	data, meta uint64 // the change of the inode that the last good sync covered
}

// syncs is the syncGroup of an inode, which is made when somebody wants it: most files
// are only looked at.
type syncs struct{ made atomic.Pointer[syncGroup] }

func (s *syncs) group() *syncGroup {
	if g := s.made.Load(); g != nil {
		return g
	}
	g := &syncGroup{}
	g.cond.L, g.all.L = &g.mu, &g.mu
	if s.made.CompareAndSwap(nil, g) {
		return g
	}
	return s.made.Load()
}

func (s *syncs) failures() uint64 {
	if g := s.made.Load(); g != nil {
		return g.failures()
	}
	return 0
}

// begin says that somebody writes what it will want synced: arrive is to follow.
func (g *syncGroup) begin(task *waitfor.Task, in *inode) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writing++
	task.Hold(g.resource(in))
}

// arrive ends what begin began. mu is held.
func (g *syncGroup) arrive(task *waitfor.Task, in *inode) {
	task.Release(g.resource(in))
	g.writing--
	g.came++
	g.all.Signal()
}

// gather waits for as many as are writing now. mu is held, but not while it waits.
func (g *syncGroup) gather(task *waitfor.Task, in *inode) {
	last := g.came + uint64(g.writing)
	if g.came == last {
		return
	}
	task.Wait("", "those who write to inode", in.ino, g.resource(in))
	for g.came < last {
		g.all.Wait()
	}
	task.Done()
}

// sync makes sure that a sync which starts after now has ended well. mu is held, but not
// while it waits.
func (g *syncGroup) sync(s *Store, sc gfp.Scope, in *inode, full bool) error {
	mine := g.started + 1
	g.full = g.full || full
	for g.done < mine {
		if g.running {
			g.wait(sc.Task(), in)
			continue
		}
		g.run(s, sc.Task(), in)
	}
	if g.failed >= mine {
		return g.err
	}
	return nil
}

func (g *syncGroup) resource(in *inode) waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Writeback, ID: 1<<63 | uint64(in.id)}
}

func (g *syncGroup) wait(task *waitfor.Task, in *inode) {
	task.Wait("", "the sync of inode", in.ino, g.resource(in))
	g.cond.Wait()
	task.Done()
}

// run syncs for everybody who waits. mu is held, but not while it runs.
func (g *syncGroup) run(s *Store, task *waitfor.Task, in *inode) {
	g.running = true
	g.gather(task, in)
	g.started++
	gen, full := g.started, g.full
	g.full = false
	change := in.changes.Load()
	need := change > g.data || full && change > g.meta
	g.mu.Unlock()
	task.Hold(g.resource(in))
	var err error
	if need {
		err = s.syncFD(in, full)
	}
	task.Release(g.resource(in))
	g.mu.Lock()
	g.running, g.done = false, gen
	switch {
	case err != nil:
		g.failed, g.err = gen, err
	case need:
		g.data = max(g.data, change)
		if full {
			g.meta = max(g.meta, change)
		}
	}
	g.cond.Broadcast()
}

// syncFD syncs the backing file. What the kernel could not write it drops, so
// after an error the data of clean pages may be gone: the verifier says so.
func (s *Store) syncFD(in *inode, full bool) error {
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return err
	}
	defer s.fds.release(in)
	if err := s.held(); err != nil {
		return err
	}
	switch {
	case in.typ != vfs.TypeRegular && in.typ != vfs.TypeDirectory:
		err = unix.Syncfs(s.rootFD) // it cannot be opened
	case full:
		err = unix.Fsync(fd)
	default:
		err = unix.Fdatasync(fd)
	}
	if err != nil {
		s.afterLoss(in, err)
		return err
	}
	return s.held() // else it may have come too late
}

// afterLoss is called when what was written to in may be in no page and not on the disk:
// what is still in memory is written again, and clients send the rest again
// when they see another verifier. Who has it open here is told of err.
func (s *Store) afterLoss(in *inode, err error) {
	in.changes.Add(1)
	in.wbErr.Set(err)
	s.verifier.Add(1)
	if in.typ == vfs.TypeRegular && !in.stale.Load() { // what is stale would go over what others have written
		in.m.DirtyAll()
	}
}

// syncInode puts on stable storage what was written to in before the call, and
// with full its attributes, too. Pages are written by the caller itself.
func (s *Store) syncInode(sc gfp.Scope, in *inode, full bool) error {
	return s.syncSince(sc, in, full, in.syncs.failures())
}

// syncSince is syncInode for a caller who wrote when in.syncs.failures was before, or
// later: it reports each failure since.
func (s *Store) syncSince(sc gfp.Scope, in *inode, full bool, before uint64) error {
	g := in.syncs.group()
	g.begin(sc.Task(), in)
	err := s.writeDirty(sc, in)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.arrive(sc.Task(), in)
	if err == nil {
		err = g.sync(s, sc, in, full)
	}
	// The kernel reports an error to one sync only; ours may have succeeded
	// because another one failed, with the data that it was to cover.
	if err == nil && g.failed != before {
		err = g.err
	}
	return err
}

func (g *syncGroup) failures() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}

// writeDirty writes out every page that is dirty now. It reports each failure
// since it began, whoever noticed it.
func (s *Store) writeDirty(sc gfp.Scope, in *inode) error {
	if in.typ != vfs.TypeRegular {
		return nil
	}
	failures := in.writeFail.seq.Load()
	// A page that was written to again while under write-back is dirty only
	// when that ends.
	in.m.WaitWriteback(sc, in.m.Seq(), nil)
	upTo := in.m.Seq()
	b := s.scratch.get()
	_, err := s.writeSome(in, b, 1<<62, upTo)
	s.scratch.put(b)
	// Flushers may have taken some of these pages since upTo, so it is what is under
	// write-back now that is waited for.
	in.m.WaitWriteback(sc, in.m.Seq(), nil)
	if err == nil && in.writeFail.seq.Load() != failures {
		err = in.writeFail.err()
		if err == nil { // failed and succeeded since
			return s.writeDirty(sc, in)
		}
	}
	return err
}

// Sync implements vfs.FS.
func (s *Store) Sync(op *vfs.Op, node vfs.NodeID) error {
	in, err := s.inode(node)
	if err != nil {
		return err
	}
	if s.ids != nil {
		// First, that no old record outlives a file whose inode number another
		// one has got.
		if err := s.ids.disk.sync(); err != nil {
			return err
		}
	}
	since := in.wbErr.Count()
	err = s.syncInode(op.Scope, in, true)
	if op.File == nil || err == vfs.ErrJukebox { // NFS has the verifier; who is to try again is told then
		return err
	}
	return cmp.Or(err, in.wbErr.Advance(op.File, since))
}

// Commit implements vfs.FS. It puts the whole file on stable storage, which
// RFC 1813 §3.3.21 allows.
func (s *Store) Commit(op *vfs.Op, node vfs.NodeID, _ uint64, _ uint32) (vfs.Verifier, vfs.WCC, error) {
	var w vfs.WCC
	in, err := s.regular(node)
	if err != nil {
		return s.Verifier(), w, err
	}
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return s.Verifier(), w, err
	}
	defer s.fds.release(in)
	err = s.syncInode(op.Scope, in, true)
	s.post(in, fd, &w)
	w.Pre, w.HasPre = w.Post.Pre(), w.HasPost // this has changed nothing; others may have, meanwhile
	// Read last: whatever was lost before, the client sees that it changed.
	return s.Verifier(), w, err
}

// Open implements vfs.FS. The descriptor stays pinned until Close.
func (s *Store) Open(op *vfs.Op, node vfs.NodeID, write bool) error {
	in, err := s.inode(node)
	if err != nil {
		return err
	}
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return err
	}
	want := uint32(vfs.MayRead)
	if write {
		want = vfs.MayWrite
	}
	in.am.Lock()
	if err = s.look(op, in, fd); err == nil {
		err = s.ioPermission(op, in, fd, want)
	}
	if err == nil {
		in.opens.Add(1)
		in.wbErr.Open(op.File)
	}
	in.am.Unlock()
	if err != nil {
		s.fds.release(in)
	}
	return err
}

// Flush implements vfs.FS. There is nothing to do: what was written is visible
// to everybody already.
func (s *Store) Flush(*vfs.Op, vfs.NodeID) error { return nil }

// Close implements vfs.FS.
func (s *Store) Close(node vfs.NodeID) {
	in := s.nodes.get(node)
	if in == nil {
		return
	}
	last := in.opens.Add(-1) == 0
	if last {
		in.am.Lock()
		last = in.nameless()
		in.am.Unlock()
	}
	s.fds.release(in)
	if last {
		s.reap(nil, in)
	}
}
