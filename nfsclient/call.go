package nfsclient

import (
	"fmt"
	"syscall"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// identify returns who op is made for; groups over the limit of AUTH_SYS are
// left out.
func identify(c *vfs.Cred) (who identity) {
	who.uid, who.gid = c.UID, c.GID
	who.n = copy(who.gids[:], c.Groups)
	return who
}

// errWouldWait is what a caller that may not wait (vfs.Op.NoWait) gets instead of a wait.
var errWouldWait error = syscall.EAGAIN

// HeedsNoWait implements vfs.NoWaiter: what the cache has is told at once. Whatever else
// there is to wait for begins with begin, a page that is being filled, the lock of an inode,
// memory, or too many dirty pages.
func (c *Client) HeedsNoWait() {}

// begin acquires a slot and starts a synchronous call to proc for op.
func (c *Client) begin(op *vfs.Op, proc uint32) (*slot, error) {
	if op.MustWait() {
		return nil, errWouldWait
	}
	s, err := c.t.acquire(op.Scope, op.Cancel)
	if err != nil {
		return nil, err
	}
	who := identify(&op.Cred)
	s.begin(nfs3.Program, nfs3.Version, proc, op.Scope, &who)
	return s, nil
}

// run makes the call that is encoded in s, about inode ino, and has decode read
// its results, which stay valid until the slot is released. If it returns an
// error the slot is released already. again reports whether the call was sent
// more than once, so that the server may have carried it out twice.
func (c *Client) run(op *vfs.Op, s *slot, ino uint64, decode func(*xdr.Decoder) error) (again bool, err error) {
	task := op.Scope.Task()
	s.end(nil, 0)
	c.t.submit(s, task, ino)
	for {
		if err := c.t.await(s, op.Cancel); err != nil {
			return false, err
		}
		if s.err != nil {
			err := fmt.Errorf("%s: %w", nfs3.ProcName(s.proc), errno(s.err))
			c.endCall(s)
			return false, err
		}
		s.dec.Reset(s.reply)
		if decode(&s.dec) == nil {
			return s.sends > 1, nil
		}
		if !c.t.broken(s, task) {
			proc := s.proc
			c.endCall(s)
			return false, fmt.Errorf("%s: damaged replies: %w", nfs3.ProcName(proc), syscall.EIO)
		}
	}
}

// await waits for the reply. If it returns an error the slot is gone.
func (t *transport) await(s *slot, cancel <-chan struct{}) error {
	select {
	case <-s.wake:
		return nil
	case <-cancel:
	}
	if t.giveUp(s) {
		return syscall.EINTR
	}
	<-s.wake
	return nil
}

// endCall releases the slot of a call that run made.
func (c *Client) endCall(s *slot) {
	s.dropDest()
	c.t.release(s)
}

// dropDest gives back a directory buffer.
func (s *slot) dropDest() {
	if s.dirBufs != nil {
		s.dirBufs <- s.dest
		s.dirBufs = nil
	}
	s.dest = s.replyBuf
}

// call is a synchronous call of which only the decoded results are needed.
func (c *Client) call(op *vfs.Op, s *slot, ino uint64, decode func(*xdr.Decoder) error) (again bool, err error) {
	again, err = c.run(op, s, ino, decode)
	if err == nil {
		c.endCall(s)
	}
	return again, err
}

// beginIO starts an asynchronous call in s, whose completion is complete.
func (c *Client) beginIO(s *slot, proc uint32, sc gfp.Scope, who *identity, ino *inode, complete func(*slot) bool) *xdr.Encoder {
	e := s.begin(nfs3.Program, nfs3.Version, proc, sc, who)
	s.complete = complete
	io := &s.io
	io.ino, io.off, io.count, io.moved = ino, 0, 0, 0
	io.folios = io.folios[:0]
	io.stable, io.hasV, io.mixed, io.ahead = true, false, false, false
	io.start = c.seq.Add(1)
	ino.ios.Add(1)
	return e
}
