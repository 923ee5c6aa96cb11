package nfsclient

import (
	"syscall"
	"time"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim/writeback"
)

// commitEvery is how long pages stay unstable if nobody asks.
const commitEvery = time.Second

// noteUnstable lists ino for the commit worker, and wakes it if there is much to
// commit. ino.mu is held.
func (c *Client) noteUnstable(ino *inode) {
	c.listMu.Lock()
	c.unstable.add(ino)
	c.listMu.Unlock()
	if _, background := c.cfg.Domain.Thresholds(); c.bdi.Nr(writeback.Unstable) > background {
		c.commitAll()
	}
}

// commitAll asks the commit worker to commit every inode with unstable pages. It
// does not block.
func (c *Client) commitAll() {
	c.wantAll.Store(true)
	c.kickCommits()
}

// requestCommit asks the commit worker to commit ino. It does not block.
func (c *Client) requestCommit(ino *inode) {
	c.listMu.Lock()
	c.wanted.add(ino)
	c.listMu.Unlock()
	c.kickCommits()
}

func (c *Client) kickCommits() {
	select {
	case c.commitKick <- struct{}{}:
	default:
	}
}

// runCommits is the commit worker. Its scope may use the reserve, of pages and
// of slots: what it does makes memory free.
func (c *Client) runCommits() {
	task := c.cfg.Graph.NewTask("commit worker")
	defer c.cfg.Graph.Remove(task)
	sc := gfp.For(task).Memalloc().Reclaim()
	tick := time.NewTicker(commitEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.t.stop:
			return
		case <-c.commitKick:
		case <-tick.C:
			c.wantAll.Store(true)
		}
		if c.wantAll.Swap(false) {
			c.wantEverything()
		}
		for ino := c.nextWanted(); ino != nil; ino = c.nextWanted() {
			task.Begin("COMMIT")
			c.startCommit(sc, ino, c.t.stop)
			task.End()
		}
	}
}

func (c *Client) wantEverything() {
	c.listMu.Lock()
	defer c.listMu.Unlock()
	for ino := c.unstable.head; ino != nil; ino = ino.unstable.next {
		c.wanted.add(ino)
	}
}

func (c *Client) nextWanted() *inode {
	c.listMu.Lock()
	defer c.listMu.Unlock()
	ino := c.wanted.head
	if ino != nil {
		c.wanted.remove(ino)
	}
	return ino
}

// startCommit sends a COMMIT of ino unless one is in flight: then another
// follows when it ends. It waits for a slot at most. Nobody is kept from sending one by
// who waits: the commit worker has slots when others have not.
func (c *Client) startCommit(sc gfp.Scope, ino *inode, cancel <-chan struct{}) error {
	if !c.claimCommit(ino, false) {
		return nil
	}
	s, err := c.t.acquire(sc, cancel)
	if err != nil {
		return err
	}
	if !c.claimCommit(ino, true) {
		c.t.release(s)
		return nil
	}
	c.sendCommit(s, sc, ino)
	return nil
}

// claimCommit reports whether a COMMIT of ino is to be sent now; with take, the caller does.
func (c *Client) claimCommit(ino *inode, take bool) bool {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	switch {
	case ino.committing:
		ino.commitAgain = true
		return false
	case !ino.hasUnstable():
		c.relist(ino, false)
		return false
	}
	ino.committing = take
	return true
}

// sendCommit sends a COMMIT of all that is unstable now. The caller has set
// ino.committing.
func (c *Client) sendCommit(s *slot, sc gfp.Scope, ino *inode) {
	who := c.writerOf(ino)
	c.beginIO(s, nfs3.ProcCommit, sc, &who, ino, c.onCommit)
	s.own.Begin("COMMIT")
	s.own.Hold(commitResource(ino))
	ino.mu.Lock()
	s.io.seqNow, s.io.covers = ino.m.Seq(), ino.answered
	ino.commitVerf = ino.verf
	ino.commitReply = c.t.replyOf(s)
	ino.mu.Unlock()
	args := nfs3.CommitArgs{Handle: ino.fh}
	args.Encode(&s.enc)
	s.end(nil, 0)
	c.t.submit(s, nil, ino.ino)
}

