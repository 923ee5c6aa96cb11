package pagecache

import (
	"sync"

	"loopnfs/alloc"
	"loopnfs/internal/waitq"
	"loopnfs/reclaim/writeback"
)

// counterOf gives the counter of each state that counts as not clean.
var counterOf = [numStates]writeback.Counter{Dirty: writeback.Dirty, Writeback: writeback.Writeback, Unstable: writeback.Unstable}

// Mapping is the cached part of one file (struct address_space).
type Mapping struct {
	back *Backing
	id   uint32
	// Ino is the inode number, for messages.
	Ino uint64
	// Host is what the file system keeps about the file.
	Host any

	// Guarded by back.mu.
	prev, next *Mapping

	wq waitq.Queue // folios that are unlocked or leave write-back

	mu      sync.Mutex
	seq     uint64
	lists   [numStates]folioList
	counts  writeback.Counts // what the device has not been told; zero while mu is free
	onDirty bool             // in the list of those with dirty folios; changes with back.mu held
	stuck   bool             // its dirty folios cannot be written for now; likewise
}

// NewMapping returns an empty mapping. Close it when the file is forgotten.
func (b *Backing) NewMapping(ino uint64, host any) *Mapping {
	m := &Mapping{back: b, Ino: ino, Host: host}
	b.cache.register(m)
	return m
}

// Close gives up an empty mapping; its folios were dropped before.
func (m *Mapping) Close() {
	if m.Len() != 0 {
		panic("pagecache: mapping closed with folios in it")
	}
	m.back.cache.unregister(m)
}

// Backing returns the file system that m belongs to.
func (m *Mapping) Backing() *Backing { return m.back }

// Len returns the number of folios.
func (m *Mapping) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for i := range m.lists {
		n += m.lists[i].n
	}
	return n
}

// Nr returns the number of folios in state s.
func (m *Mapping) Nr(s State) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lists[s].n
}

// HasDirty reports whether there is a folio whose content is not behind the cache, or still on
// its way: two looks at Nr would miss one that goes back from Writeback to Dirty.
func (m *Mapping) HasDirty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lists[Dirty].n+m.lists[Writeback].n > 0
}

// Any reports whether a folio is in state s that was when upTo was the latest
// Seq.
func (m *Mapping) Any(s State, upTo uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	num := m.lists[s].head
	return num != alloc.None && m.back.cache.arena.Folio(num).Seq <= upTo
}

// Seq returns the number of the latest change of a folio's state. What is in a
// list now has a Seq of at most that.
func (m *Mapping) Seq() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seq
}

// Get returns the folio of page index with a reference for the caller, or nil.
func (m *Mapping) Get(index uint64) *alloc.Folio {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.get(index)
}

func (m *Mapping) get(index uint64) *alloc.Folio {
	f := m.back.cache.find(m.id, index)
	if f != nil {
		use(f)
	}
	return f
}

// use takes a reference of f for who has asked for it.
func use(f *alloc.Folio) {
	f.Get()
	if !f.Has(alloc.Referenced) {
		f.Set(alloc.Referenced)
	}
}

// GetRange fills dst with the folios of the pages from index, each with a
// reference for the caller, nil where there is none, and returns how many there
// are.
func (m *Mapping) GetRange(index uint64, dst []*alloc.Folio) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.back.cache.findRange(m.id, index, dst)
	n := 0
	for _, f := range dst {
		if f != nil {
			use(f)
			n++
		}
	}
	return n
}

// Insert makes f, which is in no mapping and has the flags the caller chose,
// the clean folio of page index. The mapping takes a reference of its own. If
// there is a folio for that page already, it is returned instead, with a
// reference for the caller, and f is left alone (filemap_add_folio).
func (m *Mapping) Insert(index uint64, f *alloc.Folio) (existing *alloc.Folio) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.get(index); old != nil {
		return old
	}
	f.Get()
	f.Index = index
	f.SetOwner(m.id)
	m.back.cache.hash(f)
	m.enter(f, Clean)
	m.back.cache.lru.Add(f)
	return nil
}

