package fusefs

import (
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// doorOp is a kind of request.
type doorOp int

const (
	opLookup doorOp = iota
	opGetAttr
	opSetAttr
	opAccess
	opReadlink
	opCreate
	opMkdir
	opMknod
	opSymlink
	opLink
	opUnlink
	opRmdir
	opRename
	opOpen
	opRead
	opWrite
	opFlush
	opFsync
	opRelease
	opOpenDir
	opReadDir
	opStatFS
	opForget
	opGetXAttr
	opOther
	numDoorOps
)

var doorOpNames = [numDoorOps]string{
	"lookup", "getattr", "setattr", "access", "readlink", "create", "mkdir", "mknod", "symlink",
	"link", "unlink", "rmdir", "rename", "open", "read", "write", "flush", "fsync", "release",
	"opendir", "readdir", "statfs", "forget", "getxattr", "other",
}

// Waiting times between two tries of a request that met ErrJukebox.
const (
	jukeboxFirst = 10 * time.Millisecond
	jukeboxMax   = time.Second
)

// doorSlot serves one request at a time, and is everything that it needs. It belongs to
// one goroutine.
type doorSlot struct {
	fs   *doorFS
	op   vfs.Op
	task *waitfor.Task
	pid  uint32
	wire doorWire

	set   vfs.SetAttr
	attr  vfs.Attr
	data  vfs.Vec // what is written; the memory is that of the request
	wrote vfs.WriteResult
	read  readResult
	dir   dirSink

	wait time.Duration // before the next try
}

func (f *doorFS) newSlot() *doorSlot {
	s := &doorSlot{fs: f, task: f.graph.NewTask("fuse")}
	s.op.Scope = gfp.For(s.task)
	s.op.Local = true
	s.wire.init()
	return s
}

// close is for a slot that is used no more.
func (s *doorSlot) close() { s.fs.graph.Remove(s.task) }

type doorCounts [numDoorOps]atomic.Uint64

// begin prepares a request of h's caller.
func (s *doorSlot) begin(op doorOp, h *fuse.InHeader) {
	s.start(op, h)
	groups, ok := s.fs.groups.known(h.Pid, h.Uid, h.Gid)
	if !ok {
		s.leave()
		groups = s.fs.groups.ask(h.Pid, h.Uid, h.Gid)
	}
	s.op.Cred = vfs.Cred{UID: h.Uid, GID: h.Gid, Groups: groups}
}

// beginAs prepares a request in the name of whoever opened o.
func (s *doorSlot) beginAs(op doorOp, h *fuse.InHeader, o *openFile) {
	s.start(op, h)
	s.op.Cred, s.op.File = o.cred, &o.file
}

func (s *doorSlot) start(op doorOp, h *fuse.InHeader) {
	s.fs.count[op].Add(1)
	s.pid, s.op.Cancel, s.wait = h.Pid, s.wire.cancel, jukeboxFirst
	s.op.File, s.op.NoWait, s.op.Waits = nil, false, false // the last request may have panicked
	s.task.Begin(doorOpNames[op])
}

// end is called when the reply has been sent.
func (s *doorSlot) end() {
	s.read.release()
	s.task.End()
	s.op.Cancel, s.op.Cred, s.op.File = nil, vfs.Cred{}, nil
}

// do calls f until it has an answer for the caller. It may wait: somebody else listens
// to the kernel meanwhile.
func (s *doorSlot) do(f func() error) fuse.Status {
	s.leave()
	for {
		errno := doorErrno(f())
		switch {
		case errno == 0:
			return fuse.OK
		case errno == vfs.ErrJukebox && s.sleep():
		case errno == syscall.EINTR && s.goOn():
		case errno == vfs.ErrJukebox:
			return fuse.EINTR
		default:
			return fuse.Status(errno)
		}
	}
}

// soonLarge is soon for n bytes of data. To copy many takes longer than to wake somebody else
// who listens, and others would wait for it.
func (s *doorSlot) soonLarge(n int, f func() error) fuse.Status {
	if n > inlineData {
		s.leave()
	}
	return s.soon(f)
}

// soon is do for a call that can mostly be answered at once (vfs.NoWaiter): it is tried
// without waiting before.
func (s *doorSlot) soon(f func() error) fuse.Status {
	if !s.fs.heedsNoWait {
		return s.do(f)
	}
	s.op.NoWait, s.op.Waits = true, false
	errno := doorErrno(f())
	s.op.NoWait = false
	if s.op.Waits || errno == vfs.ErrJukebox || errno == syscall.EINTR {
		return s.do(f)
	}
	return fuse.Status(errno)
}

// once is do for a call that may not be made twice: only a caller that is dying
// interrupts it.
func (s *doorSlot) once(f func() error) fuse.Status {
	if s.wire.listens {
		s.wire.guarded = true // nobody else knows of it yet
	} else {
		s.guardCancel()
	}
	return s.do(f)
}

// sleep waits until it is time to try again; false if nobody wants that.
func (s *doorSlot) sleep() bool {
	s.task.Wait("", "its turn to be tried again", 0, waitfor.Resource{})
	defer s.task.Done()
	for {
		t := time.NewTimer(s.wait)
		select {
		case <-t.C:
			s.wait = min(2*s.wait, jukeboxMax)
			return true
		case <-s.op.Cancel:
			t.Stop()
			if !s.goOn() {
				return false
			}
		}
	}
}
