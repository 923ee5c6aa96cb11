package nfsserver

import (
	"sync/atomic"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

const (
	// maxLent is how many readers carry out a call that may wait, at most, and how many of
	// those that are late keep others from being lent.
	maxLent = 4
	// MaxLate is how many may be late at most: each may take a thread more than the workers
	// have.
	MaxLate = 2*maxLent - 1
	// lendTick is how often they are looked after: one that has been at the same call at
	// two ticks is late.
	lendTick = time.Millisecond
	// lendPause is how many calls of a connection are for workers after one that was slow.
	lendPause = 256
	// lendQuiet is how many ticks nobody has to be lent for the ticks to end.
	lendQuiet = 100
)

// A call that takes longer than slowCall, in ns, had to wait for something; so had some of
// those that a reader carried out since it has waited for its peer, if they took longer than
// slowCalls together. Variables for tests.
var slowCall, slowCalls int64 = 100_000, 400_000

// lending lets readers carry out calls that may have to wait, but mostly do not: what a
// file handle of a file that is not in memory leads to is in the kernel's caches. A worker
// would cost more than the call itself, and a system call of its own for each reply.
//
// A reader that lends itself to a call gives the right to read away if it is late: the
// connection has another reader then, and what was its reader ends with that call, like a
// worker. So nobody waits for somebody else's call for longer than two ticks, or what the
// runtime needs to see that they are over while threads are in system calls, 10 ms.
type lending struct {
	// conns are those whose readers are lent. conn.lent says whether they still are.
	conns [maxLent]atomic.Pointer[conn]
	late  atomic.Int32 // readers that lost the right to read, and are at their call yet
	runs  atomic.Bool  // tick comes
	timer *time.Timer

	replaced atomic.Uint64 // readers so far

	// Owned by tick.
	seen  [maxLent]lent
	quiet int
}

// lent is a reader at a call. Zero is none.
type lent struct {
	conn *conn
	call uint64
}

func (l *lending) init() {
	l.timer = time.AfterFunc(time.Hour, l.tick)
	l.timer.Stop()
}

// mayLend reports whether a call that serveNow has put off waits so seldom, and for so
// little, that its reader may carry it out. None may while the host is short of memory, as
// far as the server is told: another reader takes some.
func (r *request) mayLend() bool {
	if !r.triedNow || r.srv.cfg.Stability(vfs.Unstable, r.conn.isLocal()) != vfs.Unstable {
		return false
	}
	switch r.call.Proc {
	case nfs3.ProcGetAttr, nfs3.ProcLookup, nfs3.ProcAccess:
		return true
	}
	return false
}

// begin lends the reader of c, which calls it, and returns where, and the number that end
// wants; false if it may not be lent.
func (l *lending) begin(c *conn) (at int, call uint64, ok bool) {
	if c.pause > 0 {
		c.pause--
		return 0, 0, false
	}
	if l.late.Load() >= maxLent {
		return 0, 0, false
	}
	for at := range l.conns {
		if l.conns[at].Load() == nil && l.conns[at].CompareAndSwap(nil, c) {
			c.lends++
			if l.late.Load() >= maxLent { // some of them were lent when it looked before
				l.conns[at].Store(nil)
				return 0, 0, false
			}
			call = c.lends // it is somebody else's as soon as the reader may be late
			c.lent.Store(call)
			l.start()
			return at, call, true
		}
	}
	return 0, 0, false
}

// end is called by the reader when the call is done, after took ns. It reports whether
// that still is the reader.
func (l *lending) end(c *conn, at int, call uint64, took int64) bool {
	if !c.lent.CompareAndSwap(call, 0) {
		l.late.Add(-1)
		return false
	}
	l.conns[at].Store(nil)
	c.lentFor += took
	if took > slowCall || c.lentFor > slowCalls {
		c.pause = lendPause
		c.flush()
	}
	return true
}

func (l *lending) start() {
	if !l.runs.Load() && !l.runs.Swap(true) {
		l.timer.Reset(lendTick)
	}
}

// tick has those who are late replaced.
func (l *lending) tick() {
	l.quiet++
	for at := range l.conns {
		now := lent{conn: l.conns[at].Load()}
		if now.conn == nil {
			l.seen[at] = now
			continue
		}
		l.quiet = 0
		now.call = now.conn.lent.Load()
		if now.call == 0 || now != l.seen[at] {
			l.seen[at] = now
			continue
		}
		l.replace(at, now)
	}
	if l.quiet < lendQuiet {
		l.timer.Reset(lendTick)
		return
	}
	l.quiet = 0
	l.runs.Store(false)
	for at := range l.conns { // who began before that counts on the tick
		if l.conns[at].Load() != nil {
			l.start()
		}
	}
}

// replace starts another reader unless the one that was seen is done meanwhile.
func (l *lending) replace(at int, late lent) {
	if !late.conn.lent.CompareAndSwap(late.call, 0) {
		return
	}
	l.late.Add(1)
	l.replaced.Add(1)
	l.conns[at].Store(nil)
	late.conn.pause = lendPause
	late.conn.srv.read(late.conn)
}

// serveLent carries out a call that serveNow could not, on the reader if that may be lent.
// It returns errReplaced if that is not the reader any more.
func (r *request) serveLent() error {
	c, l := r.conn, &r.srv.lending
	if !r.mayLend() {
		r.enqueue()
		return nil
	}
	at, call, ok := l.begin(c)
	if !ok {
		r.enqueue()
		return nil
	}
	began := r.srv.uptime()
	r.serve(false)
	if !l.end(c, at, call, r.srv.uptime()-began) {
		r.reply()
		return errReplaced
	}
	r.queueReply()
	return nil
}
