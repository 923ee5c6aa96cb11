package nlm

import (
	"net/netip"
	"slices"

	"loopnfs/internal/nlm4"
)

// Limits bound the memory of a Manager.
type Limits struct {
	Clients   int // hosts with locks
	Locks     int // in all: held, waited for, and share reservations
	PerClient int // of these, of one address
	Waiting   int // of these
}

// DefaultLimits are some 10 MB, if clients give their owners the longest names.
var DefaultLimits = Limits{Clients: 1024, Locks: 16384, PerClient: 4096, Waiting: 1024}

const (
	// maxPerFile and maxWaitingPerFile bound the work that one call can be: their product.
	maxPerFile          = 4096
	maxWaitingPerFile   = 256
	maxWaitingPerClient = 256 // of the hosts at one address
	// maxNames is how many hosts there can be at one address.
	maxNames = 64
	// maxName bounds the name of a caller and of an owner, in bytes. Those of Linux have
	// 75 at most.
	maxName = 255
)

// Client is a host that locks: where it calls from and what it calls itself.
type Client struct {
	Addr netip.Addr
	Name string
}

// host is a Client that is known.
type host struct {
	Client
	here      netip.Addr // where it calls
	owners    map[ownerID]*owner
	usage     *usage
	records   int
	monitored bool   // on the list on disk
	state     uint32 // of its status monitor, when it locked last
	pins      int
}

type ownerID struct {
	svid uint32
	oh   string
}

// owner is a process of a host.
type owner struct {
	host    *host
	id      ownerID
	records int
	waits   []*waiter
}

// held is a range that is locked, both ends included.
type held struct {
	owner       *owner
	exclusive   bool
	start, last uint64
}

func (h *held) overlaps(start, last uint64) bool { return h.start <= last && start <= h.last }

// share is a reservation of a whole file.
type share struct {
	owner        *owner
	deny, access uint32
}

// waiter is a lock that is waited for, or granted and the client not told.
type waiter struct {
	held
	file    *file
	id      uint64
	here    netip.Addr // where the client asked: it heeds calls from there
	granted bool
	before  []held // what the owner has there if the grant is undone
	// unsure is set once the client may have heard of the grant, final once the owner
	// was granted something on top of it: it cannot be taken back alone.
	unsure, final bool
}

// file is one that has locks.
type file struct {
	handle  string
	held    []held
	waiting []*waiter // in the order they came
	shares  []share
}

// table is who has and wants what. Invariant: locks of one owner on a file do not
// overlap, and an exclusive lock overlaps no lock of another owner. Manager.mu guards it.
type table struct {
	limits  Limits
	hosts   map[Client]*host
	files   map[string]*file
	granted map[uint64]*waiter // by id: those whose clients are to be told
	records int
	byAddr  map[netip.Addr]*usage
	waiting int // waiters, and calls to clients about those granted
	lastID  uint64
}

// usage is what the hosts at one address have.
type usage struct{ hosts, records, waiting int }

func newTable(limits Limits) *table {
	return &table{
		limits: limits, hosts: map[Client]*host{}, files: map[string]*file{}, granted: map[uint64]*waiter{}, byAddr: map[netip.Addr]*usage{},
	}
}

// host finds or makes the host of c; nil if there are too many.
func (t *table) host(c Client) *host {
	if h := t.hosts[c]; h != nil {
		return h
	}
	u := t.byAddr[c.Addr]
	full := u != nil && u.hosts >= maxNames && !t.evict(func(h *host) bool { return h.Addr == c.Addr }) ||
		len(t.hosts) >= t.limits.Clients && !t.evict(func(*host) bool { return true })
	if full {
		return nil
	}
	if u = t.byAddr[c.Addr]; u == nil {
		u = &usage{}
		t.byAddr[c.Addr] = u
	}
	u.hosts++
	h := &host{Client: c, owners: map[ownerID]*owner{}, usage: u}
	t.hosts[c] = h
	return h
}

// evict forgets a host that matches and has nothing.
func (t *table) evict(match func(*host) bool) bool {
	for c, h := range t.hosts {
		if h.records > 0 || h.pins > 0 || !match(h) {
			continue
		}
		delete(t.hosts, c)
		if h.usage.hosts--; h.usage.hosts == 0 {
			delete(t.byAddr, c.Addr)
		}
		return true
	}
	return false
}

