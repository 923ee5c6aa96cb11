package fusefs

import (
	"sync"
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

const (
	// maxIdleSlots bounds what is kept for a rush of requests that is over.
	maxIdleSlots = 128
	// Waiting times between two tries of a request that met ErrJukebox.
	jukeboxFirst = 10 * time.Millisecond
	jukeboxMax   = time.Second
)

// doorSlot is everything that one request needs. It belongs to the request
// until end.
type doorSlot struct {
	fs   *doorFS
	op   vfs.Op
	task *waitfor.Task
	pid  uint32

	set   vfs.SetAttr
	attr  vfs.Attr
	data  vfs.Vec // what is written; the memory is go-fuse's
	wrote vfs.WriteResult
	read  readResult
	dir   dirSink

	wait time.Duration // before the next try
	stop chan struct{} // ends the watch over the caller, if there is one
}

// doorSlots is the pool of slots.
type doorSlots struct {
	graph *waitfor.Graph
	mu    sync.Mutex
	idle  []*doorSlot
}

func (p *doorSlots) get(fs *doorFS) *doorSlot {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		s := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return s
	}
	p.mu.Unlock()
	s := &doorSlot{fs: fs, task: p.graph.NewTask("fuse")}
	s.op.Scope = gfp.For(s.task)
	s.op.Local = true
	s.read.slot = s
	return s
}

func (p *doorSlots) put(s *doorSlot) {
	p.mu.Lock()
	keep := len(p.idle) < maxIdleSlots
	if keep {
		p.idle = append(p.idle, s)
	}
	p.mu.Unlock()
	if !keep {
		p.graph.Remove(s.task)
	}
}

func (p *doorSlots) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.idle {
		p.graph.Remove(s.task)
	}
	p.idle = nil
}

type doorCounts [numDoorOps]atomic.Uint64

// begin prepares a request of h's caller.
func (f *doorFS) begin(op doorOp, cancel <-chan struct{}, h *fuse.InHeader) *doorSlot {
	s := f.start(op, cancel, h)
	s.op.Cred = vfs.Cred{UID: h.Uid, GID: h.Gid, Groups: f.groups.of(h.Pid, h.Uid, h.Gid)}
	return s
}

// beginAs prepares a request in the name of whoever opened o.
func (f *doorFS) beginAs(op doorOp, cancel <-chan struct{}, h *fuse.InHeader, o *openFile) *doorSlot {
	s := f.start(op, cancel, h)
	s.op.Cred = o.cred
	return s
}

func (f *doorFS) start(op doorOp, cancel <-chan struct{}, h *fuse.InHeader) *doorSlot {
	f.count[op].Add(1)
	s := f.slots.get(f)
	s.pid, s.op.Cancel, s.wait = h.Pid, cancel, jukeboxFirst
	s.task.Begin(doorOpNames[op])
	return s
}

// end gives the slot back.
func (s *doorSlot) end() {
	if s.stop != nil {
		close(s.stop)
		s.stop = nil
	}
	s.task.End()
	s.op.Cancel, s.op.Cred = nil, vfs.Cred{}
	s.fs.slots.put(s)
}

// do calls f until it has an answer for the caller.
func (s *doorSlot) do(f func() error) fuse.Status {
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

// once is do for a call that may not be made twice: only a caller that is dying
// interrupts it.
func (s *doorSlot) once(f func() error) fuse.Status {
	s.guardCancel()
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