// Exchange puts f, which is in no mapping and has valid content, in the place of old: what
// is dirty stays so, and as old as it was. It reports false, and has done nothing, if old
// left the mapping, is being filled or written back, or the file system wants to be asked
// about it. The caller has a reference of both and keeps them; the mapping takes one of f
// and gives up that of old (replace_page_cache_folio).
func (m *Mapping) Exchange(old, f *alloc.Folio) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := State(old.State)
	if old.Owner() != m.id || old.Has(alloc.Locked) || old.Has(alloc.Private) || s != Clean && s != Dirty {
		return false
	}
	f.Get()
	f.Index, f.State, f.Seq = old.Index, old.State, old.Seq
	f.SetOwner(m.id)
	c := m.back.cache
	m.lists[s].exchange(c.arena, old, f)
	c.rehash(old, f)
	c.lru.Add(f)
	old.SetOwner(0)
	c.lru.Remove(old)
	c.arena.Put(old)
	return true
}

// MarkDirty says that the content of all of fs is newer than what is behind the cache.
// The caller holds a reference of each (filemap_dirty_folio).
func (m *Mapping) MarkDirty(fs ...*alloc.Folio) {
	m.mu.Lock()
	defer m.unlock()
	for _, f := range fs {
		m.markDirty(f)
	}
}

// markDirty is MarkDirty for one. m.mu is held.
func (m *Mapping) markDirty(f *alloc.Folio) {
	if f.Owner() != m.id {
		return // dropped meanwhile: truncated
	}
	switch State(f.State) {
	case Dirty:
	case Writeback:
		f.Set(redirty)
	default:
		m.move(f, Dirty)
	}
}

// DirtyAll makes every folio with valid content dirty, those under write-back when
// that ends: what is behind the cache may have lost it.
func (m *Mapping) DirtyAll() {
	m.mu.Lock()
	defer m.unlock()
	a := m.back.cache.arena
	for num := m.lists[Writeback].head; num != alloc.None; num = a.Folio(num).List.Next {
		a.Folio(num).Set(redirty)
	}
	for num := m.lists[Clean].head; num != alloc.None; {
		f := a.Folio(num)
		num = f.List.Next
		if f.Has(alloc.Uptodate) {
			m.move(f, Dirty)
		}
	}
}

// redirty marks a folio under write-back that was written to again.
const redirty = alloc.Flag(1 << 16)

// State returns the state of f at this moment.
func (m *Mapping) State(f *alloc.Folio) State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return State(f.State)
}

// Unlock ends the filling of folios that were inserted with alloc.Locked; with
// uptodate, their content is valid from now on. Those who wait for them are woken.
func (m *Mapping) Unlock(uptodate bool, fs ...*alloc.Folio) {
	m.mu.Lock()
	for _, f := range fs {
		if uptodate {
			f.Set(alloc.Uptodate)
		}
		f.Clear(alloc.Locked)
	}
	m.mu.Unlock()
	m.wq.Wake()
}

// Relock makes the caller the one who fills f, as if it had been inserted with
// alloc.Locked, and reports whether it did: not if f left the mapping, is being
// filled by somebody else, or is valid by now. The caller holds a reference and
// ends it with Unlock (folio_trylock).
func (m *Mapping) Relock(f *alloc.Folio) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.Owner() != m.id || f.Has(alloc.Locked) || f.Has(alloc.Uptodate) {
		return false
	}
	f.Set(alloc.Locked)
	return true
}

// WaitUnlocked waits until nobody fills f any more and reports whether its
// content is valid. It returns false at once when cancel is closed.
func (m *Mapping) WaitUnlocked(f *alloc.Folio, cancel <-chan struct{}) bool {
	if f.Has(alloc.Locked) {
		w := m.wq.Prepare()
		for f.Has(alloc.Locked) && w.Wait(cancel) {
		}
		m.wq.Finish(w)
	}
	return f.Has(alloc.Uptodate) && !f.Has(alloc.Locked)
}

// enter puts f on the list for s. m.mu is held, until unlock.
func (m *Mapping) enter(f *alloc.Folio, s State) {
	m.seq++
	f.State, f.Seq = uint8(s), m.seq
	m.lists[s].append(m.back.cache.arena, f)
	if s != Clean {
		m.counts[counterOf[s]]++
	}
}

