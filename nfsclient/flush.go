package nfsclient

import (
	"math"
	"syscall"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/reclaim/writeback"
)

// flusherSide is what the flusher calls (writeback.Writer, writeback.Committer).
type flusherSide struct{ *Client }

// WritePages starts to write up to nr pages of the file that was dirty first.
func (f flusherSide) WritePages(sc gfp.Scope, nr int) int {
	m := f.back.NextDirty()
	if m == nil {
		return 0
	}
	n, _ := f.startWrites(sc, m.Host.(*inode), math.MaxUint64, nr, f.t.stop)
	return n
}

// CommitPages asks the commit worker to commit everything unstable.
func (f flusherSide) CommitPages() { f.commitAll() }

// startWrites starts to write up to nr pages of ino that were dirty at upTo or
// before, and returns how many. It waits for slots, never for memory.
func (c *Client) startWrites(sc gfp.Scope, ino *inode, upTo uint64, nr int, cancel <-chan struct{}) (int, error) {
	total := 0
	for total < nr && ino.m.Any(pagecache.Dirty, upTo) {
		s, err := c.t.acquire(sc, cancel)
		if err != nil {
			return total, err
		}
		c.beginWrite(s, sc, ino)
		n := ino.m.BeginWriteback(s.io.folios[:min(c.wpages, nr-total)], upTo)
		s.io.folios = s.io.folios[:n]
		if n == 0 {
			c.dropWrite(s)
			break
		}
		c.sendWrite(s)
		total += n
	}
	return total, nil
}

// beginWrite prepares s for a WRITE of ino on behalf of whoever wrote to it.
func (c *Client) beginWrite(s *slot, sc gfp.Scope, ino *inode) {
	who := c.writerOf(ino)
	c.beginIO(s, nfs3.ProcWrite, sc, &who, ino, c.onWrite)
	s.own.Begin("write-back")
	s.own.Hold(writeback.DirtyResource)
	s.own.Hold(ino.m.WritebackResource())
}

func (c *Client) dropWrite(s *slot) {
	c.endIO(s.io.ino)
	c.t.release(s)
}

// writerOf returns who wrote to ino last: the server checks the right to write
// of whoever the WRITE is for.
func (c *Client) writerOf(ino *inode) identity {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.hasWrite {
		return ino.writer
	}
	return c.mounter
}

// sendWrite sends the folios in s, which are neighbours and under write-back, as
// far as the file goes.
func (c *Client) sendWrite(s *slot) {
	io, ino := &s.io, s.io.ino
	io.off = io.folios[0].Index << alloc.PageShift
	ino.mu.Lock()
	size := ino.size
	if ino.grown {
		size = min(size, ino.ours)
	}
	ino.writes++
	ino.overlap = ino.overlap || ino.writes > 1
	ino.mu.Unlock()
	io.count = int(min(uint64(len(io.folios))<<alloc.PageShift, size-min(size, io.off)))
	s.first.Store(io.folios[0].Index)
	s.pages.Store(uint64(len(io.folios)))
	s.carries.Store(ino)
	if io.count == 0 { // all behind the end: the file was truncated
		c.endWrite(s, nil)
		c.t.release(s)
		return
	}
	s.encodeWrite()
	c.t.submit(s, nil, ino.ino)
}

// encodeWrite encodes the arguments for what has not been written.
func (s *slot) encodeWrite() {
	io := &s.io
	left := io.count - io.moved
	args := nfs3.WriteArgs{Handle: io.ino.fh, Offset: io.off + uint64(io.moved), Count: uint32(left), Stable: vfs.Unstable}
	args.Encode(&s.enc)
	s.out = append(s.out[:0], s.enc.Buf)
	s.out = ranges(s.t.arena, s.out, io.folios, io.moved, left)
	s.finishRecord(left)
}

// writeDone completes a WRITE. It runs in the reader and never blocks.
func (c *Client) writeDone(s *slot) bool {
	var res nfs3.WriteResult
	err := errno(s.err)
	if err == nil {
		s.dec.Reset(s.reply)
		if derr := res.Decode(&s.dec); derr != nil || int64(res.Count) > int64(s.io.count-s.io.moved) {
			return c.damagedIO(s)
		}
		err = nfs3.Errno(res.Status)
		c.wroteWCC(&s.io, &res.WCC)
	}
	if err == nil && res.Count == 0 {
		err = syscall.EIO
	}
	if err == nil {
		s.io.wrote(&res)
		if s.io.moved < s.io.count {
			s.again()
			s.encodeWrite()
			c.t.resubmit(s)
			return false
		}
	}
	c.endWrite(s, err)
	return true
}

// damagedIO has an asynchronous call made again whose results make no sense.
func (c *Client) damagedIO(s *slot) bool {
	if c.t.broken(s, nil) {
		return false
	}
	s.err = errDamaged
	return s.complete(s)
}

func (c *Client) wroteWCC(io *ioCall, w *vfs.WCC) {
	io.ino.mu.Lock()
	defer io.ino.mu.Unlock()
	c.updateWCCLocked(io.ino, w, io.start, !io.ino.overlap && io.moved == 0)
}

// wrote adds one reply to what is known of a WRITE that may have several.
func (io *ioCall) wrote(res *nfs3.WriteResult) {
	io.moved += int(res.Count)
	if res.Committed != vfs.Unstable {
		return
	}
	io.stable = false
	io.mixed = io.mixed || io.hasV && io.verf != res.Verf
	io.verf, io.hasV = res.Verf, true
}

