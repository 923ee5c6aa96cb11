package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/vfs"
)

// Read implements vfs.FS. The ranges of v are the pages themselves: a WRITE that
// comes before they are sent shows in them, as it does when the kernel sends
// pages of its cache.
func (s *Store) Read(op *vfs.Op, node vfs.NodeID, off uint64, count uint32, v *vfs.Vec, attr *vfs.Attr) (eof bool, err error) {
	v.Reset()
	in, err := s.regular(node)
	if err != nil {
		return false, err
	}
	fd, err := s.acquireNow(op, in, fdRead)
	if err != nil {
		return false, err
	}
	defer s.fds.release(in)
	if err := s.mayRead(op, in, fd, attr); err != nil {
		return false, err
	}
	size := in.size.Load()
	if off >= size || count == 0 {
		return off >= size, nil
	}
	b := s.scratch.get()
	defer s.scratch.put(b)
	defer b.release(s.arena)
	sp := spanOf(off, int(min(uint64(min(count, s.maxIO)), size-off)))
	if op.NoWait {
		size, err = s.pagesNow(op, in, sp, b)
	} else {
		size, err = s.readPages(op, in, fd, sp, b)
	}
	if err != nil {
		return false, err
	}
	s.pinInto(v, sp, b, size)
	return off+uint64(sp.n) >= size, nil
}

// mayRead checks the caller's right and fills attr, if not nil.
func (s *Store) mayRead(op *vfs.Op, in *inode, fd int, attr *vfs.Attr) error {
	if !in.lockAttr(op) {
		return errWouldWait
	}
	defer in.am.Unlock()
	if err := s.lookForRead(op, in, fd); err != nil {
		return err
	}
	if attr != nil {
		s.fill(in, attr)
	}
	return s.ioPermission(op, in, fd, vfs.MayRead)
}

// lookForRead is look or, for root, who may read anything, lookOnce. am is held.
func (s *Store) lookForRead(op *vfs.Op, in *inode, fd int) error {
	if op.Cred.UID == 0 {
		return s.lookOnce(op, in, fd)
	}
	return s.look(op, in, fd)
}

// readPages brings every page of sp into b.fs, filled, and returns the size of
// the file, which may have become smaller than sp.
func (s *Store) readPages(op *vfs.Op, in *inode, fd int, sp span, b *scratch) (size uint64, err error) {
	task := op.Scope.Task()
	for again := false; ; again = true {
		if err := s.gather(op, in, sp, b, again); err != nil {
			return 0, err
		}
		if in.stale.Load() {
			s.refresh(op, in)
		}
		in.lock.RLock(task)
		if in.dead.Load() {
			in.lock.RUnlock(task)
			return 0, vfs.ErrStale
		}
		if s.ready(in, sp, b) {
			break
		}
		in.lock.RUnlock(task)
	}
	defer in.lock.RUnlock(task)
	size = in.size.Load()
	s.insertMissing(in, sp, b)
	err = s.fillGaps(in, fd, sp, b, size)
	if e := s.awaitOthers(op, in, fd, sp, b, size); err == nil {
		err = e
	}
	return size, err
}

// refresh drops what somebody else may have changed in the backing file.
func (s *Store) refresh(op *vfs.Op, in *inode) {
	task := op.Scope.Task()
	in.lock.Lock(task, "")
	in.freshen()
	in.lock.Unlock(task)
}

// freshen drops clean pages that may be out of date. The lock is held
// exclusively: nobody else has a page that is on its way to being dirty.
func (in *inode) freshen() {
	if in.stale.Load() && in.stale.Swap(false) {
		in.m.InvalidateClean()
	}
}

// insertMissing puts spare folios where pages are missing; they are locked, and
// ours to fill. The lock of the inode is held.
func (s *Store) insertMissing(in *inode, sp span, b *scratch) {
	b.mine = b.mine[:sp.pages]
	for i, f := range b.fs {
		b.mine[i] = false
		if f != nil {
			continue
		}
		f = b.takeSpare()
		f.Set(alloc.Locked)
		if old := in.m.Insert(sp.first+uint64(i), f); old != nil {
			f.Clear(alloc.Locked)
			b.spare = append(b.spare, f)
			b.fs[i] = old
			continue
		}
		b.fs[i], b.mine[i] = f, true
	}
}

// fillGaps reads every run of pages that are ours with one preadv.
func (s *Store) fillGaps(in *inode, fd int, sp span, b *scratch, size uint64) (err error) {
	for i := 0; i < sp.pages; {
		if !b.mine[i] {
			i++
			continue
		}
		end := i + 1
		for end < sp.pages && b.mine[end] {
			end++
		}
		e := s.fillRun(fd, sp.first+uint64(i), b, b.fs[i:end], size)
		in.m.Unlock(e == nil, b.fs[i:end]...)
		if err == nil {
			err = e
		}
		i = end
	}
	return err
}

// fillRun reads the pages fs, which are adjacent in the file. What the backing
// file does not have is zero.
func (s *Store) fillRun(fd int, index uint64, b *scratch, fs []*alloc.Folio, size uint64) error {
	b.iov = vector(s.arena, b.iov[:0], fs)
	start := index << alloc.PageShift
	total := len(fs) << alloc.PageShift
	got := 0
	for iov := b.iov; got < total; {
		n, err := preadv(fd, iov, int64(start)+int64(got))
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		got += n
		iov = advance(iov, n)
	}
	got = clip(size, start, got)
	for i := got >> alloc.PageShift; i < len(fs); i++ {
		clear(s.arena.Bytes(fs[i])[max(0, got-i<<alloc.PageShift):])
	}
	return nil
}

// awaitOthers waits for the pages that other readers fill; those that they
// could not fill are filled here.
func (s *Store) awaitOthers(op *vfs.Op, in *inode, fd int, sp span, b *scratch, size uint64) error {
	for i, f := range b.fs {
		for !in.m.WaitUnlocked(f, op.Cancel) {
			if cancelled(op) {
				return unix.EINTR
			}
			if !in.m.Relock(f) {
				if f.Owner() == 0 {
					return unix.EIO
				}
				continue
			}
			err := s.fillPage(fd, sp.first+uint64(i), f, size)
			in.m.Unlock(err == nil, f)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func cancelled(op *vfs.Op) bool {
	select {
	case <-op.Cancel:
		return true
	default:
		return false
	}
}

// pinInto hands the pages of sp, as far as the file goes, to v.
func (s *Store) pinInto(v *vfs.Vec, sp span, b *scratch, size uint64) {
	v.Owner = s.arena
	for i, f := range b.fs {
		lo, hi := sp.in(i)
		start := (sp.first + uint64(i)) << alloc.PageShift
		if hi = clip(size, start, hi); hi <= lo {
			break
		}
		v.Bufs = append(v.Bufs, s.arena.Bytes(f)[lo:hi])
		v.Pins = append(v.Pins, f.Num())
		b.fs[i] = nil // v has the reference now
	}
}
