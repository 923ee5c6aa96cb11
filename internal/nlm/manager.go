package nlm

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"loopnfs/internal/nlm4"
	"loopnfs/internal/portmap"
	"loopnfs/internal/xdr"
)

// Manager is the lock manager of a server. All methods may be called concurrently, and
// none but New, Close and the first lock of a client waits for more than other calls.
type Manager struct {
	cfg     Config
	name    string // of this host
	list    *monitor
	calls   callbacks
	pruning *time.Timer
	watch   atomic.Pointer[portmap.Watch]
	statd   tracker

	mu       sync.Mutex
	table    *table
	graceEnd time.Time       // zero: there is none
	awaited  map[Client]bool // who had locks before the start, during grace
}

// Peer is where a call comes from: its address, and that of this host which it called.
type Peer struct{ Addr, Here netip.Addr }

// New returns a lock manager without locks. If there were any when the one before it
// ended, the grace period begins, and Notify is to be called when clients can find the
// server. Close it.
func New(cfg Config) (*Manager, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	list, err := openMonitor(cfg.Dir, cfg.Limits.Clients, time.Now())
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, list: list, table: newTable(cfg.Limits), awaited: map[Client]bool{}}
	if m.name, err = os.Hostname(); err != nil {
		return nil, err
	}
	if list.unsaved != nil { // as with the epoch, clients' memory may depend on this server
		cfg.Logger.Error("locks: this start is not counted", "err", list.unsaved,
			"costs", "clients are told of it by a number drawn at random; who gets its first lock now is refused",
			"remedy", "make room on the disk with the state directory, or repair it")
	}
	m.statd.queued = map[netip.Addr]bool{}
	for _, e := range list.all() {
		m.awaited[e.Client] = true
	}
	if len(m.awaited) > 0 {
		m.graceEnd = time.Now().Add(cfg.Grace)
		m.pruning = time.AfterFunc(cfg.Grace, m.prune)
		cfg.Logger.Info("locks: a grace period for clients that had some", "clients", len(m.awaited), "length", cfg.Grace)
	}
	m.calls.start(&m.cfg, m.name, m.do)
	return m, nil
}

// Notify tells all clients that had locks before the start that it took place
// (SM_NOTIFY), in the background, until they answer or Config.Tries. They reclaim their
// locks then.
func (m *Manager) Notify() {
	for _, e := range m.list.all() {
		m.mu.Lock()
		awaited := m.awaited[e.Client]
		m.mu.Unlock()
		if awaited {
			m.calls.add(&job{entry: e, kind: notify, state: m.list.state})
		}
	}
}

// State is the number of this start: odd, and higher than that of the last.
func (m *Manager) State() uint32 { return m.list.state }

// Close ends the calls to clients. Who has locks stays on the list.
func (m *Manager) Close() error {
	if m.pruning != nil {
		m.pruning.Stop()
	}
	m.watch.Load().Close()
	m.calls.close()
	_, err := m.list.prune(m.idle)
	return err
}

// prune takes clients off the list that have no locks, at the end of the grace period.
func (m *Manager) prune() {
	gone, err := m.list.prune(m.idle)
	m.track(gone...)
	if err != nil {
		m.cfg.Logger.Warn("locks: the list of clients with locks cannot be shortened", "error", err,
			"costs", "they are told of the next start")
	}
}

// idle reports whether a client need not be on the list, and if so has its next lock
// put it there again. The lock of the list is held.
func (m *Manager) idle(c Client) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inGrace() && m.awaited[c] {
		return false
	}
	h := m.table.hosts[c]
	if h == nil {
		return true
	}
	if h.records > 0 || h.pins > 0 {
		return false
	}
	h.monitored = false
	return true
}

// inGrace reports whether only reclaims are granted. mu is held.
func (m *Manager) inGrace() bool {
	if m.graceEnd.IsZero() {
		return false
	}
	if len(m.awaited) == 0 || !time.Now().Before(m.graceEnd) {
		m.graceEnd = time.Time{}
		clear(m.awaited)
		return false
	}
	return true
}

// refusal is the answer to whoever wants to lock in, or reclaims after, the grace
// period; Granted if there is none. mu is held.
func (m *Manager) refusal(reclaim bool) nlm4.Status {
	if m.inGrace() != reclaim {
		return nlm4.DeniedGracePeriod
	}
	return nlm4.Granted
}