// owner finds an owner, or makes one that becomes known by its first record.
func (h *host) owner(id ownerID) *owner {
	if o := h.owners[id]; o != nil {
		return o
	}
	return &owner{host: h, id: id}
}

// file finds a file, or makes one that is there for others when it is kept.
func (t *table) file(handle []byte) *file {
	if f := t.files[string(handle)]; f != nil {
		return f
	}
	return &file{handle: string(handle)}
}

// has reports whether an owner has what it may want to have.
func (t *table) has(handle []byte, want held) bool {
	f := t.files[string(handle)]
	return f != nil && slices.ContainsFunc(f.held, func(h held) bool {
		return h.owner == want.owner && h.exclusive == want.exclusive && h.start <= want.start && want.last <= h.last
	})
}

// keep keeps f as long as it has something; it is called after every change.
func (t *table) keep(f *file) {
	if len(f.held) == 0 && len(f.waiting) == 0 && len(f.shares) == 0 {
		delete(t.files, f.handle)
		return
	}
	t.files[f.handle] = f
}

// count adds n records to those of o.
func (t *table) count(o *owner, n int) {
	o.records += n
	o.host.records += n
	o.host.usage.records += n
	t.records += n
	if o.records == 0 {
		delete(o.host.owners, o.id)
		return
	}
	o.host.owners[o.id] = o
}

func (t *table) room(o *owner, f *file, n int) bool {
	return n <= 0 || t.records+n <= t.limits.Locks && o.host.usage.records+n <= t.limits.PerClient && len(f.held)+n <= maxPerFile
}

// conflict returns a lock that keeps o from having the range.
func (f *file) conflict(o *owner, exclusive bool, start, last uint64) *held {
	for i := range f.held {
		h := &f.held[i]
		if h.owner != o && (exclusive || h.exclusive) && h.overlaps(start, last) {
			return h
		}
	}
	return nil
}

// mode is what becomes of a range.
type mode uint8

const (
	unlocked mode = iota
	shared
	exclusive
)

func modeOf(excl bool) mode {
	if excl {
		return exclusive
	}
	return shared
}

// change returns the locks of f when those of o in the range have become m, and whether
// any of them got weaker. Neighbours that are alike are joined (posix_lock_inode).
func (f *file) change(o *owner, m mode, start, last uint64) (after []held, weaker bool) {
	after = make([]held, 0, len(f.held)+2)
	at := held{o, m == exclusive, start, last}
	for _, h := range f.held {
		switch {
		case h.owner != o:
			after = append(after, h)
		case m != unlocked && h.exclusive == at.exclusive && touches(&h, start, last):
			at.start, at.last = min(at.start, h.start), max(at.last, h.last)
		case !h.overlaps(start, last):
			after = append(after, h)
		default:
			weaker = weaker || m == unlocked || h.exclusive && m == shared
			if h.start < start {
				after = append(after, held{o, h.exclusive, h.start, start - 1})
			}
			if h.last > last {
				after = append(after, held{o, h.exclusive, last + 1, h.last})
			}
		}
	}
	if m != unlocked {
		after = append(after, at)
	}
	return after, weaker
}

// touches reports whether h and the range overlap or are next to each other.
func touches(h *held, start, last uint64) bool {
	return h.overlaps(start, last) || h.last != ^uint64(0) && h.last+1 == start || last != ^uint64(0) && last+1 == h.start
}

// set makes a change, if there is room for it.
func (t *table) set(f *file, o *owner, m mode, start, last uint64) (weaker, ok bool) {
	after, weaker := f.change(o, m, start, last)
	n := len(after) - len(f.held)
	if !t.room(o, f, n) {
		return false, false
	}
	t.replace(f, o, after)
	return weaker, true
}

func (t *table) replace(f *file, o *owner, after []held) {
	t.count(o, len(after)-len(f.held))
	f.held = after
}

// lock has o lock a range, or wait for it. What is granted to others by that is
// returned: a lock may become weaker.
func (t *table) lock(f *file, o *owner, excl, block bool, start, last uint64) (nlm4.Status, []*waiter) {
	if f.conflict(o, excl, start, last) != nil {
		return t.wait(f, o, excl, block, start, last), nil
	}
	weaker, ok := t.set(f, o, modeOf(excl), start, last)
	if !ok {
		return nlm4.DeniedNoLocks, nil
	}
	want := held{o, excl, start, last}
	t.settle(f, o, func(w *waiter) bool { return w.held == want || w.granted && w.overlaps(start, last) })
	if !weaker {
		return nlm4.Granted, nil
	}
	return nlm4.Granted, t.wake(f)
}

