package fusefs

import (
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
	retry atomic.Int64  // not before this time, in ns
	delay atomic.Int64
}

// set records err.
func (w *writeFailure) set(s *Store, in *inode, err error) {
	w.seq.Add(1)
	delay := min(max(2*w.delay.Load(), retryMin), retryMax)
	w.delay.Store(delay)
	w.retry.Store(time.Now().UnixNano() + delay)
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		errno = unix.EIO
	}
	s.failure.Store(int32(errno))
	if w.errno.Swap(int32(errno)) == 0 {
		s.countFailing(1)
		s.verifier.Add(1)
		s.log.Error("cannot write to the backing file: its data stays in memory and is tried again",
			"inode", in.ino, "error", err)
	}
}

// clear records that there is nothing left that could not be written.
func (w *writeFailure) clear(s *Store) {
	if w.errno.Load() == 0 {
		return
	}
	w.delay.Store(0)
	w.retry.Store(0)
	if w.errno.Swap(0) != 0 {
		s.countFailing(-1)
	}
}

// countFailing counts the inodes that cannot be written out. While there are
// any, nobody is made to wait for pages of ours to become clean.
func (s *Store) countFailing(n int32) {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	s.bdi.SetStuck(s.failing.Add(n) > 0)
}

// err returns the present failure, or nil.
func (w *writeFailure) err() error { return errnoOf(syscall.Errno(w.errno.Load())) }

// mayDirty refuses new data for an inode that cannot be written out, and for
// any inode when there is no room to wait for one that cannot.
func (s *Store) mayDirty(in *inode) error {
	if s.failing.Load() == 0 {
		return nil
	}
	if err := in.writeFail.err(); err != nil {
		return err
	}
	if thresh, _ := s.dom.Thresholds(); s.dom.Pages() < thresh {
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
	done := 0
	for vain := 0; done < nr && vain < maxVain; vain++ {
		m := s.back.NextDirty()
		if m == nil {
			break
		}
		in := m.Host.(*inode)
		if time.Now().UnixNano() < in.writeFail.retry.Load() {
			continue
		}
		n, _ := s.writeSome(in, b, nr-done, ^uint64(0))
		if done += n; n > 0 {
			vain = 0
		}
	}
	return done
}

// writeSome writes out up to nr pages of in that were dirty when upTo was the
// latest change, and returns how many.
func (s *Store) writeSome(in *inode, b *scratch, nr int, upTo uint64) (done int, err error) {
	for done < nr {
		n, err := s.writeRuns(in, b, upTo)
		done += n
		if err != nil || n == 0 {
			return done, err
		}
	}
	return done, nil
}

// writeRuns writes out some runs of adjacent pages. It returns how many pages are clean
// now; those that could not be written are dirty again.
func (s *Store) writeRuns(in *inode, b *scratch, upTo uint64) (int, error) {
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
		return 0, nil
	}
	fs = fs[:n]
	done, err := s.store(in, b, fs)
	if err != nil {
		// Before the pages leave write-back: a COMMIT that waits for that
		// must see the failure.
		in.writeFail.set(s, in, err)
	}
	in.m.EndWriteback(fs[:done], pagecache.Clean)
	in.m.EndWriteback(fs[done:], pagecache.Dirty)
	s.arena.PutAll(fs)
	clear(fs)
	if err == nil && in.m.Nr(pagecache.Dirty) == 0 {
		in.writeFail.clear(s)
	}
	return done, err
}

// store writes pages under write-back, the runs of b, to the backing file and returns how
// many from the first it need not be asked to write again.
func (s *Store) store(in *inode, b *scratch, fs []*alloc.Folio) (done int, err error) {
	fd, err := s.acquire(in, fdWrite)
	if err != nil {
		if errors.Is(err, vfs.ErrStale) {
			if !in.dead.Load() {
				in.wbErr.Set(unix.EIO)
				s.verifier.Add(1) // it may be found again
			}
			return len(fs), nil // the file is gone, and its data with it
		}
		return 0, err
	}
	defer s.fds.release(in)
	in.beginIO(fd)
	defer in.endIO(fd)
	// The size is read after the pages were put under write-back: whoever
	// makes the file shorter from now on waits for them.
	size := in.size.Load()
	s.storeAtOnce(in, b, fs, size)
	for i, end := range b.runs {
		n, err := s.storeRun(in, fd, b, fs[done:end], size, b.got[i])
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
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
