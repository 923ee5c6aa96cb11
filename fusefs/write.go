package fusefs

import (
	"errors"
	"math/bits"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/vfs"
)

// Write implements vfs.FS. Memory is allocated before any lock is taken; the
// pages become dirty under the inode's lock; after it was given back, the dirty
// limit is waited for, or the disk: who cleans its own pages need not wait until
// others have.
func (s *Store) Write(op *vfs.Op, node vfs.NodeID, off uint64, v *vfs.Vec, how vfs.Stable, res *vfs.WriteResult) error {
	*res = vfs.WriteResult{Verifier: s.Verifier(), Stable: how}
	in, err := s.regular(node)
	if err != nil {
		return err
	}
	if op.NoWait && (how != vfs.Unstable || s.bdi.Exceeded(op.Scope)) {
		op.MustWait()
		return errWouldWait
	}
	n := min(v.Len(), int(s.maxIO))
	fd, err := s.acquireNow(op, in, fdWrite)
	if err != nil {
		return err
	}
	defer s.fds.release(in)
	failures := in.syncs.failures()
	most := n>>alloc.PageShift + 2
	if err := s.reserve(op, in, most); err != nil {
		return err
	}
	err = s.place(op, in, fd, off, n, v, res)
	s.bdi.Unreserve(most)
	if err != nil {
		return err
	}
	if how == vfs.Unstable {
		s.bdi.Streamed(n >> alloc.PageShift)
	}
	if op.NoWait {
		return nil
	}
	if how == vfs.Unstable || n == 0 {
		s.bdi.BalanceDirtyPages(op.Scope, op.Cancel)
		return nil
	}
	return s.syncSince(op.Scope, in, how == vfs.FileSync, failures)
}

// reserve waits until so many pages more may become dirty, or not at all.
func (s *Store) reserve(op *vfs.Op, in *inode, pages int) error {
	for {
		if err := s.mayDirty(in); err != nil {
			return err
		}
		if s.bdi.Reserve(op.Scope, pages) {
			return nil
		}
		if op.MustWait() {
			return errWouldWait
		}
		if !s.bdi.AwaitReserve(op.Scope, pages, op.Cancel) {
			return unix.EINTR
		}
	}
}

// place writes n bytes of v at off, or at the end.
func (s *Store) place(op *vfs.Op, in *inode, fd int, off uint64, n int, v *vfs.Vec, res *vfs.WriteResult) error {
	for {
		at := off
		if off == vfs.AtEnd {
			at = in.size.Load()
		}
		if err := s.mayGrow(in, fd, at, uint64(n)); err != nil {
			return err
		}
		if err := s.writePages(op, in, fd, spanOf(at, n), off == vfs.AtEnd, v, res); err != errMoved {
			return err
		}
	}
}

// errMoved says that the end of the file is not where it was.
var errMoved = errors.New("fusefs: the end of the file has moved")

// anyFile is a size in bytes that each file may have, if any file can (MAX_NON_LFS).
const anyFile = 1<<31 - 1

// mayGrow reports whether the backing file system allows in to have n bytes at off: files of
// one file system have different limits (ext4, with extents or without). It is asked once
// for each power of two: the kernel refuses to seek past the end of what it could write.
func (s *Store) mayGrow(in *inode, fd int, off, n uint64) error {
	end := off + n
	if end < off || end > 1<<63-1 {
		return unix.EFBIG
	}
	if end <= max(in.maxSeen.Load(), min(s.maxFile, anyFile)) {
		return nil
	}
	up := uint64(1<<63 - 1)
	if l := bits.Len64(end); l < 63 {
		up = 1 << l
	}
	if _, err := unix.Seek(fd, int64(up), unix.SEEK_SET); err == nil {
		in.maxSeen.Store(up)
		return nil
	}
	if _, err := unix.Seek(fd, int64(end), unix.SEEK_SET); err != nil {
		return unix.EFBIG
	}
	return nil
}

