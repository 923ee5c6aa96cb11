package nlm

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"loopnfs/internal/nlm4"
)

// Two hosts of two owners each, on two files of a few bytes: the table does what a
// matrix of bytes by owners does, and grants nothing that is in anybody's way.
func TestTableAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		n := rapid.IntRange(1, 60).Draw(t, "steps")
		for range n {
			m.step(t)
			m.check(t)
		}
		for i := range m.hosts {
			m.granted(m.t.free(m.hosts[i]))
			for _, o := range m.owners[2*i : 2*i+2] {
				m.forget(o)
			}
			m.check(t)
		}
		m.reap()
		if m.t.records != 0 || m.t.waiting != 0 || len(m.t.files) != 0 || len(m.t.granted) != 0 {
			t.Fatalf("something stays: %d records, %d waiting, %d files", m.t.records, m.t.waiting, len(m.t.files))
		}
	})
}

const bytesOfModel = 12

type cell [bytesOfModel]mode

type model struct {
	t      *table
	hosts  []*host
	owners []ownerKey
	now    map[ownerKey]*[2]cell // by file
	jobs   []*waiter
}

type ownerKey struct {
	host *host
	id   ownerID
}

func newModel() *model {
	m := &model{t: newTable(Limits{Clients: 2, Locks: 1000, PerClient: 1000, Waiting: 100}), now: map[ownerKey]*[2]cell{}}
	for i := range 2 {
		h := m.t.host(Client{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), "h"})
		m.hosts = append(m.hosts, h)
		for j := range uint32(2) {
			k := ownerKey{h, ownerID{j, "o"}}
			m.owners = append(m.owners, k)
			m.now[k] = &[2]cell{}
		}
	}
	return m
}

var fileNames = []string{"f", "g"}

func (m *model) forget(k ownerKey) { m.now[k] = &[2]cell{} }

func (m *model) set(k ownerKey, f int, mode mode, start, last uint64) {
	for i := range m.now[k][f] {
		if start <= uint64(i) && uint64(i) <= last {
			m.now[k][f][i] = mode
		}
	}
}

// free reports whether nobody but k is in the way.
func (m *model) free(k ownerKey, f int, excl bool, start, last uint64) bool {
	for other, cells := range m.now {
		for i, c := range cells[f] {
			if other != k && start <= uint64(i) && uint64(i) <= last && (c == exclusive || excl && c == shared) {
				return false
			}
		}
	}
	return true
}

// granted takes over what the table granted.
func (m *model) granted(ws []*waiter) {
	for _, w := range ws {
		m.set(ownerKey{w.owner.host, w.owner.id}, slices.Index(fileNames, w.file.handle), modeOf(w.exclusive), w.start, w.last)
		m.jobs = append(m.jobs, w)
	}
}

// reap ends the calls about waiters that were told.
func (m *model) reap() {
	m.jobs = slices.DeleteFunc(m.jobs, func(w *waiter) bool {
		done := m.t.granted[w.id] != w
		if done {
			m.t.waiting--
		}
		return done
	})
}

