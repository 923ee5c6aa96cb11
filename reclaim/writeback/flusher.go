package writeback

import (
	"sync"
	"time"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/waitfor"
)

// Writer is a file system that owns dirty folios.
type Writer interface {
	// WritePages writes out, or starts to write out, up to nr dirty folios,
	// of the inode that was dirty first, and returns how many: 0 if there is
	// nothing it can start now. It may wait for the device, never for memory.
	WritePages(sc gfp.Scope, nr int) int
}

// Committer is a Writer whose written pages stay Unstable until it commits
// them. Its flusher asks for that when it is woken and nothing is left to write:
// unstable pages count towards the dirty limit, too.
type Committer interface {
	// CommitPages starts to commit what is unstable. It does not block.
	CommitPages()
}

const (
	// batch is what one call of WritePages is asked for, in pages
	// (MAX_WRITEBACK_PAGES).
	batch = 1024
	// interval is how often a flusher looks without being asked
	// (vm.dirty_writeback_centisecs): everything dirty by then is written.
	interval = time.Second
)

// Flusher writes out the dirty pages of one BDI in the background: the worker
// that reclaim and kswapd hand their dirty pages to.
type Flusher struct {
	bdi  *BDI
	w    Writer
	stop chan struct{}
	wg   sync.WaitGroup
}

// StartFlusher starts n workers for b. They run until Stop.
func StartFlusher(b *BDI, w Writer, g *waitfor.Graph, n int) *Flusher {
	f := &Flusher{bdi: b, w: w, stop: make(chan struct{})}
	for range n {
		task := g.NewTask("flusher of " + b.name)
		f.wg.Go(func() {
			f.run(gfp.For(task).Memalloc().Reclaim())
			g.Remove(task)
		})
	}
	return f
}

// Stop ends the workers after what they are writing, and waits for that. What
// is dirty stays dirty.
func (f *Flusher) Stop() {
	close(f.stop)
	f.wg.Wait()
}

func (f *Flusher) run(sc gfp.Scope) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-f.bdi.stream:
			f.drain(sc, f.bdi.stream)
			continue
		case <-f.bdi.kick:
		case <-tick.C:
		}
		f.drain(sc, f.bdi.kick)
		f.commit()
	}
}

// commit asks for a COMMIT if that is all that is left to do
// (nfs_commit_unstable_pages).
func (f *Flusher) commit() {
	c, ok := f.w.(Committer)
	if ok && f.bdi.Nr(Dirty) == 0 && f.bdi.Nr(Unstable) > 0 {
		c.CommitPages()
	}
}

// drain writes until there is nothing left that can be started. Another worker, woken by
// share, may take a part.
func (f *Flusher) drain(sc gfp.Scope, share chan struct{}) {
	task := sc.Task()
	for f.bdi.Nr(Dirty) > 0 && !f.stopped() {
		task.Begin("write-back")
		n := f.w.WritePages(sc, batch)
		task.End()
		if n == 0 {
			return
		}
		f.bdi.written.Add(uint64(n))
		poke(share)
	}
}

func (f *Flusher) stopped() bool {
	select {
	case <-f.stop:
		return true
	default:
		return false
	}
}

// Written returns how many pages the flushers of b have written.
func (b *BDI) Written() uint64 { return b.written.Load() }