// refusalOf is refusal for LOCK. What the owner has can be reclaimed at any time: clients
// may be told of one start twice, by this server and by the status monitor of its host.
// mu is held.
func (m *Manager) refusalOf(a *nlm4.LockArgs, o *owner, last uint64) nlm4.Status {
	if a.Reclaim && m.table.has(a.Lock.Handle, held{o, a.Exclusive, a.Lock.Range.Start, last}) {
		return nlm4.Granted
	}
	return m.refusal(a.Reclaim)
}

// withOwner finds who calls and calls f with mu held; what f grants is told to clients.
func (m *Manager) withOwner(p Peer, caller, oh []byte, svid uint32, f func(h *host, o *owner) (nlm4.Status, []*waiter)) nlm4.Status {
	if len(caller) > maxName || len(oh) > maxName {
		return nlm4.DeniedNoLocks
	}
	m.mu.Lock()
	h := m.table.host(Client{p.Addr, string(caller)})
	if h == nil {
		m.mu.Unlock()
		return nlm4.DeniedNoLocks
	}
	h.here = p.Here
	status, granted := f(h, h.owner(ownerID{svid, string(oh)}))
	jobs := m.jobsFor(granted)
	m.mu.Unlock()
	m.tell(jobs)
	return status
}

// jobsFor makes the calls for what was granted. mu is held.
func (m *Manager) jobsFor(granted []*waiter) (jobs []*job) {
	for _, w := range granted {
		jobs = append(jobs, &job{entry: entry{w.owner.host.Client, w.here}, kind: grant, id: w.id})
	}
	return jobs
}

func (m *Manager) tell(jobs []*job) {
	for _, j := range jobs {
		m.calls.add(j)
	}
}

// Test answers TEST: res says whether the lock could be had, or who is in the way.
func (m *Manager) Test(p Peer, a *nlm4.TestArgs, res *nlm4.TestResult) {
	last, ok := a.Lock.Range.Last()
	if !ok {
		res.Status = nlm4.TooBig
		return
	}
	l := &a.Lock
	res.Status = m.withOwner(p, l.Caller, l.Owner, l.SVID, func(_ *host, o *owner) (nlm4.Status, []*waiter) {
		if m.inGrace() {
			return nlm4.DeniedGracePeriod, nil
		}
		h := m.table.file(l.Handle).conflict(o, a.Exclusive, l.Range.Start, last)
		if h == nil {
			return nlm4.Granted, nil
		}
		res.Holder = nlm4.Holder{
			Exclusive: h.exclusive, SVID: h.owner.id.svid, Owner: []byte(h.owner.id.oh), Range: nlm4.RangeOf(h.start, h.last),
		}
		return nlm4.Denied, nil
	})
}

// Lock answers LOCK; one that has to wait is Blocked, and the client is called when it
// is granted. The first lock of a client waits for the disk.
func (m *Manager) Lock(p Peer, a *nlm4.LockArgs) nlm4.Status {
	if status := m.remember(p, a); status != nlm4.Granted {
		return status
	}
	defer m.unpin(Client{p.Addr, string(a.Lock.Caller)})
	return m.lock(p, a)
}

// LockUnmonitored answers NM_LOCK: a client that does not tell when it has started again
// is not told either, and never waits.
func (m *Manager) LockUnmonitored(p Peer, a *nlm4.LockArgs) nlm4.Status {
	a.Block = false
	return m.lock(p, a)
}

func (m *Manager) lock(p Peer, a *nlm4.LockArgs) nlm4.Status {
	l := &a.Lock
	last, ok := l.Range.Last()
	if !ok {
		return nlm4.TooBig
	}
	return m.withOwner(p, l.Caller, l.Owner, l.SVID, func(h *host, o *owner) (nlm4.Status, []*waiter) {
		if status := m.refusalOf(a, o, last); status != nlm4.Granted {
			return status, nil
		}
		freed := m.freeOld(h, a.State)
		f := m.table.file(l.Handle)
		defer m.table.keep(f)
		status, granted := m.table.lock(f, o, a.Exclusive, a.Block, l.Range.Start, last)
		return status, append(freed, granted...)
	})
}

// freeOld frees what h has from before it started again, if a state that it tells says that
// it has: SM_NOTIFY may come after the first LOCK. mu is held.
func (m *Manager) freeOld(h *host, state uint32) (granted []*waiter) {
	if state == 0 {
		return nil
	}
	if h.state != 0 {
		if int32(state-h.state) <= 0 { // a LOCK of before may come late
			return nil
		}
		granted = m.table.free(h)
	}
	h.state = state
	return granted
}