func (m *model) step(t *rapid.T) {
	k := rapid.SampledFrom(m.owners).Draw(t, "owner")
	fi := rapid.IntRange(0, 1).Draw(t, "file")
	start := rapid.Uint64Range(0, bytesOfModel-1).Draw(t, "start")
	last := rapid.Uint64Range(start, bytesOfModel-1).Draw(t, "last")
	if last == bytesOfModel-1 {
		last = ^uint64(0)
	}
	excl := rapid.Bool().Draw(t, "exclusive")
	f, o := m.t.file([]byte(fileNames[fi])), k.host.owner(k.id)
	defer m.t.keep(f)
	switch rapid.SampledFrom([]string{"lock", "lock", "wait", "wait", "unlock", "unlock", "cancel", "told", "undo"}).Draw(t, "step") {
	case "lock":
		free := m.free(k, fi, excl, start, last)
		st, ws := m.t.lock(f, o, excl, false, start, last)
		if free != (st == nlm4.Granted) || !free && st != nlm4.Denied {
			t.Fatalf("free %v, %v", free, st)
		}
		if free {
			m.set(k, fi, modeOf(excl), start, last)
		}
		m.granted(ws)
	case "wait":
		free := m.free(k, fi, excl, start, last)
		st, ws := m.t.lock(f, o, excl, true, start, last)
		if free != (st == nlm4.Granted) || !free && st != nlm4.Blocked && st != nlm4.Deadlock {
			t.Fatalf("free %v, %v", free, st)
		}
		if free {
			m.set(k, fi, modeOf(excl), start, last)
		}
		m.granted(ws)
	case "unlock":
		st, ws := m.t.unlock(f, o, start, last)
		if st != nlm4.Granted {
			t.Fatal(st)
		}
		m.set(k, fi, unlocked, start, last)
		m.granted(ws)
	case "cancel":
		for _, w := range f.waiting {
			if w.owner == o {
				if st, ws := m.t.cancel(f, o, w.exclusive, w.start, w.last); st != nlm4.Granted || ws != nil {
					t.Fatalf("%v, %d", st, len(ws))
				}
				break
			}
		}
	case "told":
		for _, w := range m.jobs {
			if m.t.granted[w.id] == w {
				m.t.told(w)
				break
			}
		}
	case "undo":
		for _, w := range m.jobs {
			if m.t.granted[w.id] == w {
				wk, wf := ownerKey{w.owner.host, w.owner.id}, slices.Index(fileNames, w.file.handle)
				if !w.final {
					m.set(wk, wf, unlocked, w.start, w.last)
					for _, h := range w.before {
						m.set(wk, wf, modeOf(h.exclusive), h.start, h.last)
					}
				}
				m.granted(m.t.undo(w))
				m.t.keep(w.file)
				break
			}
		}
	}
	m.reap()
}

// check compares, and looks at what must always be so.
func (m *model) check(t *rapid.T) {
	records := 0
	for name, f := range m.t.files {
		fi := slices.Index(fileNames, name)
		got := map[ownerKey]*cell{}
		for _, h := range f.held {
			k := ownerKey{h.owner.host, h.owner.id}
			if got[k] == nil {
				got[k] = &cell{}
			}
			for i := h.start; i <= min(h.last, bytesOfModel-1); i++ {
				if got[k][i] != unlocked {
					t.Fatalf("locks of one owner overlap: %+v", f.held)
				}
				got[k][i] = modeOf(h.exclusive)
			}
		}
		for k, cells := range m.now {
			if c := got[k]; c == nil && cells[fi] != (cell{}) || c != nil && *c != cells[fi] {
				t.Fatalf("%s of %v: %v, want %v", name, k.id, c, cells[fi])
			}
		}
		for _, h := range f.held {
			if f.conflict(h.owner, h.exclusive, h.start, h.last) != nil {
				t.Fatalf("two have %+v", h)
			}
		}
		m.joined(t, f)
		for _, w := range f.waiting {
			if f.conflict(w.owner, w.exclusive, w.start, w.last) == nil {
				t.Fatalf("nothing is in the way of %+v", w)
			}
		}
		records += len(f.held) + len(f.waiting) + len(f.shares)
	}
	records += len(m.t.granted)
	byHost := 0
	for _, h := range m.hosts {
		byHost += h.records
		for _, o := range h.owners {
			if o.records <= 0 {
				t.Fatalf("owner with %d records", o.records)
			}
		}
	}
	if m.t.records != records || byHost != records {
		t.Fatalf("%d records are counted, %d by host, there are %d", m.t.records, byHost, records)
	}
}

// joined: neighbours that are alike are one lock.
func (m *model) joined(t *rapid.T, f *file) {
	for i, a := range f.held {
		for _, b := range f.held[i+1:] {
			if a.owner == b.owner && a.exclusive == b.exclusive && touches(&a, b.start, b.last) {
				t.Fatalf("%+v and %+v are not joined", a, b)
			}
		}
	}
}