// wait has o wait, if it may. Who waits already goes on waiting.
func (t *table) wait(f *file, o *owner, excl, block bool, start, last uint64) nlm4.Status {
	want := held{o, excl, start, last}
	switch {
	case !block:
		return nlm4.Denied
	case slices.ContainsFunc(f.waiting, func(w *waiter) bool { return w.held == want }):
		return nlm4.Blocked
	case t.deadlock(f, &want):
		return nlm4.Deadlock
	case t.waiting >= t.limits.Waiting || o.host.usage.waiting >= maxWaitingPerClient || len(f.waiting) >= maxWaitingPerFile || !t.room(o, f, 1):
		return nlm4.DeniedNoLocks
	}
	t.lastID++
	w := &waiter{held: want, file: f, id: t.lastID, here: o.host.here}
	f.waiting = append(f.waiting, w)
	o.host.usage.waiting++
	o.waits = append(o.waits, w)
	t.waiting++
	t.count(o, 1)
	return nlm4.Blocked
}

// deadlock reports whether want.owner would wait for itself (posix_locks_deadlock).
// Every owner is looked at once.
func (t *table) deadlock(f *file, want *held) bool {
	seen := map[*owner]bool{}
	var waitsFor func(f *file, w *held) bool
	waitsFor = func(f *file, w *held) bool {
		for i := range f.held {
			h := &f.held[i]
			if h.owner == w.owner || !w.exclusive && !h.exclusive || !h.overlaps(w.start, w.last) {
				continue
			}
			if h.owner == want.owner {
				return true
			}
			if seen[h.owner] {
				continue
			}
			seen[h.owner] = true
			for _, next := range h.owner.waits {
				if waitsFor(next.file, &next.held) {
					return true
				}
			}
		}
		return false
	}
	return waitsFor(f, want)
}

// settle drops the waiters of o on f that match, granted ones included.
func (t *table) settle(f *file, o *owner, match func(*waiter) bool) {
	f.waiting = slices.DeleteFunc(f.waiting, func(w *waiter) bool {
		drop := w.owner == o && match(w)
		if drop {
			t.waitsNoMore(w)
			t.count(o, -1)
			t.waiting--
		}
		return drop
	})
	for _, w := range t.granted {
		if w.file == f && w.owner == o && match(w) {
			t.told(w)
		}
	}
}

func (t *table) waitsNoMore(w *waiter) {
	w.owner.host.usage.waiting--
	w.owner.waits = slices.DeleteFunc(w.owner.waits, func(x *waiter) bool { return x == w })
}

// told ends the telling of a waiter that it has its lock. It counts among those that
// wait until the call to its client is off the list of calls, which is bounded by that.
func (t *table) told(w *waiter) {
	delete(t.granted, w.id)
	t.count(w.owner, -1)
}

// wake grants what nothing is in the way of any more.
func (t *table) wake(f *file) (granted []*waiter) {
	for again := true; again; {
		again = false
		for _, w := range slices.Clone(f.waiting) {
			if f.conflict(w.owner, w.exclusive, w.start, w.last) != nil {
				continue
			}
			if weaker, ok := t.grant(w); ok {
				granted = append(granted, w)
				again = again || weaker
			}
		}
	}
	return granted
}

// grant gives a waiter its lock. Its record stays until the client has been told.
func (t *table) grant(w *waiter) (weaker, ok bool) {
	f := w.file
	before := f.of(w)
	if weaker, ok = t.set(f, w.owner, modeOf(w.exclusive), w.start, w.last); !ok {
		return false, false
	}
	f.waiting = slices.DeleteFunc(f.waiting, func(x *waiter) bool { return x == w })
	t.waitsNoMore(w)
	for _, g := range t.granted {
		g.final = g.final || g.file == f && g.owner == w.owner && g.overlaps(w.start, w.last)
	}
	w.granted, w.before = true, before
	t.granted[w.id] = w
	return weaker, true
}

