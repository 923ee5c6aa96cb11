package fusefs

import (
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// ReadDir implements vfs.FS. Cookies are the backing file system's d_off, or ordered: they
// hold while entries come and go, and across restarts, so there is nothing that
// a verifier would have to tell.
func (s *Store) ReadDir(op *vfs.Op, dir vfs.NodeID, cookie uint64, verf vfs.Verifier, sink vfs.DirSink) (vfs.Verifier, bool, error) {
	in, err := s.directory(dir)
	if err != nil {
		return verf, false, err
	}
	if verf != (vfs.Verifier{}) || cookie > 1<<63-1 {
		return verf, false, vfs.ErrBadCookie
	}
	fd, err := s.acquire(in, fdRead)
	if err != nil {
		return verf, false, err
	}
	defer s.fds.release(in)
	r := reader{s: s, op: op, in: in, fd: fd, cookie: cookie, sink: sink}
	eof, err := r.run()
	return verf, eof, err
}

// reader is one READDIR under way.
type reader struct {
	s      *Store
	op     *vfs.Op
	in     *inode
	fd     int
	cookie uint64
	sink   vfs.DirSink
}

// run serves from the listing under the shared lock as far as that goes, and
// the rest under the exclusive one, which filling needs.
func (r *reader) run() (eof bool, err error) {
	task := r.op.Scope.Task()
	r.in.lock.RLock(task)
	done, eof, err := r.serve(false)
	r.in.lock.RUnlock(task)
	if done || err != nil {
		return eof, err
	}
	r.in.lock.Lock(task, "")
	defer r.in.lock.Unlock(task)
	_, eof, err = r.serve(true)
	return eof, err
}

// look checks the caller's right and whether the listing is good.
func (r *reader) look() (valid bool, err error) {
	r.in.am.Lock()
	err = r.s.look(r.op, r.in, r.fd)
	if err == nil {
		err = r.s.permission(r.op, r.in, r.fd, vfs.MayRead)
	}
	r.in.am.Unlock()
	if err != nil {
		return false, err
	}
	if r.in.dead.Load() {
		return false, vfs.ErrStale
	}
	return r.in.listingValid(), nil
}

// serve hands out entries. It is done when the sink is full or the directory
// ends; otherwise it needs the exclusive lock to read more.
func (r *reader) serve(exclusive bool) (done, eof bool, err error) {
	valid, err := r.look()
	if err != nil {
		return true, false, err
	}
	if !valid {
		if !exclusive {
			return false, false, nil
		}
		r.in.beginListing()
	}
	l := r.in.dir
	for {
		if l.hasEnd && r.cookie == l.end {
			return true, true, nil
		}
		b, off := r.s.find(l, r.cookie)
		if b == nil {
			if !exclusive {
				return false, false, nil
			}
			b, err = r.more()
			if err != nil || b == nil {
				return true, err == nil, err
			}
		}
		if !r.hand(r.s.arena.Bytes(b.f)[off:b.n]) {
			return true, false, nil
		}
	}
}

// more reads what is after the cookie, and returns the first block of it; nil is the end of
// the directory.
func (r *reader) more() (*block, error) {
	l := r.in.dir
	if len(l.blocks) >= r.s.maxBlocks {
		r.in.dropListing()
		l.next = 0
	}
	n, err := r.s.readAfter(r.op, r.in, r.fd, r.cookie)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		l.end, l.hasEnd = r.cookie, true
		return nil, nil
	}
	first := len(l.blocks) - n
	l.hint.Store(int64(first))
	return &l.blocks[first], nil
}

// hand gives the entries of p to the sink; false means that it is full.
func (r *reader) hand(p []byte) bool {
	for {
		d, ok := parseDirent(p)
		if !ok {
			return true
		}
		e := vfs.DirEntry{Ino: d.ino, Name: d.name, Cookie: d.next, Type: direntType(d.typ)}
		if r.in.id == vfs.RootID && string(d.name) == ".." {
			e.Ino = r.in.ino // above the root is the root
		}
		if !r.sink.Entry(&e) {
			return false
		}
		r.cookie, p = d.next, p[d.size:]
	}
}

func direntType(t uint8) vfs.FileType {
	if t == unix.DT_UNKNOWN {
		return 0
	}
	return typeOf(uint32(t) << 12)
}