// writePages copies v into the page cache. If atEnd says that sp is to begin at the end of the
// file, and it does not, the error is errMoved.
func (s *Store) writePages(op *vfs.Op, in *inode, fd int, sp span, atEnd bool, v *vfs.Vec, res *vfs.WriteResult) error {
	task := op.Scope.Task()
	b := s.scratch.get()
	defer s.scratch.put(b)
	defer b.release(s.arena)
	b.given = s.given(sp, v)
	for again := false; ; again = true {
		if sp.n > 0 {
			if err := s.gather(op, in, sp, b, again); err != nil {
				return err
			}
		}
		if !in.lock.LockFor(op) {
			return errWouldWait
		}
		if cancelled(op) {
			// The client is gone and may have sent this again: late, it
			// would overwrite what came after.
			in.lock.Unlock(task)
			return unix.EINTR
		}
		if err := s.mayWrite(op, in, fd, &res.WCC); err != nil {
			in.lock.Unlock(task)
			return err
		}
		in.freshen()
		if atEnd && in.size.Load() != sp.off {
			in.lock.Unlock(task)
			return errMoved
		}
		if s.ready(in, sp, b) {
			break
		}
		in.lock.Unlock(task)
	}
	defer in.lock.Unlock(task)
	if sp.n == 0 {
		res.WCC.HasPost = true
		return nil
	}
	if op.NoWait {
		return s.copyNow(op, in, fd, sp, b, v, res)
	}
	if err := s.prepare(in, fd, sp, b); err != nil {
		return err
	}
	s.copyIn(in, sp, b, v)
	in.am.Lock()
	defer in.am.Unlock()
	s.dirtyPages(op, in, fd, sp, b, res)
	return nil
}

// mayWrite checks the caller's right and takes the attributes before the
// change. The lock is held exclusively.
func (s *Store) mayWrite(op *vfs.Op, in *inode, fd int, w *vfs.WCC) error {
	if in.dead.Load() {
		return vfs.ErrStale
	}
	if !in.lockAttr(op) {
		return errWouldWait
	}
	defer in.am.Unlock()
	if err := s.look(op, in, fd); err != nil {
		return err
	}
	s.fill(in, &w.Post)
	w.Pre, w.HasPre = w.Post.Pre(), true
	if err := s.ioPermission(op, in, fd, vfs.MayWrite); err != nil {
		return err
	}
	if in.losesSuid(op) {
		return s.held()
	}
	return nil
}

// prepare makes every page of sp valid, but for the bytes that will be written. Those
// that are new go into no mapping yet: what they have there is what the memory had in it
// before. Nothing in the cache changes if it fails. The lock is held exclusively.
func (s *Store) prepare(in *inode, fd int, sp span, b *scratch) error {
	size := in.size.Load()
	for i := b.given; i < len(b.fs); i++ {
		if err := s.preparePage(fd, sp, i, b, size); err != nil {
			return err
		}
	}
	return nil
}

// preparePage is prepare for page i.
func (s *Store) preparePage(fd int, sp span, i int, b *scratch, size uint64) error {
	f := b.fs[i]
	switch {
	case f == nil:
		b.fs[i] = b.takeSpare()
		return s.prepareNew(fd, sp, i, b.fs[i], size)
	case f.Has(alloc.Uptodate):
		return nil
	}
	err := s.fillPage(fd, sp.first+uint64(i), f, size)
	if err == nil {
		f.Set(alloc.Uptodate)
	}
	return err
}

// prepareNew fills what the write leaves of page i: from the backing file, or
// with zeros where the file did not reach.
func (s *Store) prepareNew(fd int, sp span, i int, f *alloc.Folio, size uint64) error {
	lo, hi := sp.in(i)
	start := (sp.first + uint64(i)) << alloc.PageShift
	if lo > 0 && start < size || start+uint64(hi) < size && hi < alloc.PageSize {
		if err := s.fillPage(fd, sp.first+uint64(i), f, size); err != nil {
			return err
		}
	} else {
		p := s.arena.Bytes(f)
		clear(p[:lo])
		clear(p[hi:])
	}
	f.Set(alloc.Uptodate)
	return nil
}