// of returns the parts of the locks of a waiter that are in its range, no stronger than
// what it gets: others may have the rest by the time that it is undone.
func (f *file) of(w *waiter) (parts []held) {
	for _, h := range f.held {
		if h.owner == w.owner && h.overlaps(w.start, w.last) {
			parts = append(parts, held{h.owner, h.exclusive && w.exclusive, max(h.start, w.start), min(h.last, w.last)})
		}
	}
	return parts
}

// undo takes a grant back, unless it is final: the owner has what it had before, or less.
func (t *table) undo(w *waiter) []*waiter {
	f := w.file
	t.told(w)
	if w.final {
		return nil
	}
	after, _ := f.change(w.owner, unlocked, w.start, w.last)
	t.replace(f, w.owner, after)
	for _, h := range w.before {
		after, _ = f.change(h.owner, modeOf(h.exclusive), h.start, h.last)
		t.replace(f, h.owner, after)
	}
	return t.wake(f)
}

// unlock frees a range of o, and what it waits for in it.
func (t *table) unlock(f *file, o *owner, start, last uint64) (nlm4.Status, []*waiter) {
	if _, ok := t.set(f, o, unlocked, start, last); !ok {
		return nlm4.DeniedNoLocks, nil // to split a lock takes one more
	}
	t.settle(f, o, func(w *waiter) bool {
		return start <= w.start && w.last <= last || w.granted && w.overlaps(start, last)
	})
	return nlm4.Granted, t.wake(f)
}

// cancel ends a wait. It may be over already, and the client not know; if the grant is final,
// it has to unlock.
func (t *table) cancel(f *file, o *owner, excl bool, start, last uint64) (nlm4.Status, []*waiter) {
	want := held{o, excl, start, last}
	for _, w := range t.granted {
		if w.file == f && w.held == want {
			status := nlm4.Granted
			if w.final {
				status = nlm4.Denied
			}
			return status, t.undo(w)
		}
	}
	n := len(f.waiting)
	t.settle(f, o, func(w *waiter) bool { return w.held == want })
	if len(f.waiting) == n {
		return nlm4.Denied, nil
	}
	return nlm4.Granted, nil
}

// reserve makes a share reservation; a second one of the same owner replaces the first.
func (t *table) reserve(f *file, o *owner, deny, access uint32) nlm4.Status {
	mine := -1
	for i, s := range f.shares {
		switch {
		case s.owner == o:
			mine = i
		case s.deny&access != 0 || deny&s.access != 0:
			return nlm4.Denied
		}
	}
	if mine >= 0 {
		f.shares[mine] = share{o, deny, access}
		return nlm4.Granted
	}
	if !t.room(o, f, 1) || len(f.shares) >= maxPerFile {
		return nlm4.DeniedNoLocks
	}
	f.shares = append(f.shares, share{o, deny, access})
	t.count(o, 1)
	return nlm4.Granted
}

// unreserve takes a share reservation back, if there is one.
func (t *table) unreserve(f *file, o *owner) {
	n := len(f.shares)
	f.shares = slices.DeleteFunc(f.shares, func(s share) bool { return s.owner == o })
	t.count(o, len(f.shares)-n)
}

// free drops everything that a host has.
func (t *table) free(h *host) (granted []*waiter) {
	if h.records == 0 {
		return nil
	}
	for _, w := range t.granted {
		if w.owner.host == h {
			t.told(w)
		}
	}
	for _, f := range t.files {
		if t.dropAll(f, h) {
			granted = append(granted, t.wake(f)...)
			t.keep(f)
		}
	}
	return granted
}

// dropAll drops everything that a host has of f, and reports whether that was something.
func (t *table) dropAll(f *file, h *host) bool {
	before := h.records
	f.held = slices.DeleteFunc(f.held, func(l held) bool { return t.dropped(l.owner, h) })
	f.shares = slices.DeleteFunc(f.shares, func(s share) bool { return t.dropped(s.owner, h) })
	f.waiting = slices.DeleteFunc(f.waiting, func(w *waiter) bool {
		if w.owner.host != h {
			return false
		}
		t.waitsNoMore(w)
		t.waiting--
		return t.dropped(w.owner, h)
	})
	return h.records != before
}

// dropped counts a record of o less if o is of h, and reports whether it is.
func (t *table) dropped(o *owner, h *host) bool {
	if o.host == h {
		t.count(o, -1)
	}
	return o.host == h
}