// remember puts the client on the list, unless it is there or would get nothing, and
// pins it: it stays there until unpin.
func (m *Manager) remember(p Peer, a *nlm4.LockArgs) nlm4.Status {
	var h *host
	var monitored bool
	last, ok := a.Lock.Range.Last()
	if !ok {
		return nlm4.TooBig
	}
	status := m.withOwner(p, a.Lock.Caller, a.Lock.Owner, a.Lock.SVID, func(host *host, o *owner) (nlm4.Status, []*waiter) {
		if status := m.refusalOf(a, o, last); status != nlm4.Granted {
			return status, nil
		}
		h, monitored = host, host.monitored
		h.pins++
		return nlm4.Granted, nil
	})
	if status != nlm4.Granted || monitored {
		return status
	}
	e := entry{h.Client, p.Here}
	err := m.list.add(e, func() { m.setMonitored(h) })
	if errors.Is(err, errFull) {
		m.prune()
		err = m.list.add(e, func() { m.setMonitored(h) })
	}
	if err != nil {
		m.unpin(h.Client)
		m.cfg.Logger.Error("locks: a client cannot be put on the list, and gets no locks", "client", e.Addr.String(), "error", err)
		return nlm4.DeniedNoLocks
	}
	m.track(e)
	return nlm4.Granted
}

func (m *Manager) setMonitored(h *host) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h.monitored = true
}

func (m *Manager) unpin(c Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.table.hosts[c].pins--
}

// Cancel answers CANCEL: Denied if nobody waits for that.
func (m *Manager) Cancel(p Peer, a *nlm4.CancelArgs) nlm4.Status {
	last, ok := a.Lock.Range.Last()
	if !ok {
		return nlm4.TooBig
	}
	return m.withFile(p, &a.Lock, func(f *file, o *owner) (nlm4.Status, []*waiter) {
		return m.table.cancel(f, o, a.Exclusive, a.Lock.Range.Start, last)
	})
}

// Unlock answers UNLOCK.
func (m *Manager) Unlock(p Peer, a *nlm4.UnlockArgs) nlm4.Status {
	last, ok := a.Lock.Range.Last()
	if !ok {
		return nlm4.TooBig
	}
	return m.withFile(p, &a.Lock, func(f *file, o *owner) (nlm4.Status, []*waiter) {
		return m.table.unlock(f, o, a.Lock.Range.Start, last)
	})
}

func (m *Manager) withFile(p Peer, l *nlm4.Lock, change func(f *file, o *owner) (nlm4.Status, []*waiter)) nlm4.Status {
	return m.withOwner(p, l.Caller, l.Owner, l.SVID, func(_ *host, o *owner) (nlm4.Status, []*waiter) {
		f := m.table.file(l.Handle)
		defer m.table.keep(f)
		return change(f, o)
	})
}

// Share answers SHARE. Reservations are between those who make them, and are not on
// the list: they are gone with the server.
func (m *Manager) Share(p Peer, a *nlm4.ShareArgs) nlm4.Status {
	l := nlm4.Lock{Caller: a.Caller, Handle: a.Handle, Owner: a.Owner}
	return m.withFile(p, &l, func(f *file, o *owner) (nlm4.Status, []*waiter) {
		if status := m.refusal(a.Reclaim); status != nlm4.Granted {
			return status, nil
		}
		return m.table.reserve(f, o, a.Deny, a.Access), nil
	})
}

// Unshare answers UNSHARE.
func (m *Manager) Unshare(p Peer, a *nlm4.ShareArgs) nlm4.Status {
	l := nlm4.Lock{Caller: a.Caller, Handle: a.Handle, Owner: a.Owner}
	return m.withFile(p, &l, func(f *file, o *owner) (nlm4.Status, []*waiter) {
		m.table.unreserve(f, o)
		return nlm4.Granted, nil
	})
}

// FreeAll answers FREE_ALL: the caller, which calls itself name, has no locks any more.
func (m *Manager) FreeAll(p Peer, name []byte) {
	m.free(func(h *host) bool { return h.Addr == p.Addr && h.Name == string(name) })
}

// Rebooted answers SM_NOTIFY: the host at addr, which calls itself name, has started
// again and has this state now. Its locks from before are freed. Of several hosts at
// one address it is that with the name, if one has it.
func (m *Manager) Rebooted(addr netip.Addr, name []byte, state uint32) {
	m.mu.Lock()
	named := false
	for c := range m.table.hosts {
		named = named || c.Addr == addr && sameHost(c.Name, string(name))
	}
	m.mu.Unlock()
	m.free(func(h *host) bool {
		if h.Addr != addr || named && !sameHost(h.Name, string(name)) || h.state == state {
			return false
		}
		h.state = state
		return true
	})
}