// leave takes f off its list. m.mu is held, until unlock.
func (m *Mapping) leave(f *alloc.Folio) {
	s := State(f.State)
	m.lists[s].remove(m.back.cache.arena, f)
	if s != Clean {
		m.counts[counterOf[s]]--
	}
}

// unlock tells of what has become of folios, and gives up m.mu.
func (m *Mapping) unlock() {
	if m.counts != (writeback.Counts{}) {
		m.back.bdi.Add(&m.counts, m.stuck)
		m.counts = writeback.Counts{}
	}
	if dirty := m.lists[Dirty].n > 0; dirty != m.onDirty {
		m.back.setDirty(m, dirty)
	}
	m.mu.Unlock()
}

// SetStuck says that the dirty folios of m, and those that become dirty, cannot be written for
// now, or that they can again (BDI.Stick).
func (m *Mapping) SetStuck(stuck bool) {
	m.mu.Lock()
	defer m.unlock()
	if stuck == m.stuck {
		return
	}
	n := 0
	for s := Dirty; s < numStates; s++ {
		n += m.lists[s].n
	}
	if !stuck {
		n = -n
	}
	m.back.setStuck(m, stuck)
	m.back.bdi.Stick(n)
}

// move brings f to state s. m.mu is held, until unlock.
func (m *Mapping) move(f *alloc.Folio, s State) {
	m.leave(f)
	m.enter(f, s)
}

// drop takes f, in whatever state, out of the mapping. m.mu is held, until unlock.
func (m *Mapping) drop(f *alloc.Folio) {
	c := m.back.cache
	m.leave(f)
	c.unhash(f)
	f.SetOwner(0)
	f.Clear(redirty | alloc.Private)
	c.lru.Remove(f)
	c.arena.Put(f)
}

// tryFree drops f if nothing keeps it. What is dirty is left to the flusher, and
// what is under write-back to those who wait for the device; otherwise ask says
// that the file system keeps the folio (shrink_folio_list).
func (m *Mapping) tryFree(f *alloc.Folio) (v Verdict, ask bool) {
	m.mu.Lock()
	defer m.unlock()
	switch {
	case f.Owner() != m.id, f.Has(alloc.Locked):
		return Busy, false
	case State(f.State) == Dirty:
		m.back.bdi.WakeFlusher()
		return Started, false
	case State(f.State) == Writeback:
		return Busy, false
	case State(f.State) == Unstable, f.Has(alloc.Private):
		return Busy, true
	case f.Refs() > 2: // the mapping's and the caller's
		return Busy, false
	}
	m.drop(f)
	return Freed, false
}

// folioList is a list of folios chained by List.
type folioList struct {
	head, tail uint32
	n          int
}

func (l *folioList) append(a *alloc.Arena, f *alloc.Folio) {
	f.List = alloc.Link{Prev: l.tail}
	if l.tail != alloc.None {
		a.Folio(l.tail).List.Next = f.Num()
	} else {
		l.head = f.Num()
	}
	l.tail = f.Num()
	l.n++
}

// exchange puts f where old is.
func (l *folioList) exchange(a *alloc.Arena, old, f *alloc.Folio) {
	f.List, old.List = old.List, alloc.Link{}
	if f.List.Prev != alloc.None {
		a.Folio(f.List.Prev).List.Next = f.Num()
	} else {
		l.head = f.Num()
	}
	if f.List.Next != alloc.None {
		a.Folio(f.List.Next).List.Prev = f.Num()
	} else {
		l.tail = f.Num()
	}
}

func (l *folioList) remove(a *alloc.Arena, f *alloc.Folio) {
	if f.List.Prev != alloc.None {
		a.Folio(f.List.Prev).List.Next = f.List.Next
	} else {
		l.head = f.List.Next
	}
	if f.List.Next != alloc.None {
		a.Folio(f.List.Next).List.Prev = f.List.Prev
	} else {
		l.tail = f.List.Prev
	}
	f.List = alloc.Link{}
	l.n--
}
