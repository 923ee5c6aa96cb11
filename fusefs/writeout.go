package fusefs

import (
	"cmp"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/reclaim/writeback"
)

// Write-out. It takes no inode lock and allocates nothing from the arena: those
// who hold the one and want the other may be waiting for it.

// writeFailure remembers that an inode could not be written out. Its pages stay
// dirty and are tried again, less and less often; until that succeeds, writers
// and those who sync are told.
type writeFailure struct {
	seq   atomic.Uint64 // failures so far
	errno atomic.Int32  // of the last, 0 after a success
	retry atomic.Int64  // not before this time (monotonic)
	delay atomic.Int64
}

// loaded is where monotonic starts.
var loaded = time.Now()

// monotonic returns a time in ns that nobody sets.
func monotonic() int64 { return int64(time.Since(loaded)) }

// set records err.
func (w *writeFailure) set(s *Store, in *inode, err error) {
	w.seq.Add(1)
	if now := monotonic(); now >= w.retry.Load() { // else it is of the same attempt
		delay := min(max(2*w.delay.Load(), retryMin), retryMax)
		w.delay.Store(delay)
		w.retry.Store(now + delay)
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		errno = unix.EIO
	}
	s.failure.Store(int32(errno))
	if s.setFailing(in, errno) {
		s.verifier.Add(1)
		s.log.Error("cannot write to the backing file: its data stays in memory and is tried again",
			"inode", in.ino, "error", err)
	}
}

// clear records that there is nothing left that could not be written.
func (w *writeFailure) clear(s *Store, in *inode) {
	if w.errno.Load() == 0 {
		return
	}
	w.delay.Store(0)
	w.retry.Store(0)
	s.setFailing(in, 0)
}

// setFailing says why in cannot be written out, or with 0 that it can, and whether that
// is new. Nobody is made to wait for pages that fail to become clean.
func (s *Store) setFailing(in *inode, errno syscall.Errno) (changed bool) {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	was := in.writeFail.errno.Swap(int32(errno)) != 0
	if was == (errno != 0) {
		return false
	}
	in.m.SetStuck(!was)
	if was {
		s.failing.Add(-1)
	} else {
		s.failing.Add(1)
	}
	return true
}

// err returns the present failure, or nil.
func (w *writeFailure) err() error { return errnoOf(syscall.Errno(w.errno.Load())) }

// mayDirty refuses new data for an inode that cannot be written out and, if such data
// takes as much memory as all that is dirty may, for any inode of this file system.
func (s *Store) mayDirty(in *inode) error {
	if s.failing.Load() == 0 {
		return nil
	}
	if err := in.writeFail.err(); err != nil {
		return err
	}
	if thresh, _ := s.dom.Thresholds(); s.dom.Stuck() < thresh {
		return nil
	}
	return errnoOf(syscall.Errno(s.failure.Load()))
}

// WritePages implements writeback.Writer.
func (s *Store) WritePages(sc gfp.Scope, nr int) int {
	task := sc.Task()
	task.Hold(writeback.DirtyResource)
	defer task.Release(writeback.DirtyResource)
	b := s.scratch.get()
	defer s.scratch.put(b)
	done := s.writeStuck(b, nr)
	for vain := 0; done < nr && vain < maxVain; vain++ {
		m := s.back.NextDirty()
		if m == nil {
			break
		}
		n, _ := s.writeSome(m.Host.(*inode), b, nr-done, ^uint64(0))
		if done += n; n > 0 {
			vain = 0
		}
	}
	return done
}

// writeStuck is WritePages for what could not be written before, and is to be tried again.
func (s *Store) writeStuck(b *scratch, nr int) (done int) {
	for range min(maxVain, s.failing.Load()) {
		m := s.back.NextStuck()
		if m == nil || done >= nr {
			break
		}
		in := m.Host.(*inode)
		if monotonic() < in.writeFail.retry.Load() {
			continue
		}
		n, _ := s.writeSome(in, b, nr-done, ^uint64(0))
		done += n
	}
	return done
}