// A lock in the middle of another one of the same owner splits it, and at the largest
// offsets nothing wraps.
func TestSplitAtTheEnds(t *testing.T) {
	const top = ^uint64(0)
	tb := newTable(DefaultLimits)
	o := tb.host(Client{Name: "h"}).owner(ownerID{1, "o"})
	f := tb.file([]byte("f"))
	for _, step := range []struct {
		m           mode
		start, last uint64
		want        string
	}{
		{exclusive, 0, top, "[0-18446744073709551615 x]"},
		{shared, 10, 19, "[0-9 x] [10-19 s] [20-18446744073709551615 x]"},
		{unlocked, top, top, "[0-9 x] [10-19 s] [20-18446744073709551614 x]"},
		{exclusive, top, top, "[0-9 x] [10-19 s] [20-18446744073709551615 x]"},
		{exclusive, 5, 30, "[0-18446744073709551615 x]"},
		{unlocked, 0, 0, "[1-18446744073709551615 x]"},
		{shared, 0, 0, "[0-0 s] [1-18446744073709551615 x]"},
		{unlocked, 0, top, ""},
	} {
		if _, ok := tb.set(f, o, step.m, step.start, step.last); !ok {
			t.Fatal("no room")
		}
		if got := describe(f); got != step.want {
			t.Errorf("%v: %s, want %s", step, got, step.want)
		}
	}
}

func describe(f *file) (s string) {
	hs := slices.Clone(f.held)
	slices.SortFunc(hs, func(a, b held) int { return int(min(a.start, 1<<20)) - int(min(b.start, 1<<20)) })
	for _, h := range hs {
		if s != "" {
			s += " "
		}
		s += fmt.Sprintf("[%d-%d %c]", h.start, h.last, "sx"[modeOf(h.exclusive)-shared])
	}
	return s
}

// Whoever closes a circle of those who wait is told, whichever way it is closed.
func TestDeadlock(t *testing.T) {
	tb := newTable(DefaultLimits)
	h := tb.host(Client{Name: "h"})
	own := func(i uint32) *owner { return h.owner(ownerID{i, "o"}) }
	lock := func(i uint32, name string, block bool) nlm4.Status {
		f := tb.file([]byte(name))
		st, _ := tb.lock(f, own(i), true, block, 0, 9)
		tb.keep(f)
		return st
	}
	for i, name := range []string{"a", "b", "c"} {
		lock(uint32(i), name, false)
	}
	for _, tt := range []struct {
		owner uint32
		file  string
		want  nlm4.Status
	}{{0, "b", nlm4.Blocked}, {1, "c", nlm4.Blocked}, {2, "a", nlm4.Deadlock}, {2, "b", nlm4.Deadlock}, {3, "a", nlm4.Blocked}} {
		if st := lock(tt.owner, tt.file, true); st != tt.want {
			t.Errorf("%d waits for %s: %v, want %v", tt.owner, tt.file, st, tt.want)
		}
	}
}

func TestWaitersComeInOrder(t *testing.T) {
	tb := newTable(DefaultLimits)
	h := tb.host(Client{Name: "h"})
	f := tb.file([]byte("f"))
	first := h.owner(ownerID{0, "o"})
	tb.lock(f, first, true, false, 0, 9)
	for i := range uint32(5) {
		if st, _ := tb.lock(f, h.owner(ownerID{i + 1, "o"}), i != 2 && i != 3, true, 0, 9); st != nlm4.Blocked {
			t.Fatal(st)
		}
	}
	var order []uint32
	_, ws := tb.unlock(f, first, 0, 9)
	for len(ws) > 0 {
		w := ws[0]
		order = append(order, w.owner.id.svid)
		ws = ws[1:]
		tb.told(w)
		_, more := tb.unlock(f, w.owner, 0, 9)
		ws = append(ws, more...)
	}
	if !slices.Equal(order, []uint32{1, 2, 3, 4, 5}) {
		t.Errorf("order %v", order)
	}
}

