package nfsserver

import (
	"errors"
	"fmt"
	"runtime/debug"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/xdr"
)

const (
	maxArgs  = nfs3.MaxArgs
	replyLen = 4 + sunrpc.MaxReplyHeader + nfs3.MaxResult
	// maxRefs is how many nodes a procedure refers to: RENAME has two
	// directories, CREATE a directory and what it made.
	maxRefs = 4
)

// request is a slot for one call on its way through the server. It is made when
// the server starts and used again and again. From reader to worker to sender it
// belongs to one goroutine at a time.
type request struct {
	srv  *Server
	conn *conn
	task *waitfor.Task
	next *request  // in the send queue of conn, or among those that wait in dup
	dup  *dupEntry // of this call in the duplicate request cache, while it is carried out

	call   sunrpc.Call
	args   []byte // holds head: header and arguments
	dec    xdr.Decoder
	accept sunrpc.AcceptStat
	// headerErr is the error of decoding the header, dataErr that of receiving
	// the payload.
	headerErr, dataErr error

	op      vfs.Op
	changed changed
	exp     *export // nil until a handle was seen
	// triedNow is set if the file system was asked without waiting, and would have to.
	triedNow bool
	refs     [maxRefs]vfs.NodeID
	nrefs    int
	handle   [nfs3.MaxHandle]byte

	// What is passed to the FS by pointer lives here, or it would be
	// allocated for each call.
	attr  vfs.Attr
	set   vfs.SetAttr
	wrote vfs.WriteResult
	names nameSink
	list  dirSink
	pages pageBuf
	// listing and plus are of READDIRPLUS.
	listing listing
	plus    plusList
	// folios is where allocPages gets its pages.
	folios []*alloc.Folio

	// data is what came with WRITE (carries), or what follows enc in the reply
	// of READ and READDIR.
	data    vfs.Vec
	carries bool
	charge  int64 // bytes of the arena that admission has counted

	enc   xdr.Encoder // record mark, header, results
	mark  int
	begun bool // the reply is about to be sent, or is
	off   int  // bytes of it that are sent
}

func newRequest(s *Server) *request {
	r := &request{
		srv:  s,
		task: s.cfg.Graph.NewTask("server"),
		args: touched[byte](headLimit),
		enc:  xdr.Encoder{Buf: touched[byte](replyLen)[:0]},
	}
	reserveVec(&r.data, s.ioPages+1)
	r.pages.arena = s.cfg.Arena
	r.names.pages.arena = s.cfg.Arena
	return r
}

func reserveVec(v *vfs.Vec, n int) {
	v.Bufs, v.Pins = touched[[]byte](n)[:0], touched[uint32](n)[:0]
}

// touched makes a slice whose memory is there: what is only made is mapped, and
// taken when it is first used.
func touched[T any](n int) []T {
	s := make([]T, n)
	clear(s)
	return s
}

// enqueue has a worker take the call.
func (r *request) enqueue() {
	r.task.Wait("", "a server worker", 0, r.srv.workerResource())
	r.srv.queue <- r
}

// work carries out the call, unless that was done or is being done, and replies.
func (r *request) work() {
	if !r.fresh() {
		return
	}
	worker := r.srv.workerResource()
	r.task.Hold(worker)
	r.serve(false)
	r.srv.dups.end(r)
	r.task.Release(worker)
	r.reply()
}

// fresh reports whether the call is to be carried out. If not, it was, or is being, and
// the reply is seen to.
func (r *request) fresh() bool {
	if r.dup != nil {
		return true // the reader has asked
	}
	switch r.srv.dups.begin(r) {
	case carryOut:
		return true
	case answered:
		r.reply()
	case dropped:
		r.conn.client.inflight.Add(-1)
		r.leave()
		r.end()
	case parked:
	}
	return false
}

// serveNow carries out the call on its reader, if that waits for nothing, and reports
// whether it is done with: then the reply is in the queue, if there is one. What has to
// wait is for a worker; it would keep the reader from calls that end the wait.
func (r *request) serveNow() bool {
	if r.headerErr != nil || !seldomWaits(&r.call) {
		return false
	}
	if !r.fresh() {
		return true
	}
	args := r.dec
	r.serve(true)
	if !r.op.Waits {
		r.srv.count.call(&r.call)
		r.srv.dups.end(r)
		if n := r.data.Len(); n < earlyData && !r.carries {
			r.conn.unsentData += n // larger ones take several calls to send, in any case
		}
		r.queueReply()
		return true
	}
	if !r.carries {
		r.data.Release()
	}
	r.triedNow = r.exp != nil && r.exp.heedsNoWait
	r.dec, r.exp, r.accept = args, nil, sunrpc.Success
	return false
}

// reply sends what the call is answered with.
func (r *request) reply() {
	c := r.conn
	r.queueReply()
	c.flush()
}

