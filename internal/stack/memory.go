package stack

import (
	"os"

	"loopnfs/alloc"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim"
	"loopnfs/reclaim/writeback"
)

// MemoryConfig says how large the arena is and which mechanisms govern it.
type MemoryConfig struct {
	Bytes int64
	File  *os.File // see alloc.Config
	Lock  bool
	// DirtyRatio is the dirty limit in percent of the arena; the flushers
	// start at half of it, or at Background bytes if that is less and not 0.
	DirtyRatio int
	Background int64
	Alloc      alloc.Policy
	Throttle   writeback.Throttle
}

// DefaultMemory has every mechanism on.
func DefaultMemory(bytes int64) MemoryConfig {
	return MemoryConfig{
		Bytes: bytes, Lock: true, DirtyRatio: 20,
		Alloc: alloc.DefaultPolicy(), Throttle: writeback.LocalThrottle{},
	}
}

// Memory is an arena with everything that manages it. The file systems that
// share it take their pages from Cache.
type Memory struct {
	Arena   *alloc.Arena
	Domain  *writeback.Domain
	Reclaim *reclaim.Reclaimer
	Cache   *pagecache.Cache
	Graph   *waitfor.Graph
}

// NewMemory makes an arena and its managers; Start sets kswapd going.
func NewMemory(cfg MemoryConfig) (*Memory, error) {
	arena, err := alloc.New(alloc.Config{Bytes: cfg.Bytes, File: cfg.File, Lock: cfg.Lock, Policy: cfg.Alloc})
	if err != nil {
		return nil, err
	}
	rec := reclaim.New(arena)
	dom, err := writeback.NewDomain(writeback.Config{
		Pages: arena.Total(), Dirtyable: rec.Dirtyable, DirtyRatio: cfg.DirtyRatio, BackgroundRatio: cfg.DirtyRatio / 2,
		BackgroundPages: alloc.Pages(int(cfg.Background)), Throttle: cfg.Throttle,
	})
	if err != nil {
		return nil, err
	}
	return &Memory{
		Arena: arena, Domain: dom, Reclaim: rec,
		Cache: pagecache.New(arena, rec), Graph: waitfor.New(),
	}, nil
}

// Start starts kswapd, which asks devices for clean pages when it runs out.
func (m *Memory) Start(devices ...*writeback.BDI) {
	ds := make([]reclaim.Device, len(devices))
	for i, d := range devices {
		ds[i] = d
	}
	m.Reclaim.Start(m.Cache, m.Graph, ds...)
}

// Stop ends kswapd and lets go whoever waits for memory. Call it last.
func (m *Memory) Stop() {
	m.Domain.Close()
	m.Arena.Close()
	m.Reclaim.Stop()
}
