package nfsserver

import (
	"sync"

	"loopnfs/internal/waitfor"
	"loopnfs/internal/waitq"
)

// ReceiveLoad is the state a ReceivePolicy decides on. The unit is request
// slots, or bytes of the arena that data in flight takes: both are shared in the
// same way.
type ReceiveLoad struct {
	Limit    int64 // what all connections together can have
	Used     int64 // what they have
	Remote   int64 // what of that clients on other hosts have
	ConnUsed int64 // what the connection that asks has
	Need     int64 // what it asks for
}

// ReceivePolicy decides whether a connection may go on reading.
type ReceivePolicy interface {
	Admit(l ReceiveLoad, local bool) bool
}

// FairShare is the mechanism "socket-reserve": a connection gets no more than it
// leaves, so that there is something for whoever comes next, and a quarter of the
// limit is for clients on this host, whose requests free memory.
type FairShare struct{}

// Admit implements ReceivePolicy.
func (FairShare) Admit(l ReceiveLoad, local bool) bool {
	left := l.Limit - l.Used
	if !local {
		left = min(left, l.Limit-l.Limit/4-l.Remote)
	}
	return l.fits(left)
}

// EqualShare has no part set aside: ordinary connections can keep those out
// that memory depends on.
type EqualShare struct{}

// Admit implements ReceivePolicy.
func (EqualShare) Admit(l ReceiveLoad, _ bool) bool { return l.fits(l.Limit - l.Used) }

// fits compares with what is left, as the dynamic thresholds of a switch do: n busy
// connections get an equal part each, of n+1.
func (l *ReceiveLoad) fits(left int64) bool {
	return l.Need <= left && (l.ConnUsed == 0 || l.ConnUsed+l.Need <= left)
}

// usage is what a connection has of what is shared; guarded by admission.mu.
type usage struct{ slots, bytes int64 }

func (u *usage) idle() bool { return u.slots == 0 && u.bytes == 0 }

func (u *usage) add(slots, bytes int64) { u.slots, u.bytes = u.slots+slots, u.bytes+bytes }

// admission hands out request slots and the right to hold pages of the arena,
// and with them decides which connections go on reading (back-pressure).
type admission struct {
	policy ReceivePolicy
	limit  usage
	// poolID is that of Config, for the wait-for graph.
	poolID uint64
	wq     waitq.Queue // readers that were refused

	mu     sync.Mutex
	closed bool
	used   usage // by all
	remote usage // by clients on other hosts
	free   []*request
}

// slotResource and dataResource are what a reader waits for.
func (a *admission) slotResource() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Request, ID: a.poolID << 1}
}

func (a *admission) dataResource() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Request, ID: a.poolID<<1 | 1}
}

// add changes what c has. a.mu is held.
func (a *admission) add(c *conn, slots, bytes int64) {
	if c.usage.idle() { // where it counts must not change before it is idle again
		c.remote = !c.isLocal()
	}
	c.usage.add(slots, bytes)
	a.used.add(slots, bytes)
	if c.remote {
		a.remote.add(slots, bytes)
	}
}

// trySlot returns a free request for c, or nil.
func (a *admission) trySlot(c *conn) *request {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := ReceiveLoad{Limit: a.limit.slots, Used: a.used.slots, Remote: a.remote.slots, ConnUsed: c.usage.slots, Need: 1}
	if len(a.free) == 0 || !a.policy.Admit(l, c.isLocal()) {
		return nil
	}
	r := a.free[len(a.free)-1]
	a.free = a.free[:len(a.free)-1]
	a.add(c, 1, 0)
	return r
}

// tryBytes reports whether c may hold n more bytes of the arena, and counts them.
func (a *admission) tryBytes(c *conn, n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := ReceiveLoad{Limit: a.limit.bytes, Used: a.used.bytes, Remote: a.remote.bytes, ConnUsed: c.usage.bytes, Need: n}
	if !a.policy.Admit(l, c.isLocal()) {
		return false
	}
	a.add(c, 0, n)
	return true
}

// slot waits for a free request on behalf of c's task; nil if c or the server
// is closed.
func (a *admission) slot(c *conn) *request {
	if r := a.trySlot(c); r != nil {
		return r
	}
	c.flush() // those replies have slots
	c.task.Wait("", "a request slot", 0, a.slotResource())
	defer c.task.Done()
	w := a.wq.Prepare()
	defer a.wq.Finish(w)
	r := a.trySlot(c)
	for ; r == nil && !a.isClosed() && w.Wait(c.done); r = a.trySlot(c) {
	}
	return r
}

// bytes waits until c may hold n more bytes of the arena; false if c or the
// server is closed.
func (a *admission) bytes(c *conn, n int64) bool {
	if a.tryBytes(c, n) {
		return true
	}
	c.flush() // those replies hold bytes
	c.task.Wait("", "room for its data", 0, a.dataResource())
	defer c.task.Done()
	w := a.wq.Prepare()
	defer a.wq.Finish(w)
	ok := a.tryBytes(c, n)
	for ; !ok && !a.isClosed() && w.Wait(c.done); ok = a.tryBytes(c, n) {
	}
	return ok
}

// putSlot gives back a request of c.
func (a *admission) putSlot(c *conn, r *request) {
	a.mu.Lock()
	a.free = append(a.free, r)
	a.add(c, -1, 0)
	a.mu.Unlock()
	a.wq.Wake()
}

// putBytes gives back the right to hold n bytes.
func (a *admission) putBytes(c *conn, n int64) {
	a.mu.Lock()
	a.add(c, 0, -n)
	a.mu.Unlock()
	a.wq.Wake()
}

// idle reports whether no request of c is in progress.
func (a *admission) idle(c *conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return c.usage.idle()
}

// now returns what is in use.
func (a *admission) now() usage {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used
}

func (a *admission) isClosed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

// close lets go every reader that waits.
func (a *admission) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.wq.Wake()
}
