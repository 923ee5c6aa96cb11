package pagecache

import (
	"sync"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/reclaim/writeback"
)

// State is the state of a folio.
type State uint8

// The states; see the package comment.
const (
	Clean State = iota
	Dirty
	Writeback
	Unstable
	numStates
)

// Verdict is what ReleaseFolio answers.
type Verdict uint8

const (
	// Busy: the folio cannot be freed now.
	Busy Verdict = iota
	// Started: it cannot be freed now, but what it waits for is under way.
	Started
	// Freed: nothing of the file system's keeps the folio any more.
	Freed
)

// Ops is what a file system does for the page cache (address_space_operations).
type Ops interface {
	// ReleaseFolio is asked by reclaim to let go of f, which is Unstable or
	// Private (release_folio): neither dirty nor under write-back, when it
	// was looked at. sc and mask are those of the allocation that needs
	// memory; mask allows FS. No lock is held. f has a reference of the
	// caller's. A policy that never waits never returns late.
	ReleaseFolio(m *Mapping, f *alloc.Folio, sc gfp.Scope, mask gfp.Flags) Verdict
}

// LRU orders folios by use, for reclaim.
type LRU interface {
	// Add puts f, which is on no list, on the list. It is called with the
	// lock of f's mapping held.
	Add(f *alloc.Folio)
	// Remove takes f off the list if it is there.
	Remove(f *alloc.Folio)
}

const (
	numShards = 256
	// slotsPerFolio keeps the chains of the hash table short.
	slotsPerFolio = 2
	// lineSlots is how many slots of the hash table there are in a cache line.
	lineSlots = 16
)

type shard struct {
	sync.Mutex
	_ [56]byte // one cache line each
}

// Cache is the page cache of one arena.
type Cache struct {
	arena  *alloc.Arena
	lru    LRU
	shards [numShards]shard
	heads  []uint32 // first folio of each chain; guarded by shardOf its slot
	mask   uint64

	mu       sync.RWMutex
	mappings []*Mapping // by owner number; [0] is nil
	unused   []uint32
}

// New returns an empty cache over arena. Folios in it are on lru.
func New(arena *alloc.Arena, lru LRU) *Cache {
	n := uint64(numShards)
	for n < uint64(arena.Total()*slotsPerFolio) {
		n *= 2
	}
	return &Cache{arena: arena, lru: lru, heads: make([]uint32, n), mask: n - 1, mappings: []*Mapping{nil}}
}

// Arena returns the arena that the folios come from.
func (c *Cache) Arena() *alloc.Arena { return c.arena }

func (c *Cache) register(m *Mapping) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.unused); n > 0 {
		m.id, c.unused = c.unused[n-1], c.unused[:n-1]
		c.mappings[m.id] = m
		return
	}
	m.id = uint32(len(c.mappings))
	c.mappings = append(c.mappings, m)
}

func (c *Cache) unregister(m *Mapping) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mappings[m.id] = nil
	c.unused = append(c.unused, m.id)
}

// Owner returns the mapping that f belongs to at this moment, or nil.
func (c *Cache) Owner(f *alloc.Folio) *Mapping {
	id := f.Owner()
	if id == 0 {
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.mappings[id]
}

// Release tries to free f, on which the caller holds a reference that it keeps,
// for an allocation in scope sc that may do what mask says. It follows
// shrink_folio_list for one folio.
func (c *Cache) Release(f *alloc.Folio, sc gfp.Scope, mask gfp.Flags) Verdict {
	m := c.Owner(f)
	if m == nil {
		return Busy
	}
	if v, ask := m.tryFree(f); !ask || mask&gfp.FS == 0 {
		return v
	}
	v := m.back.ops.ReleaseFolio(m, f, sc, mask)
	if v == Freed && f.Owner() != 0 { // else the file system dropped it itself
		v, _ = m.tryFree(f)
	}
	return v
}

// Backing is one file system's part of the cache.
type Backing struct {
	cache *Cache
	bdi   *writeback.BDI
	ops   Ops

	mu           sync.Mutex
	dirty, stuck mappingList // mappings with dirty folios, longest waiting first
}

// NewBacking adds a file system whose pages are accounted to bdi.
func (c *Cache) NewBacking(bdi *writeback.BDI, ops Ops) *Backing {
	return &Backing{cache: c, bdi: bdi, ops: ops}
}

// Cache returns the cache that b is a part of.
func (b *Backing) Cache() *Cache { return b.cache }

// BDI returns the device that pages are accounted to.
func (b *Backing) BDI() *writeback.BDI { return b.bdi }

// NextDirty returns a mapping with dirty folios that is not stuck, the one that was
// returned longest ago, or nil (queue_io). The mapping stays listed until it has no
// dirty folio.
func (b *Backing) NextDirty() *Mapping { return b.next(&b.dirty) }

// NextStuck is NextDirty for those that are stuck.
func (b *Backing) NextStuck() *Mapping { return b.next(&b.stuck) }

func (b *Backing) next(l *mappingList) *Mapping {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := l.head
	if m != nil {
		l.remove(m)
		l.append(m)
	}
	return m
}

// listOf returns the list that m belongs into if it has dirty folios.
func (b *Backing) listOf(m *Mapping) *mappingList {
	if m.stuck {
		return &b.stuck
	}
	return &b.dirty
}

// setDirty says whether m, whose lock is held, has dirty folios.
func (b *Backing) setDirty(m *Mapping, dirty bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m.onDirty = dirty
	if dirty {
		b.listOf(m).append(m)
	} else {
		b.listOf(m).remove(m)
	}
}

// setStuck says whether m, whose lock is held, is stuck.
func (b *Backing) setStuck(m *Mapping, stuck bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.onDirty {
		b.listOf(m).remove(m)
	}
	m.stuck = stuck
	if m.onDirty {
		b.listOf(m).append(m)
	}
}

type mappingList struct{ head, tail *Mapping }

func (l *mappingList) append(m *Mapping) {
	m.prev, m.next = l.tail, nil
	if l.tail != nil {
		l.tail.next = m
	} else {
		l.head = m
	}
	l.tail = m
}

func (l *mappingList) remove(m *Mapping) {
	if m.prev != nil {
		m.prev.next = m.next
	} else {
		l.head = m.next
	}
	if m.next != nil {
		m.next.prev = m.prev
	} else {
		l.tail = m.prev
	}
	m.prev, m.next = nil, nil
}
