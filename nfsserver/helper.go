package nfsserver

import (
	"runtime"
	"sync/atomic"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// helper is what a worker that has nothing else to do needs to take pieces of a listing
// that another one has begun. To find attributes and handles is most of what READDIRPLUS
// does, and the processor waits for memory meanwhile.
type helper struct {
	request // no slot: what it takes to look at entries, in pages of its own
	id      uint64
	of      *listing
	state   atomic.Int32
	done    chan struct{}
}

// States of a helper: until a worker begins it can be dismissed.
const (
	called = iota
	begun
	ended
	dismissed
)

// makeHelpers makes as many as there are processors for.
func (s *Server) makeHelpers() {
	n := min(runtime.NumCPU(), s.cfg.Workers) - 1
	s.helpers, s.calling = make(chan *helper, n), make(chan *helper)
	for i := range n {
		h := &helper{id: s.cfg.PoolID<<32 | uint64(i), done: make(chan struct{}, 1)}
		h.srv, h.task = s, s.cfg.Graph.NewTask("server")
		h.pages.arena = s.cfg.Arena
		s.helpers <- h
	}
}

// removeHelpers is for when no call is carried out any more.
func (s *Server) removeHelpers() {
	for range cap(s.helpers) {
		s.cfg.Graph.Remove((<-s.helpers).task)
	}
}

// callHelper has a worker help with r.listing if there is one, and memory for it; else it
// returns nil. Nobody waits for that.
func (r *request) callHelper() *helper {
	if len(r.listing.names) < 2 {
		return nil
	}
	var h *helper
	select {
	case h = <-r.srv.helpers:
	default:
		return nil
	}
	h.conn, h.call, h.exp, h.op, h.of = r.conn, r.call, r.exp, r.op, &r.listing
	h.op.Scope = gfp.For(h.task) // it is no reason to use the reserve
	if h.allocPages(gfp.NoWait, r.listing.room-r.names.room, &h.pages) == nil {
		h.list.w = r.list.w.In(&h.pages.enc)
		select {
		case r.srv.calling <- h:
			return h
		default: // all workers are busy
		}
	}
	r.srv.putHelper(h)
	return nil
}

// await waits until h has ended its last piece. It returns nil if there is no help: a worker
// that begins only now comes too late, and gives h back.
func (r *request) await(h *helper) *helper {
	if h == nil || h.state.CompareAndSwap(called, dismissed) {
		return nil
	}
	if h.state.Load() != ended {
		r.task.Wait("", "who helps with a listing", 0, h.resource())
		<-h.done
		r.task.Done()
		h.state.Store(ended)
	}
	return h
}

// putHelper lets others have h, if it is not nil.
func (s *Server) putHelper(h *helper) {
	if h == nil {
		return
	}
	h.pages.release()
	h.conn, h.exp, h.of, h.op, h.accept = nil, nil, nil, vfs.Op{}, sunrpc.Success
	h.state.Store(called)
	s.helpers <- h
}

// help is done by another worker than the one that has the call.
func (h *helper) help() {
	if !h.state.CompareAndSwap(called, begun) {
		h.srv.putHelper(h)
		return
	}
	h.task.Hold(h.resource())
	defer func() {
		h.task.End()
		h.done <- struct{}{}
	}()
	defer h.recover()
	defer h.forget()
	h.identifyAll(h.of)
}

// resource is what who is helped waits for.
func (h *helper) resource() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Helper, ID: h.id}
}
