package fusefs

import (
	"errors"
	"math"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// fdKind says what a descriptor is needed for.
type fdKind int

const (
	fdRead   fdKind = iota // to read, stat and sync; O_PATH if the type allows no more
	fdWrite                // to read and write through the kernel's page cache
	fdDirect               // to write past it
	numFDs
)

var noFDs = [numFDs]int32{-1, -1, -1}

// fdSet is what an inode has open; -1 is nothing.
type fdSet struct {
	fd         [numFDs]int32
	pins       int32
	drop       bool // close everything when the last pin goes
	listed     bool
	prev, next *inode
}

func (f *fdSet) init() { f.fd = noFDs }

// get returns an open descriptor that serves for k, or -1.
func (f *fdSet) get(k fdKind) int {
	if k == fdRead && f.fd[fdRead] < 0 {
		k = fdWrite
	}
	return int(f.fd[k])
}

// fdCache bounds the number of descriptors that inodes have open. Pinned ones
// stay whatever the limit is; the others are closed in the order in which they
// were used last.
type fdCache struct {
	limit int

	mu         sync.Mutex
	open       int
	head, tail *inode // with descriptors and without pins, used last and first
}

// acquire returns a descriptor of in for k and pins it; release unpins it.
func (s *Store) acquire(in *inode, k fdKind) (int, error) {
	if fd := s.fds.pin(in, k); fd >= 0 {
		return fd, nil
	}
	return s.openPinned(in, k)
}

// openPinned opens in, which has nothing open for k, and is pinned for the caller.
func (s *Store) openPinned(in *inode, k fdKind) (int, error) {
	fd, err := s.openInode(in, k)
	if err != nil {
		s.fds.release(in)
		return -1, err
	}
	return s.fds.install(in, k, fd), nil
}

// pin pins the descriptors of in and returns the one for k, or -1.
func (c *fdCache) pin(in *inode, k fdKind) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if in.fds.listed {
		c.unlist(in)
	}
	in.fds.pins++
	return in.fds.get(k)
}

// install keeps fd, which was opened for k, unless somebody was faster, and
// returns the one that is kept.
func (c *fdCache) install(in *inode, k fdKind, fd int) int {
	var old closing
	defer old.close() // not under the lock: the last close of a file may take long
	c.mu.Lock()
	defer c.mu.Unlock()
	if had := in.fds.get(k); had >= 0 {
		old.add(fd)
		return had
	}
	in.fds.fd[k] = int32(fd)
	c.open++
	for c.open > c.limit && c.tail != nil && old.room() {
		c.take(c.tail, &old)
	}
	return fd
}

// release undoes one acquire.
func (c *fdCache) release(in *inode) {
	var old closing
	defer old.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	in.fds.pins--
	switch {
	case in.fds.pins > 0:
	case in.fds.drop:
		c.take(in, &old)
	case in.fds.fd != noFDs:
		c.list(in)
	}
}

// drop closes the descriptors of in as soon as nobody uses them.
func (c *fdCache) drop(in *inode) {
	var old closing
	defer old.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if in.fds.pins > 0 {
		in.fds.drop = true
		return
	}
	c.take(in, &old)
}

// take moves the descriptors of in, which nobody uses, to old. mu is held.
func (c *fdCache) take(in *inode, old *closing) {
	if in.fds.listed {
		c.unlist(in)
	}
	in.fds.drop = false
	for k, fd := range in.fds.fd {
		if fd >= 0 {
			old.add(int(fd))
			in.fds.fd[k] = -1
			c.open--
		}
	}
}

// closeIdle closes everything that is not pinned and returns how many inodes
// had something open.
func (c *fdCache) closeIdle() int {
	for n := 0; ; {
		var old closing
		c.mu.Lock()
		for c.tail != nil && old.room() {
			c.take(c.tail, &old)
			n++
		}
		c.mu.Unlock()
		if old.n == 0 {
			return n
		}
		old.close()
	}
}

// closing is a handful of descriptors to be closed.
type closing struct {
	fd [8 * numFDs]int
	n  int
}

func (c *closing) room() bool { return c.n+int(numFDs) <= len(c.fd) }

func (c *closing) add(fd int) { c.fd[c.n], c.n = fd, c.n+1 }

func (c *closing) close() {
	for _, fd := range c.fd[:c.n] {
		unix.Close(fd)
	}
	c.n = 0
}

func (c *fdCache) pinned(in *inode) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return in.fds.pins > 0
}

func (c *fdCache) list(in *inode) {
	f := &in.fds
	f.listed, f.next, f.prev = true, c.head, nil
	if c.head != nil {
		c.head.fds.prev = in
	} else {
		c.tail = in
	}
	c.head = in
}

func (c *fdCache) unlist(in *inode) {
	f := &in.fds
	if f.prev != nil {
		f.prev.fds.next = f.next
	} else {
		c.head = f.next
	}
	if f.next != nil {
		f.next.fds.prev = f.prev
	} else {
		c.tail = f.prev
	}
	f.listed, f.prev, f.next = false, nil, nil
}

// openFlags returns how to open in for k.
func (in *inode) openFlags(k fdKind) int {
	switch {
	case in.typ == vfs.TypeDirectory:
		return unix.O_RDONLY | unix.O_DIRECTORY
	case in.typ != vfs.TypeRegular:
		return unix.O_PATH
	case k == fdRead:
		return unix.O_RDONLY | unix.O_NOFOLLOW
	case k == fdWrite:
		return unix.O_RDWR | unix.O_NOFOLLOW
	}
	return unix.O_WRONLY | unix.O_DIRECT | unix.O_NOFOLLOW
}

// openInode opens in by its handle. A file without a name can be opened by some
// file systems only through the descriptor that keeps it alive.
func (s *Store) openInode(in *inode, k fdKind) (int, error) {
	if s.ids != nil {
		return s.openNamed(in, k)
	}
	var raw rawHandle
	in.key.raw(&raw)
	fd, err := s.openRaw(&raw, in.openFlags(k))
	if errors.Is(err, vfs.ErrStale) && in.opens.Load() > 0 {
		if again := s.fds.peek(in); again >= 0 {
			return unix.Open("/proc/self/fd/"+strconv.Itoa(again), in.openFlags(k)&^unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
	}
	return fd, err
}

// openNamed is openInode with a table of handles. What is open already is opened
// again: it needs no name, and an overlay makes different files of the names of one
// when it copies it up.
func (s *Store) openNamed(in *inode, k fdKind) (fd int, err error) {
	flags := in.openFlags(k)
	if had := s.fds.peek(in); had >= 0 {
		if fd, err = reopen(had, flags); err != nil && s.spareFiles(err) {
			fd, err = reopen(had, flags)
		}
		err = openError(err, flags)
	} else {
		var raw rawHandle
		in.key.raw(&raw)
		fd, err = s.openRaw(&raw, flags)
	}
	if err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY {
		s.ids.copied(in, fd, nil, true)
	}
	return fd, err
}

// peek returns any open descriptor of in, which the caller has pinned, or -1.
func (c *fdCache) peek(in *inode) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(max(in.fds.fd[fdRead], in.fds.fd[fdWrite]))
}

// FilesMay raises the soft limit of open files (RLIMIT_NOFILE) as far as it goes, and
// returns how many all stores of the process should have open that nobody uses: half of it.
func FilesMay() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 256
	}
	if r.Cur < r.Max {
		r.Cur = r.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &r)
	}
	return int(min(r.Cur/2, math.MaxInt32))
}