// endWrite ends the write-back of the folios in s. After an error of the
// server's the data is given up: it is reported once, and the pages are dropped
// before they are used again (nfs_write_error).
func (c *Client) endWrite(s *slot, err error) {
	io, ino := &s.io, s.io.ino
	s.carries.Store(nil)
	ino.mu.Lock()
	to := pagecache.Clean
	switch {
	case err != nil:
		ino.wbErr.Set(err)
		ino.stale, ino.fetched = true, 0 // the file does not end where it was to
	case io.mixed:
		to = pagecache.Dirty
		ino.lost++
	case !io.stable:
		to = pagecache.Unstable
		ino.verifier(io.verf)
		ino.answered++
	default:
		ino.stale = ino.stale || ino.suspect
	}
	ino.m.EndWriteback(io.folios, to)
	if ino.writes--; ino.writes == 0 {
		ino.overlap = false
	}
	if to == pagecache.Unstable {
		c.noteUnstable(ino)
	}
	ino.mu.Unlock()
	c.arena.PutAll(io.folios)
	c.endIO(ino)
}

// verifier takes in the verifier of an UNSTABLE write. If it is a new one, the
// server may have lost what was unstable: that is dirty again. ino.mu is held.
func (ino *inode) verifier(v vfs.Verifier) {
	if ino.hasVerf && ino.verf != v {
		ino.rewrite()
	}
	ino.verf, ino.hasVerf = v, true
}

// rewrite makes everything unstable dirty again. What was written to since is dirty already,
// and to be waited for once more. ino.mu is held.
func (ino *inode) rewrite() {
	if !ino.hasUnstable() {
		return
	}
	ino.m.EndUnstable(math.MaxUint64, pagecache.Dirty)
	ino.covered = ino.answered
	ino.lost++
	ino.m.Backing().BDI().WakeFlusher()
}

// writeOut writes everything that is dirty now and waits until it is written
// (filemap_write_and_wait). The second round is for pages that were written to
// while they were on their way: they are dirty once more when the first is over.
func (c *Client) writeOut(op *vfs.Op, ino *inode) error {
	for range 2 {
		for upTo := ino.m.Seq(); ; {
			n, err := c.startWrites(op.Scope, ino, upTo, math.MaxInt, op.Cancel)
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
		}
		if !ino.m.WaitWriteback(op.Scope, ino.m.Seq(), op.Cancel) {
			return syscall.EINTR
		}
	}
	return nil
}

// sync writes back and commits what was written to ino before the call, in the
// scope of the caller, and returns the error of any write-back since the last
// report (nfs_file_fsync).
func (c *Client) sync(op *vfs.Op, ino *inode) error {
	return c.syncAnd(op, ino, (*vfs.WbErr).Advance)
}

// report is Advance or Check of vfs.WbErr.
type report func(e *vfs.WbErr, f *vfs.File, since uint64) error

// syncAnd is sync with another report.
func (c *Client) syncAnd(op *vfs.Op, ino *inode, report report) error {
	since := ino.wbErr.Count()
	if err := c.makeStable(op, ino); err != nil {
		return err
	}
	return report(&ino.wbErr, op.File, since)
}

// makeStable is sync without the report.
func (c *Client) makeStable(op *vfs.Op, ino *inode) error {
	for {
		ino.mu.Lock()
		lost := ino.lost
		ino.mu.Unlock()
		if err := c.writeOut(op, ino); err != nil {
			return err
		}
		if err := c.commitWait(op.Scope, "", ino, op.Cancel); err != nil {
			return err
		}
		ino.mu.Lock()
		same := ino.lost == lost
		ino.mu.Unlock()
		if same {
			return nil
		}
		// The server lost data: write it again.
	}
}

// Sync puts everything known of node on stable storage. Directories are: the
// server carries out name-space changes synchronously (RFC 1813 §4.8).
func (c *Client) Sync(op *vfs.Op, node vfs.NodeID) error {
	return c.settle(op, node, (*vfs.WbErr).Advance)
}

// Flush is Sync for close(2), and leaves errors for fsync.
func (c *Client) Flush(op *vfs.Op, node vfs.NodeID) error {
	return c.settle(op, node, (*vfs.WbErr).Check)
}

// settle writes back and commits, and takes the server's attributes after that for
// those of the cached pages.
func (c *Client) settle(op *vfs.Op, node vfs.NodeID, report report) error {
	ino, err := c.tab.get(node)
	if err != nil || !ino.isFile() {
		return err
	}
	if !ino.unwritten() {
		return report(&ino.wbErr, op.File, ino.wbErr.Count())
	}
	if err := c.syncAnd(op, ino, report); err != nil {
		return err
	}
	ino.mu.Lock()
	ok := c.isFresh(ino)
	ino.mu.Unlock()
	if !ok {
		c.fetchAttr(op, ino) // only to keep the cache: a failure costs nothing but that
	}
	c.adopt(ino)
	return nil
}

// Commit puts the data of node on stable storage: all of it, whatever the range.
func (c *Client) Commit(op *vfs.Op, node vfs.NodeID, _ uint64, _ uint32) (vfs.Verifier, vfs.WCC, error) {
	ino, err := c.regular(node)
	if err != nil {
		return vfs.Verifier{}, vfs.WCC{}, err
	}
	if err := c.Sync(op, node); err != nil {
		return vfs.Verifier{}, vfs.WCC{}, err
	}
	var w vfs.WCC
	ino.mu.Lock()
	ino.visible(&w.Post)
	w.HasPost = true
	ino.mu.Unlock()
	return c.verf, w, nil
}