// queueReply has the reply sent at the next flush.
func (r *request) queueReply() {
	r.leave()
	r.finishReply()
	r.conn.out.push(r)
}

// serve carries out the call and leaves the reply in enc and data.
func (r *request) serve(noWait bool) {
	defer r.recover()
	defer r.forget()
	r.op = vfs.Op{Scope: r.scope(), Local: r.conn.isLocal(), Cancel: r.conn.done, NoWait: noWait}
	if noWait {
		r.op.Batch = r.conn.batchNow() // a worker may come much later
	}
	if r.dup != nil && r.srv.dups.journal != nil {
		r.op.Witness = r
		r.changed.n = 0
	}
	r.startReply()
	sunrpc.ReplySuccess(&r.enc, r.call.XID)
	if !noWait && r.srv.cfg.Holds != nil && !r.srv.cfg.Holds() {
		r.accept = sunrpc.SystemErr // nobody will see it
	} else {
		r.dispatch()
	}
	if r.accept != sunrpc.Success {
		r.refuse(r.accept)
	}
}

// scope returns the allocation scope that the call runs under.
func (r *request) scope() gfp.Scope {
	sc := gfp.For(r.task)
	if r.call.Cred.Flavor != sunrpc.AuthSys {
		return sc
	}
	if wire, ok := sunrpc.ScopeFromStamp(r.call.Cred.Sys.Stamp); ok {
		return r.srv.cfg.Scope(wire, r.conn.isLocal(), sc)
	}
	return sc
}

// cleansMemory lets the call, until it ends, use the reserve and go past the
// global dirty limit if its client shares this host's memory: it ends in pages
// of that client being clean (PF_LOCAL_THROTTLE in nfsd_vfs_write).
func (r *request) cleansMemory() {
	if r.conn.isLocal() {
		r.op.Scope = r.op.Scope.Memalloc().LocalThrottle()
	}
}

// undecodable returns err, and unless it is one that NFS has a status for, has
// the call answered with GARBAGE_ARGS instead.
func (r *request) undecodable(err error) error {
	if !errors.Is(err, nfs3.ErrBadHandle) && !errors.Is(err, nfs3.ErrNameTooLong) {
		r.accept = sunrpc.GarbageArgs
	}
	return err
}

func (r *request) startReply() {
	r.enc.Buf = r.enc.Buf[:0]
	r.mark = sunrpc.BeginRecord(&r.enc)
}

// refuse replaces the reply.
func (r *request) refuse(stat sunrpc.AcceptStat) {
	r.data.Release()
	r.startReply()
	switch stat {
	case sunrpc.ProgUnavail:
		sunrpc.ReplyProgUnavail(&r.enc, r.call.XID)
	case sunrpc.ProgMismatch:
		v := programs[r.call.Prog].version
		sunrpc.ReplyProgMismatch(&r.enc, r.call.XID, v, v)
	case sunrpc.ProcUnavail:
		sunrpc.ReplyProcUnavail(&r.enc, r.call.XID)
	case sunrpc.GarbageArgs:
		sunrpc.ReplyGarbageArgs(&r.enc, r.call.XID)
	default:
		sunrpc.ReplySystemErr(&r.enc, r.call.XID)
	}
}

// recover answers a call whose procedure panicked. What the file system had
// locked stays locked, but others can be served.
func (r *request) recover() {
	p := recover()
	if p == nil {
		return
	}
	r.srv.count.panics.Add(1)
	r.srv.cfg.Logger.Error("panic while serving a call", "call", r.name(),
		"peer", r.conn.peer.String(), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	r.accept, r.op.Waits = sunrpc.SystemErr, false // that is the answer
	r.refuse(r.accept)
}

// leave gives back the memory that the procedure needed and the reply does not.
func (r *request) leave() {
	r.names.pages.release()
	r.pages.release()
	if r.carries {
		r.data.Release()
		r.carries = false
	}
	if r.data.Len() == 0 {
		r.uncharge()
	}
}

// uncharge tells admission that the request holds no more pages.
func (r *request) uncharge() {
	if r.charge > 0 {
		r.task.Release(r.srv.adm.dataResource())
		r.srv.adm.putBytes(r.conn, r.charge)
		r.charge = 0
	}
}

// finishReply completes the record.
func (r *request) finishReply() {
	n := r.data.Len()
	sunrpc.EndRecord(&r.enc, r.mark, n+xdr.PadLen(n))
}

// end makes the slot free once its reply is sent, or cannot be sent.
func (r *request) end() {
	c := r.conn
	r.data.Release()
	r.uncharge()
	r.task.End()
	r.conn, r.exp, r.next, r.begun, r.off, r.op = nil, nil, nil, false, 0, vfs.Op{}
	r.headerErr, r.dataErr, r.accept, r.triedNow = nil, nil, sunrpc.Success, false
	r.srv.adm.putSlot(c, r)
	c.inflight.Done()
}
