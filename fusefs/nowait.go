package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/vfs"
)

// What a caller that may not wait (vfs.Op.NoWait) gets instead of a wait. It is taken for
// what it is by Op.Waits, not by its value.
var errWouldWait error = unix.EAGAIN

// HeedsNoWait implements vfs.NoWaiter.
func (s *Store) HeedsNoWait() {}

// acquireNow is acquire, for op: opening a file may take a disk.
func (s *Store) acquireNow(op *vfs.Op, in *inode, k fdKind) (int, error) {
	fd := s.fds.pin(in, k)
	if fd >= 0 {
		return fd, nil
	}
	if op.MustWait() {
		s.fds.release(in)
		return -1, errWouldWait
	}
	s.makeRoom(op)
	return s.openPinned(in, k)
}

// lockAttr takes am, for op; false if that would take waiting.
func (in *inode) lockAttr(op *vfs.Op) bool {
	if op.NoWait {
		return in.am.TryLock() || !op.MustWait()
	}
	in.am.Lock()
	return true
}

// pagesNow brings the pages of sp into b.fs if all are there, filled and up to date. It
// waits for nothing.
func (s *Store) pagesNow(op *vfs.Op, in *inode, sp span, b *scratch) (size uint64, err error) {
	task := op.Scope.Task()
	if in.stale.Load() || !in.lock.TryRLock(task) {
		op.MustWait()
		return 0, errWouldWait
	}
	defer in.lock.RUnlock(task)
	if in.dead.Load() {
		return 0, vfs.ErrStale
	}
	b.fs = b.fs[:sp.pages]
	if in.m.GetRange(sp.first, b.fs) < sp.pages || !allFilled(b.fs) {
		op.MustWait()
		return 0, errWouldWait
	}
	return in.size.Load(), nil
}

// copyNow copies v into the pages of sp and makes them dirty. All that it may have to wait
// for comes before the first change: am, which is held where the backing file is touched,
// and the disk. The lock is held exclusively.
func (s *Store) copyNow(op *vfs.Op, in *inode, fd int, sp span, b *scratch, v *vfs.Vec, res *vfs.WriteResult) error {
	if !in.lockAttr(op) {
		return errWouldWait
	}
	defer in.am.Unlock()
	if needsDisk(sp, b) || in.losesSuid(op) {
		op.MustWait()
		return errWouldWait
	}
	if err := s.prepare(in, fd, sp, b); err != nil {
		return err
	}
	s.copyIn(in, sp, b, v)
	s.dirtyPages(op, in, fd, sp, b, res)
	return nil
}

// needsDisk reports whether something of the pages of sp may have to be read before they
// are written to: those that are there and not filled, and those that are written in part.
func needsDisk(sp span, b *scratch) bool {
	for i, f := range b.fs {
		if i < b.given || f != nil && f.Has(alloc.Uptodate) {
			continue
		}
		if lo, hi := sp.in(i); f != nil || hi-lo < alloc.PageSize {
			return true
		}
	}
	return false
}

func allFilled(fs []*alloc.Folio) bool {
	for _, f := range fs {
		if f.Has(alloc.Locked) || !f.Has(alloc.Uptodate) {
			return false
		}
	}
	return true
}
