package reclaim

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/waitfor"
)

const (
	// clusterMax is how many folios are isolated at a time
	// (SWAP_CLUSTER_MAX).
	clusterMax = 32
	// defPriority makes the first pass look at 1/2^n of the list; each pass
	// that frees too little doubles that (DEF_PRIORITY).
	defPriority = 6
	// kswapdRetry bounds how long kswapd sleeps when it cannot make progress.
	kswapdRetry = 20 * time.Millisecond
)

// Pages frees single folios; pagecache.Cache is the implementation.
type Pages interface {
	Release(f *alloc.Folio, sc gfp.Scope, mask gfp.Flags) pagecache.Verdict
}

// Device can be asked to clean pages.
type Device interface{ WakeFlusher() }

// Stats counts what reclaim did.
type Stats struct {
	Scanned, Freed         uint64 // folios, by everybody
	DirectRuns, KswapdRuns uint64
	LRU                    int // folios on the list
}

// Reclaimer frees the pages of one arena. All methods may be called
// concurrently.
type Reclaimer struct {
	arena *alloc.Arena
	pages Pages

	want    atomic.Int64  // pages above high that somebody waits for
	kick    chan struct{} // wakes kswapd
	stop    chan struct{}
	stopped sync.WaitGroup

	scanned, freed, direct, kswapd atomic.Uint64

	mu         sync.Mutex
	devices    []Device // copied when it grows
	head, tail uint32   // most and least recently used
	size       int
}

// New returns the reclaimer of arena and wires the arena to it. Start it when
// pages and devices are known.
func New(arena *alloc.Arena) *Reclaimer {
	r := &Reclaimer{arena: arena, kick: make(chan struct{}, 1), stop: make(chan struct{})}
	arena.SetReclaimer(r)
	return r
}

// Start starts kswapd. pages frees folios; devices are asked to clean some when
// too few can be freed.
func (r *Reclaimer) Start(pages Pages, g *waitfor.Graph, devices ...Device) {
	r.pages = pages
	for _, d := range devices {
		r.AddDevice(d)
	}
	task := g.NewTask("kswapd")
	r.stopped.Go(func() {
		r.runKswapd(gfp.For(task).Memalloc().Kswapd())
		g.Remove(task)
	})
}

// AddDevice adds a device that is asked to clean pages when too few can be
// freed. It may be called at any time; a device that is known already is not
// added again.
func (r *Reclaimer) AddDevice(d Device) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.devices, d) {
		r.devices = append(slices.Clone(r.devices), d)
	}
}

// Stop ends kswapd and waits for it.
func (r *Reclaimer) Stop() {
	close(r.stop)
	r.stopped.Wait()
}

// Stats returns the counters.
func (r *Reclaimer) Stats() Stats {
	r.mu.Lock()
	size := r.size
	r.mu.Unlock()
	return Stats{
		Scanned: r.scanned.Load(), Freed: r.freed.Load(),
		DirectRuns: r.direct.Load(), KswapdRuns: r.kswapd.Load(), LRU: size,
	}
}

// Dirtyable returns how many pages hold file data or are free for it
// (global_dirtyable_memory).
func (r *Reclaimer) Dirtyable() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.size + max(r.arena.Free()-r.arena.Watermarks().High, 0)
}

// DirectReclaim frees up to n folios, rounded up to a cluster, for an
// allocation (try_to_free_pages).
func (r *Reclaimer) DirectReclaim(sc gfp.Scope, mask gfp.Flags, n int) int {
	r.direct.Add(1)
	return r.shrink(sc.Reclaim(), mask, max(n, clusterMax))
}

// WakeKswapd wakes kswapd for an allocation of n pages.
func (r *Reclaimer) WakeKswapd(n int) {
	for old := r.want.Load(); int64(n) > old && !r.want.CompareAndSwap(old, int64(n)); old = r.want.Load() {
	}
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *Reclaimer) runKswapd(sc gfp.Scope) {
	for {
		select {
		case <-r.stop:
			return
		case <-r.kick:
		}
		r.kswapd.Add(1)
		r.balance(sc)
	}
}

// balance frees pages until the high watermark is reached and whoever asked is
// served (balance_pgdat).
func (r *Reclaimer) balance(sc gfp.Scope) {
	goal := r.arena.Watermarks().High + int(r.want.Swap(0))
	for {
		missing := goal - r.arena.Free()
		if missing <= 0 {
			return
		}
		if r.shrink(sc, gfp.Kernel, missing) > 0 {
			continue
		}
		select {
		case <-r.stop:
			return
		case <-r.kick:
			goal = max(goal, r.arena.Watermarks().High+int(r.want.Swap(0)))
		case <-time.After(kswapdRetry):
		}
	}
}

// shrink frees up to n folios, looking at more and more of the list, and
// returns how many it freed (do_try_to_free_pages).
func (r *Reclaimer) shrink(sc gfp.Scope, mask gfp.Flags, n int) int {
	freed := 0
	for prio := defPriority; prio >= 0 && freed < n; prio-- {
		r.mu.Lock()
		scan := max(r.size>>prio, clusterMax)
		r.mu.Unlock()
		freed += r.scan(sc, mask, scan, n-freed)
	}
	if freed < n {
		r.mu.Lock()
		devices := r.devices
		r.mu.Unlock()
		for _, d := range devices {
			d.WakeFlusher()
		}
	}
	return freed
}

// scan looks at up to total folios from the tail of the list and frees up to n.
func (r *Reclaimer) scan(sc gfp.Scope, mask gfp.Flags, total, n int) int {
	var batch [clusterMax]*alloc.Folio
	freed := 0
	for total > 0 && freed < n {
		got := r.isolate(batch[:min(total, clusterMax)])
		if got == 0 {
			break
		}
		total -= got
		freed += r.shrinkList(sc, mask, batch[:got])
	}
	return freed
}

// shrinkList frees what it can of isolated folios (shrink_folio_list).
func (r *Reclaimer) shrinkList(sc gfp.Scope, mask gfp.Flags, fs []*alloc.Folio) int {
	freed := 0
	for _, f := range fs {
		if f.Has(alloc.Referenced) {
			f.Clear(alloc.Referenced)
			continue
		}
		if r.pages.Release(f, sc, mask) == pagecache.Freed {
			freed++
		}
	}
	r.scanned.Add(uint64(len(fs)))
	r.freed.Add(uint64(freed))
	r.putBack(fs)
	return freed
}
