package nlm

import (
	"net/netip"
	"sync"
	"time"

	"loopnfs/internal/nlm4"
	"loopnfs/internal/portmap"
)

const (
	// kernelVersion is what the lock manager of this host's kernel is found by in the
	// portmapper, since this server takes version 4 from it.
	kernelVersion = 3
	// firstFreePort is the first one that takes no privilege.
	firstFreePort = 1024
	// mountWait bounds how long a client of this host waits for Mounting.
	mountWait = time.Second
)

// Programs are what a server with locks registers. The kernel of the host registers its
// lock manager when something is mounted with locks, and needs version 3 of it for its
// status monitor; version 4, which clients ask for, is taken from it. A status monitor
// of the host (rpc.statd) keeps its place.
func Programs() []portmap.Program {
	return []portmap.Program{
		{Number: nlm4.Program, Version: nlm4.Version, Claim: portmap.Seize},
		{Number: nlm4.Program, Version: nlm4.Version, UDP: true, Claim: portmap.Seize},
		{Number: nlm4.StatusProgram, Version: nlm4.StatusVersion, Claim: portmap.Yield},
		{Number: nlm4.StatusProgram, Version: nlm4.StatusVersion, UDP: true, Claim: portmap.Yield},
	}
}

// LookAfter keeps r, of Programs and others, as it is until Close, and has clients
// monitored by the status monitor of this host when that is another one than this
// server's. It is called once.
func (m *Manager) LookAfter(r *portmap.Registration) {
	m.calls.own.Store(uint32(r.Port()))
	m.watch.Store(r.Watch(m.cfg.Logger, m.portChanged))
}

// Mounting makes sure, within a second, that clients find this server at the portmapper.
// A client on this host that mounts has its kernel register a lock manager before it asks
// for FSINFO (nfs_init_server), and asks the portmapper for the one to call after that.
func (m *Manager) Mounting() {
	if w := m.watch.Load(); w != nil {
		w.Check(mountWait)
	}
}

func (m *Manager) portChanged(p portmap.Program, port uint16) {
	own := uint32(port) == m.calls.own.Load()
	switch {
	case p.Number == nlm4.Program && !p.UDP && port != 0 && !own:
		m.cfg.Logger.Info("locks: the kernel of this host has started its lock manager, which serves local clients; this server takes its place in the portmapper", "port", port)
	case p.Number == nlm4.StatusProgram && !p.UDP:
		m.statd.mu.Lock()
		m.statd.there = port != 0 && !own
		there := m.statd.there
		m.statd.mu.Unlock()
		if there {
			m.cfg.Logger.Info("locks: this host has a status monitor (rpc.statd), which is to tell of clients that start again", "port", port)
			m.track(m.list.all()...)
		}
	}
}

// tracker is what the status monitor of this host, if it is not this server, is to be
// told: at each address with a client on the list, there is a host to be monitored.
type tracker struct {
	mu     sync.Mutex
	there  bool
	queued map[netip.Addr]bool // with a call that is to be made
}

// track has the status monitor told about those who came on the list or left it.
func (m *Manager) track(changed ...entry) {
	m.statd.mu.Lock()
	defer m.statd.mu.Unlock()
	for _, e := range changed {
		if !m.statd.there || m.statd.queued[e.Addr] || m.calls.addrs.IsLocal(e.Addr, e.here) {
			continue
		}
		if len(m.statd.queued) >= 2*m.cfg.Limits.Clients {
			m.forgetGone()
		}
		m.statd.queued[e.Addr] = true
		m.calls.add(&job{entry: entry{Client: Client{Addr: loopBack}}, kind: track, about: e.Addr})
	}
}

// forgetGone takes back the calls about addresses that have left the list, so that no more
// wait than the list is long: what is not told of them is a host too many that is monitored.
// The lock of the tracker is held.
func (m *Manager) forgetGone() {
	listed := map[netip.Addr]bool{}
	for _, e := range m.list.all() {
		listed[e.Addr] = true
	}
	m.calls.drop(func(j *job) bool {
		gone := j.kind == track && !listed[j.about]
		if gone {
			delete(m.statd.queued, j.about)
		}
		return gone
	})
}

var loopBack = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// callMonitor tells the status monitor whether to monitor the host of a job. What it is
// told to keep is the address, which comes back with SM_NOTIFY.
func (m *Manager) callMonitor(w *worker, j *job) (again bool) {
	m.statd.mu.Lock()
	there := m.statd.there
	delete(m.statd.queued, j.about)
	m.statd.mu.Unlock()
	if !there || m.monitored(w, j) {
		return false
	}
	if j.tries >= m.cfg.Tries {
		m.cfg.Logger.Warn("locks: the status monitor of this host (rpc.statd) does not monitor a client", "client", j.about.String(),
			"costs", "if the client starts again, what it had locked stays locked", "remedy", "start rpc.statd and this server again")
		return false
	}
	m.statd.mu.Lock()
	defer m.statd.mu.Unlock()
	again = !m.statd.queued[j.about]
	m.statd.queued[j.about] = true
	return again
}

// monitored makes the call, and reports whether that was all.
func (m *Manager) monitored(w *worker, j *job) bool {
	a := nlm4.MonArgs{
		Name: []byte(j.about.String()), MyName: []byte(m.name),
		Prog: nlm4.Program, Vers: nlm4.Version, Proc: nlm4.ProcSMNotify, Priv: j.about.As16(),
	}
	if !m.list.hasAddr(j.about) {
		_, out := w.call(j, nlm4.StatusProcUnmon, a.EncodeID)
		return out != unreached
	}
	d, out := w.call(j, nlm4.StatusProcMon, a.Encode)
	var res nlm4.StatResult
	return out == answered && res.Decode(&d) == nil && !res.Failed
}