// given returns how many pages of sp, from the first on, v has in folios that nobody else
// uses: the file can have them as they are.
func (s *Store) given(sp span, v *vfs.Vec) int {
	if s.copyWrites || v.Owner != vfs.Pinner(s.arena) || sp.off%alloc.PageSize != 0 {
		return 0
	}
	n := 0
	for most := min(len(v.Bufs), len(v.Pins), sp.n/alloc.PageSize); n < most; n++ {
		f := s.arena.Folio(v.Pins[n])
		if f.Refs() != 1 || f.Owner() != 0 || len(v.Bufs[n]) != alloc.PageSize || &v.Bufs[n][0] != &s.arena.Bytes(f)[0] {
			break
		}
	}
	return n
}

// copyIn brings the bytes of v into the cache: it takes over the pages that v gives and
// copies the rest. The lock is held exclusively.
func (s *Store) copyIn(in *inode, sp span, b *scratch, v *vfs.Vec) {
	for i := range b.given {
		b.fs[i] = s.takeOver(in, sp.first+uint64(i), b, b.fs[i], s.arena.Folio(v.Pins[i]))
	}
	next, left := b.given, []byte(nil)
	for i := b.given; i < len(b.fs); i++ {
		lo, hi := sp.in(i)
		dst := s.arena.Bytes(b.fs[i])[lo:hi]
		for len(dst) > 0 {
			for len(left) == 0 {
				left = v.Bufs[next]
				next++
			}
			n := copy(dst, left)
			dst, left = dst[n:], left[n:]
		}
		if f := b.fs[i]; f.Owner() == 0 {
			in.m.Insert(sp.first+uint64(i), f)
		}
	}
}

// takeOver makes f the folio of page index, where old is, unless that is nil. If old has
// to stay, it gets the content of f. It returns the folio of the page now, with a reference;
// that of old, if it is another one, is b's.
func (s *Store) takeOver(in *inode, index uint64, b *scratch, old, f *alloc.Folio) *alloc.Folio {
	f.Set(alloc.Uptodate)
	if old == nil {
		if old = in.m.Insert(index, f); old == nil {
			f.Get()
			return f
		}
	}
	if in.m.Exchange(old, f) {
		b.spare = append(b.spare, old)
		f.Get()
		return f
	}
	copy(s.arena.Bytes(old), s.arena.Bytes(f))
	old.Set(alloc.Uptodate)
	return old
}

// dirtyPages makes the pages of sp dirty and the file as long as they need, at
// once as far as anybody sees who looks at the attributes. The size comes first:
// a flusher writes only what lies within it. am is held.
func (s *Store) dirtyPages(op *vfs.Op, in *inode, fd int, sp span, b *scratch, res *vfs.WriteResult) {
	if end := sp.off + uint64(sp.n); end > in.size.Load() {
		in.size.Store(end)
	}
	in.touch()
	in.m.MarkDirty(b.fs...)
	s.stripSuid(op, in, fd)
	s.fill(in, &res.WCC.Post)
	res.WCC.HasPost, res.Count = true, uint32(sp.n)
}

// losesSuid reports whether a WRITE by the caller of op takes away set-uid or set-gid
// (dentry_needs_remove_privs). am is held.
func (in *inode) losesSuid(op *vfs.Op) bool {
	return op.Cred.UID != 0 && (in.st.Mode&unix.S_ISUID != 0 ||
		in.st.Mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID|unix.S_IXGRP)
}

// stripSuid takes away set-uid and set-gid from a file that a user writes to
// (file_remove_privs). am is held.
func (s *Store) stripSuid(op *vfs.Op, in *inode, fd int) {
	if !in.losesSuid(op) || s.held() != nil {
		return
	}
	mode := in.st.Mode & 0o7777
	mode &^= unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	if unix.Fchmod(fd, mode) != nil {
		return
	}
	in.changes.Add(1)
	if fstat(fd, &in.st) == nil {
		in.adopt()
	}
}