// commitDone completes a COMMIT. It runs in the reader and never blocks.
func (c *Client) commitDone(s *slot) bool {
	var res nfs3.CommitResult
	err := errno(s.err)
	if err == nil {
		s.dec.Reset(s.reply)
		if res.Decode(&s.dec) != nil {
			return c.damagedIO(s)
		}
		err = nfs3.Errno(res.Status)
	}
	ino := s.io.ino
	ino.mu.Lock()
	ino.committed(&s.io, res.Verf, err)
	if res.WCC.HasPost { // a COMMIT changes no attributes (nfs3_commit_done)
		c.updateLocked(ino, &res.WCC.Post, s.io.start)
	}
	again := ino.commitAgain
	ino.endCommit()
	c.relist(ino, again)
	ino.mu.Unlock()
	c.congested.Store(false)
	c.endIO(ino)
	return true
}

// committed takes in the outcome of the COMMIT io. ino.mu is held.
func (ino *inode) committed(io *ioCall, verf vfs.Verifier, err error) {
	switch {
	case err != nil:
		// What is unstable cannot be known to be safe: report it and give it
		// up, as the kernel does.
		ino.wbErr.Set(err)
		ino.settled(io)
		ino.stale = true
	case ino.verf != ino.commitVerf:
		// A WRITE brought a new verifier meanwhile; everything from before is
		// dirty already.
	case verf == ino.commitVerf:
		ino.settled(io)
	default:
		ino.rewrite()
		ino.verf = verf
	}
}

// settled says that nothing has to be done any more for what the COMMIT io covers. ino.mu is
// held.
func (ino *inode) settled(io *ioCall) {
	ino.m.EndUnstable(io.seqNow, pagecache.Clean)
	ino.stale = ino.stale || ino.suspect // what is clean now is no better than before
	ino.covered = max(ino.covered, io.covers)
}

// relist keeps ino on the list of those with unstable pages if it has any, and
// asks for another COMMIT if again says so. ino.mu is held.
func (c *Client) relist(ino *inode, again bool) {
	c.listMu.Lock()
	defer c.listMu.Unlock()
	if !ino.hasUnstable() {
		c.unstable.remove(ino)
	} else if again {
		c.wanted.add(ino)
		c.kickCommits()
	}
}

// endCommit lets others commit. ino.mu is held.
func (ino *inode) endCommit() {
	ino.committing, ino.commitAgain = false, false
	ino.commitGen++
	ino.commits.Wake()
}

// commitWait returns when nothing is unstable that was when it was called. It
// sends COMMITs, one at a time per inode, and waits for those of others; the
// wait is recorded for sc's task, with who if not empty. The state of a page does not tell:
// one that was written to again after its WRITE is dirty.
func (c *Client) commitWait(sc gfp.Scope, who string, ino *inode, cancel <-chan struct{}) error {
	for target, covered := ino.coverage(); covered < target; _, covered = ino.coverage() {
		if err := c.startCommit(sc, ino, cancel); err != nil {
			return err
		}
		if err := c.awaitCommit(sc, who, ino, cancel); err != nil {
			return err
		}
	}
	return nil
}

// awaitCommit waits until the COMMIT in flight, if there is one, has ended.
func (c *Client) awaitCommit(sc gfp.Scope, who string, ino *inode, cancel <-chan struct{}) error {
	w := ino.commits.Prepare()
	defer ino.commits.Finish(w)
	task := sc.Task()
	for gen, first := uint64(0), true; ; first = false {
		ino.mu.Lock()
		busy, now, reply := ino.committing, ino.commitGen, ino.commitReply
		ino.mu.Unlock()
		if first {
			gen = now
		}
		if !busy || now != gen {
			return nil
		}
		task.Wait(who, "COMMIT of inode", ino.ino, reply)
		ok := w.Wait(cancel)
		task.Done()
		if !ok {
			return syscall.EINTR
		}
	}
}

// commitResource stands for the end of a COMMIT of ino: its unstable pages.
func commitResource(ino *inode) waitfor.Resource { return ino.m.WritebackResource() }
