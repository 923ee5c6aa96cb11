package alloc

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/waitq"
)

// Limits of an arena.
const (
	MinBytes = 4 << 20
	MaxBytes = 1 << 40
)

var (
	// ErrNoMemory is returned when an allocation may not wait and nothing is
	// free, or when it is larger than the arena could ever give.
	ErrNoMemory = errors.New("alloc: no free pages")
	// ErrClosed is returned to whoever waits in an arena that is closed.
	ErrClosed = errors.New("alloc: arena closed")
)

// Policy holds the mechanisms of the allocator that can be exchanged.
type Policy struct {
	// Mask says what a scope leaves of the flags of an allocation. The
	// mechanism "scope" is gfp.Scope.Mask; Unmasked ignores the scope.
	Mask func(gfp.Scope, gfp.Flags) gfp.Flags
	// Reserve keeps the pages below the min watermark for Memalloc scopes.
	Reserve bool
}

// DefaultPolicy has every mechanism on.
func DefaultPolicy() Policy { return Policy{Mask: gfp.Scope.Mask, Reserve: true} }

// Unmasked is the Mask of a world without scopes.
func Unmasked(_ gfp.Scope, f gfp.Flags) gfp.Flags { return f }

// Config says how to make an arena.
type Config struct {
	// Bytes is the size, from MinBytes to MaxBytes; rounded down to pages.
	Bytes int64
	// File, if not nil, is a file of tmpfs, Bytes long and allocated, whose
	// memory the arena uses, so that the memory outlives the process. What is
	// in it does not matter. It stays the caller's.
	File *os.File
	// Lock asks for the memory to be locked (mlock); what came of it is told
	// by Arena.Locked.
	Lock   bool
	Policy Policy
}

// Validate reports the first thing wrong with c.
func (c *Config) Validate() error {
	switch {
	case c.Bytes < MinBytes:
		return fmt.Errorf("memory of %d bytes is too little: the arena needs at least %d MiB", c.Bytes, MinBytes>>20)
	case c.Bytes > MaxBytes:
		return fmt.Errorf("memory of %d bytes is too much: the limit is %d GiB", c.Bytes, MaxBytes>>30)
	case c.Policy.Mask == nil:
		return errors.New("alloc: no scope policy")
	}
	return nil
}

// Reclaimer frees memory for the allocator (try_to_free_pages, kswapd).
type Reclaimer interface {
	// DirectReclaim frees up to n pages on behalf of sc and returns how many
	// it freed. mask is what the allocation may do, after the scope.
	DirectReclaim(sc gfp.Scope, mask gfp.Flags, n int) int
	// WakeKswapd asks the background reclaimer for n pages above the high
	// watermark. It does not block.
	WakeKswapd(n int)
}

// Watermarks, in pages (enum zone_watermarks).
type Watermarks struct{ Min, Low, High int }

// Stats counts what happened in an arena since it was made.
type Stats struct {
	Total, Free  int    // pages
	SlowPath     uint64 // allocations that found too little free memory
	Stalls       uint64 // times such an allocation had to wait
	ReservePages uint64 // pages taken from the reserve
	Waiting      int    // allocations that wait now
}

// Arena is a bounded set of pages. All methods may be called concurrently.
type Arena struct {
	mem     []byte
	folios  []Folio // folios[0] is not used: number 0 means none
	policy  Policy
	marks   Watermarks
	locked  bool
	reclaim Reclaimer
	wq      waitq.Queue // tasks that wait for some memory to be freed

	slow, stalls, reserve atomic.Uint64

	closed atomic.Bool
	nfree  atomic.Int64

	mu   sync.Mutex
	free freeMap
}

// New maps and touches the memory of an arena, and locks it if asked and
// allowed.
func New(cfg Config) (*Arena, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := int(cfg.Bytes >> PageShift)
	fd, flags := -1, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS
	if cfg.File != nil {
		fd, flags = int(cfg.File.Fd()), unix.MAP_SHARED
	}
	mem, err := unix.Mmap(fd, 0, n<<PageShift, unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("cannot map %d MiB of memory: %w; ask for less", cfg.Bytes>>20, err)
	}
	a := &Arena{mem: mem, folios: make([]Folio, n+1), policy: cfg.Policy, marks: watermarks(n)}
	if cfg.Lock {
		a.locked = unix.Mlock(mem) == nil
	}
	a.free = newFreeMap(n + 1)
	for i := 1; i <= n; i++ {
		a.folios[i].num = uint32(i)
		a.free.put(uint32(i))
	}
	a.nfree.Store(int64(n))
	return a, nil
}