// sameHost reports whether names are equal up to the domain.
func sameHost(a, b string) bool {
	a, _, _ = strings.Cut(a, ".")
	b, _, _ = strings.Cut(b, ".")
	return strings.EqualFold(a, b)
}

func (m *Manager) free(match func(*host) bool) {
	m.mu.Lock()
	var granted []*waiter
	for _, h := range m.table.hosts {
		if match(h) {
			granted = append(granted, m.table.free(h)...)
		}
	}
	jobs := m.jobsFor(granted)
	m.mu.Unlock()
	m.tell(jobs)
}

// Answer has proc of the lock manager at p called with args, the answer to a _MSG call.
func (m *Manager) Answer(p Peer, proc uint32, args []byte) {
	m.calls.add(&job{entry: entry{Client{Addr: p.Addr}, p.Here}, kind: answer, proc: proc, args: args})
}

// do makes the call of a job, in a worker.
func (m *Manager) do(w *worker, j *job) (again bool, after time.Duration) {
	switch j.kind {
	case grant:
		again, after = m.callGranted(w, j)
	case notify:
		_, out := w.call(j, nlm4.StatusProcNotify, func(e *xdr.Encoder) {
			a := nlm4.NotifyArgs{Name: []byte(m.name), State: j.state}
			a.Encode(e)
		})
		again, after = out != answered, m.cfg.retryAfter(j.tries)
		if again && j.tries >= m.cfg.Tries {
			m.cfg.Logger.Warn("locks: a client with locks was not told that the server has started again", "client", j.Addr.String(),
				"costs", "it believes in locks that it has no more", "remedy", "restart its rpc.statd, or mount again there")
		}
	case answer:
		_, out := w.call(j, j.proc, func(e *xdr.Encoder) { e.Buf = append(e.Buf, j.args...) })
		again, after = out == unreached && j.tries < 2, m.cfg.RetryFirst
	case track:
		again, after = m.callMonitor(w, j), m.cfg.retryAfter(j.tries)
	}
	return again && j.tries < m.cfg.Tries, after
}

// callGranted tells a client that it has what it waited for.
func (m *Manager) callGranted(w *worker, j *job) (again bool, after time.Duration) {
	var a nlm4.TestArgs
	var res nlm4.Result
	out := unreached
	if m.grantedArgs(j.id, &a) {
		var d xdr.Decoder
		d, out = w.call(j, nlm4.ProcGranted, a.Encode)
		if out == answered && res.Decode(&d) != nil {
			out = lost
		}
	}
	m.mu.Lock()
	again, granted := m.conclude(j, out, res.Status)
	if !again {
		m.table.waiting--
	}
	jobs := m.jobsFor(granted)
	m.mu.Unlock()
	m.tell(jobs)
	return again, m.cfg.retryAfter(j.tries)
}

// grantedArgs makes the arguments of GRANTED; false if the client need not be called:
// it has found out, or wants the lock no more.
func (m *Manager) grantedArgs(id uint64, a *nlm4.TestArgs) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.table.granted[id]
	if w == nil {
		return false
	}
	cookie := xdr.Encoder{}
	cookie.Uint64(id)
	*a = nlm4.TestArgs{Cookie: cookie.Buf, Exclusive: w.exclusive, Lock: nlm4.Lock{
		Caller: []byte(m.name), Handle: []byte(w.file.handle), Owner: []byte(w.owner.id.oh), SVID: w.owner.id.svid,
		Range: nlm4.RangeOf(w.start, w.last),
	}}
	return true
}

// conclude decides what becomes of a grant once the client was called. A client that may
// have heard keeps it, even if it denies a call that came again: it may have taken the
// first. mu is held.
func (m *Manager) conclude(j *job, out outcome, status nlm4.Status) (again bool, granted []*waiter) {
	w := m.table.granted[j.id]
	if w == nil {
		return false, nil
	}
	defer m.table.keep(w.file)
	w.unsure = w.unsure || out == lost
	switch {
	case out == answered && status != nlm4.DeniedGracePeriod && (status == nlm4.Granted || w.unsure):
		m.table.told(w)
	case out == answered && status != nlm4.DeniedGracePeriod:
		return false, m.table.undo(w)
	case j.tries < m.cfg.Tries:
		return true, nil
	case w.unsure:
		m.table.told(w)
	default:
		return false, m.table.undo(w)
	}
	return false, nil
}