// writeSome writes out up to nr pages of in that were dirty when upTo was the
// latest change, and returns how many, and the first error: what cannot be written keeps
// nothing else from it.
func (s *Store) writeSome(in *inode, b *scratch, nr int, upTo uint64) (done int, err error) {
	upTo = min(upTo, in.m.Seq()) // what cannot be written is dirty anew
	for taken := 1; taken > 0 && done < nr; {
		var n int
		var e error
		taken, n, e = s.writeRuns(in, b, upTo)
		done, err = done+n, cmp.Or(err, e)
	}
	return done, err
}

// writeRuns takes some runs of adjacent pages and writes them out. It returns how many pages
// it took, and how many are clean now; those that could not be written are dirty again.
func (s *Store) writeRuns(in *inode, b *scratch, upTo uint64) (taken, done int, err error) {
	fs := b.fs[:cap(b.fs)-1]
	b.runs = b.runs[:0]
	n := 0
	for n < len(fs) && len(b.runs) < maxRuns {
		more := in.m.BeginWriteback(fs[n:], upTo)
		if more == 0 {
			break
		}
		n += more
		b.runs = append(b.runs, n)
	}
	if n == 0 {
		return 0, 0, nil
	}
	fs = fs[:n]
	if err = s.store(in, b, fs); err == nil {
		in.m.EndWriteback(fs, pagecache.Clean)
		done = n
	} else {
		// Before the pages leave write-back: a COMMIT that waits for that
		// must see the failure.
		in.writeFail.set(s, in, err)
		done = in.endRuns(b, fs)
	}
	s.arena.PutAll(fs)
	clear(fs)
	if err == nil && in.m.Nr(pagecache.Dirty) == 0 {
		in.writeFail.clear(s, in)
	}
	return n, done, err
}

// endRuns ends the write-back of the runs of b, of which b.done is written, and returns how
// many pages that are.
func (in *inode) endRuns(b *scratch, fs []*alloc.Folio) (done int) {
	first := 0
	for i, end := range b.runs {
		run, n := fs[first:end], b.done[i]
		in.m.EndWriteback(run[:n], pagecache.Clean)
		in.m.EndWriteback(run[n:], pagecache.Dirty)
		done, first = done+n, end
	}
	return done
}

// store writes pages under write-back, the runs of b, to the backing file. If there is an
// error, the first one is returned, and b.done says how many pages of each run, from its first
// on, need not be written again.
func (s *Store) store(in *inode, b *scratch, fs []*alloc.Folio) error {
	b.done = b.done[:len(b.runs)]
	clear(b.done)
	fd, err := s.acquire(in, fdWrite)
	if errors.Is(err, vfs.ErrStale) {
		if !in.dead.Load() {
			in.wbErr.Set(unix.EIO)
			s.verifier.Add(1) // it may be found again
		}
		return nil // the file is gone, and its data with it
	}
	if err != nil {
		return err
	}
	defer s.fds.release(in)
	in.beginIO(fd)
	defer s.endIO(in, fd)
	// The size is read after the pages were put under write-back: whoever
	// makes the file shorter from now on waits for them.
	size := in.size.Load()
	s.storeAtOnce(in, b, fs, size)
	first := 0
	for i, end := range b.runs {
		n, e := s.storeRun(in, fd, b, fs[first:end], size, b.got[i])
		b.done[i], first, err = n, end, cmp.Or(err, e)
	}
	return err
}

// storeAtOnce has the device write the whole pages of several runs at the same time, if
// that is possible, and notes in b.got how much of each is written.
func (s *Store) storeAtOnce(in *inode, b *scratch, fs []*alloc.Folio, size uint64) {
	b.got = b.got[:len(b.runs)]
	clear(b.got)
	if len(b.runs) == 1 || s.noDirect.Load() {
		return
	}
	fd, err := s.acquire(in, fdDirect)
	if err != nil {
		return
	}
	defer s.fds.release(in)
	a := s.aio.get()
	if a == nil {
		return
	}
	size = min(size, in.backingSize()) // what makes the file longer is waited for, one by one
	b.iov = b.iov[:0]
	first := 0
	for i, end := range b.runs {
		if run := fs[first:end]; wholePages(run, size) == len(run) {
			at := len(b.iov)
			b.iov = vector(s.arena, b.iov, run)
			a.add(i, fd, b.iov[at:], run[0].Index<<alloc.PageShift)
		}
		first = end
	}
	a.run(b.got, s.held)
	a.clear()
	s.aio.put(a)
}