// watermarks follows setup_per_zone_wmarks in shape: min is a small part of
// memory within limits, low and high lie a half and a whole min above it.
func watermarks(total int) Watermarks {
	lo := min(max(total/32, 64), 8192)
	return Watermarks{Min: lo, Low: lo + lo/2, High: 2 * lo}
}

// SetReclaimer wires the arena to what frees its memory, before first use.
func (a *Arena) SetReclaimer(r Reclaimer) { a.reclaim = r }

// Locked reports whether the memory is locked.
func (a *Arena) Locked() bool { return a.locked }

// Total returns the number of pages.
func (a *Arena) Total() int { return len(a.folios) - 1 }

// Free returns the number of free pages.
func (a *Arena) Free() int { return int(a.nfree.Load()) }

// Watermarks returns the watermarks, which never change.
func (a *Arena) Watermarks() Watermarks { return a.marks }

// MaxAlloc returns the most folios that one allocation can get.
func (a *Arena) MaxAlloc() int { return a.Total() / 8 }

// Stats returns the counters.
func (a *Arena) Stats() Stats {
	return Stats{
		Total: a.Total(), Free: a.Free(),
		SlowPath: a.slow.Load(), Stalls: a.stalls.Load(), ReservePages: a.reserve.Load(),
		Waiting: a.wq.Len(),
	}
}

// Bytes returns the memory of f: PageSize bytes, valid while the caller holds a
// reference.
func (a *Arena) Bytes(f *Folio) []byte {
	off := int(f.num-1) << PageShift
	return a.mem[off : off+PageSize : off+PageSize]
}

// Folio returns the folio of a number from Folio.Num.
func (a *Arena) Folio(num uint32) *Folio { return &a.folios[num] }

// Put gives back a reference; with the last one the folio is free.
func (a *Arena) Put(f *Folio) {
	p := putter{a: a}
	p.put(f)
	p.end()
}

// PutAll gives back a reference of each folio that is not nil.
func (a *Arena) PutAll(fs []*Folio) {
	p := putter{a: a}
	for _, f := range fs {
		if f != nil {
			p.put(f)
		}
	}
	p.end()
}

// Unpin gives back a reference of each folio by number (vfs.Pinner).
func (a *Arena) Unpin(nums []uint32) {
	p := putter{a: a}
	for _, n := range nums {
		p.put(&a.folios[n])
	}
	p.end()
}

// putter gives back references. From the first folio on that is free then, it has the lock
// of the arena, until end.
type putter struct {
	a *Arena
	n int64 // folios that are free by now
}

func (p *putter) put(f *Folio) {
	if f.refs.Add(-1) > 0 {
		return
	}
	if p.n == 0 {
		p.a.mu.Lock()
	}
	p.a.free.put(f.num)
	p.n++
}

func (p *putter) end() {
	if p.n > 0 {
		p.a.mu.Unlock()
		p.a.nfree.Add(p.n)
		p.a.wq.Wake()
	}
}

// Reclaimable tells those who wait for memory that something may be freed now
// which could not be before: they try again.
func (a *Arena) Reclaimable() { a.wq.Wake() }

// Close wakes everybody who waits with ErrClosed. The memory stays mapped:
// somebody may still hold a folio.
func (a *Arena) Close() {
	a.closed.Store(true)
	a.wq.Wake()
}

// take removes len(dst) folios from the free ones if more than mark pages stay
// free, and returns whether it did.
func (a *Arena) take(dst []*Folio, mark int) bool {
	n := int64(len(dst))
	if a.nfree.Load()-n < int64(mark) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// putter raises nfree at its end, so there are never fewer than nfree says.
	if a.nfree.Load()-n < int64(mark) {
		return false
	}
	a.nfree.Add(-n)
	for len(dst) > 0 {
		w, got := a.free.take(len(dst))
		for ; got != 0; got &= got - 1 {
			f := &a.folios[w*64+bits.TrailingZeros64(got)]
			f.reset()
			dst[0], dst = f, dst[1:]
		}
	}
	return true
}