func TestLimitsHold(t *testing.T) {
	tb := newTable(Limits{Clients: 2, Locks: 10, PerClient: 6, Waiting: 2})
	f := tb.file([]byte("f"))
	here, there := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	a, b := tb.host(Client{here, "a"}), tb.host(Client{there, "b"})
	oa, ob := a.owner(ownerID{1, ""}), b.owner(ownerID{1, ""})
	for i := range uint64(6) {
		if st, _ := tb.lock(f, oa, true, false, 10*i, 10*i); st != nlm4.Granted {
			t.Fatal(i, st)
		}
	}
	if st, _ := tb.lock(f, oa, true, false, 100, 100); st != nlm4.DeniedNoLocks {
		t.Errorf("more than a client may have: %v", st)
	}
	tb.unlock(f, oa, 40, 60)
	tb.lock(f, oa, true, false, 100, 200)
	tb.lock(f, oa, true, false, 300, 300)
	if st, _ := tb.unlock(f, oa, 150, 150); st != nlm4.DeniedNoLocks {
		t.Errorf("a split over the limit: %v", st)
	}
	for i, want := range []nlm4.Status{nlm4.Blocked, nlm4.Blocked, nlm4.DeniedNoLocks} {
		if st, _ := tb.lock(f, ob, true, true, 0, uint64(10*i)); st != want {
			t.Errorf("waiter %d: %v, want %v", i, st, want)
		}
	}
	for i := range uint64(9) {
		st, _ := tb.lock(f, ob, true, false, 1000+10*i, 1000+10*i)
		if want := map[bool]nlm4.Status{true: nlm4.Granted, false: nlm4.DeniedNoLocks}[i < 2]; st != want {
			t.Errorf("lock %d of the second client: %v, want %v", i, st, want)
		}
	}
	if tb.keep(f); tb.host(Client{here, "c"}) != nil {
		t.Error("a third client")
	}
	tb.free(a)
	if tb.host(Client{there, "c"}) == nil {
		t.Error("no client takes the place of one that has nothing")
	}
}

// One address does not get more by many names.
func TestNamesOfOneAddress(t *testing.T) {
	tb := newTable(Limits{Clients: 1000, Locks: 1000, PerClient: 10, Waiting: 1})
	here, there := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	f, got := tb.file([]byte("f")), 0
	for i := range 20 {
		h := tb.host(Client{here, fmt.Sprint(i)})
		if st, _ := tb.lock(f, h.owner(ownerID{}), false, false, 0, 0); st == nlm4.Granted {
			got++
		}
		h.pins++
	}
	if got != 10 {
		t.Errorf("%d locks", got)
	}
	for i := range maxNames {
		if h := tb.host(Client{here, fmt.Sprint("x", i)}); h != nil {
			h.pins++
		}
	}
	if n := len(tb.hosts); n != maxNames {
		t.Errorf("%d hosts", n)
	}
	if tb.host(Client{there, "c"}) == nil {
		t.Error("no host elsewhere")
	}
}

func TestShares(t *testing.T) {
	tb := newTable(DefaultLimits)
	h := tb.host(Client{Name: "h"})
	f := tb.file([]byte("f"))
	a, b := h.owner(ownerID{0, "a"}), h.owner(ownerID{0, "b"})
	for i, tt := range []struct {
		o            *owner
		deny, access uint32
		want         nlm4.Status
	}{
		{a, nlm4.ShareWrite, nlm4.ShareRead, nlm4.Granted},
		{b, 0, nlm4.ShareWrite, nlm4.Denied},
		{b, nlm4.ShareRead, 0, nlm4.Denied},
		{b, nlm4.ShareWrite, nlm4.ShareRead, nlm4.Granted},
		{a, 0, nlm4.ShareWrite, nlm4.Denied},
		{a, 0, nlm4.ShareRead, nlm4.Granted},
	} {
		if st := tb.reserve(f, tt.o, tt.deny, tt.access); st != tt.want {
			t.Errorf("%d: %v, want %v", i, st, tt.want)
		}
	}
	tb.unreserve(f, a)
	tb.unreserve(f, a)
	tb.unreserve(f, b)
	if tb.keep(f); tb.records != 0 || len(tb.files) != 0 || len(h.owners) != 0 {
		t.Error("something stays")
	}
}