// wholePages returns how many pages of a run lie within the size.
func wholePages(run []*alloc.Folio, size uint64) int {
	return clip(size, run[0].Index<<alloc.PageShift, len(run)<<alloc.PageShift) >> alloc.PageShift
}

// storeRun is store for one run, of which got bytes are written already.
func (s *Store) storeRun(in *inode, fd int, b *scratch, fs []*alloc.Folio, size uint64, got int64) (int, error) {
	if got == int64(len(fs)<<alloc.PageShift) {
		return len(fs), nil
	}
	start := fs[0].Index << alloc.PageShift
	full := wholePages(fs, size)
	if done, err := s.storeFull(in, fd, b, fs[:full], start); err != nil {
		return done, err
	}
	if full == len(fs) {
		return full, nil
	}
	// The last page of the file goes no further than the file; what lies
	// behind was cut off and goes nowhere.
	start += uint64(full) << alloc.PageShift
	if tail := clip(size, start, alloc.PageSize); tail > 0 {
		b.iov = append(b.iov[:0], unix.Iovec{Base: &s.arena.Bytes(fs[full])[0], Len: uint64(tail)})
		if _, err := s.writeBuffered(fd, b.iov, start, tail); err != nil {
			return full, err
		}
	}
	return len(fs), nil
}

// storeFull writes whole pages, past the kernel's page cache if possible.
func (s *Store) storeFull(in *inode, fd int, b *scratch, fs []*alloc.Folio, start uint64) (int, error) {
	if len(fs) == 0 {
		return 0, nil
	}
	b.iov = vector(s.arena, b.iov[:0], fs)
	total := len(fs) << alloc.PageShift
	if !s.noDirect.Load() {
		n, err := s.writeDirect(in, b.iov, start, total)
		if !errors.Is(err, unix.EINVAL) {
			return n >> alloc.PageShift, err
		}
		s.giveUpDirect()
		b.iov = vector(s.arena, b.iov[:0], fs)
	}
	n, err := s.writeBuffered(fd, b.iov, start, total)
	return n >> alloc.PageShift, err
}

// writeDirect writes with O_DIRECT and returns how many bytes got there.
func (s *Store) writeDirect(in *inode, iov []unix.Iovec, start uint64, total int) (int, error) {
	fd, err := s.acquire(in, fdDirect)
	if err != nil {
		return 0, err
	}
	defer s.fds.release(in)
	return s.writeAll(fd, iov, start, total)
}

// errNotHeld is EIO for what is not written any more.
var errNotHeld = fmt.Errorf("the right to write to the disk is lost: %w", unix.EIO)

// held returns an error if the disk may be another host's.
func (s *Store) held() error {
	if s.holds != nil && !s.holds() {
		return errNotHeld
	}
	return nil
}

func (s *Store) giveUpDirect() {
	if !s.noDirect.Swap(true) {
		s.log.Warn("the backing file system refuses O_DIRECT: data is written through the kernel's page cache, "+
			"where it waits as the kernel's dirty pages for as long as the disk takes", "type", s.fsType)
	}
}

// writeBuffered writes through the kernel's page cache and starts write-out at
// once.
func (s *Store) writeBuffered(fd int, iov []unix.Iovec, start uint64, total int) (int, error) {
	n, err := s.writeAll(fd, iov, start, total)
	if err == nil {
		err = unix.SyncFileRange(fd, int64(start), int64(total), unix.SYNC_FILE_RANGE_WRITE)
		if err == unix.EINVAL || err == unix.ESPIPE || err == unix.ENOSYS {
			err = nil // nothing behind the page cache
		}
		if err != nil {
			n = 0
		}
	}
	return n, err
}

func (s *Store) writeAll(fd int, iov []unix.Iovec, start uint64, total int) (int, error) {
	done := 0
	for done < total {
		if err := s.held(); err != nil {
			return done, err
		}
		n, err := pwritev(fd, iov, int64(start)+int64(done))
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, unix.EIO
		}
		done += n
		iov = advance(iov, n)
	}
	return done, nil
}
