package reclaim

import (
	"testing"
	"testing/synctest"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim/writeback"
)

// fs is a file system whose flusher never gets anything written.
type fs struct{ masks []gfp.Flags }

func (s *fs) ReleaseFolio(_ *pagecache.Mapping, _ *alloc.Folio, _ gfp.Scope, mask gfp.Flags) pagecache.Verdict {
	s.masks = append(s.masks, mask)
	return pagecache.Busy
}

type world struct {
	*Reclaimer
	m  *pagecache.Mapping
	fs *fs
}

func newWorld(t *testing.T) world {
	t.Helper()
	a, err := alloc.New(alloc.Config{Bytes: alloc.MinBytes, Policy: alloc.DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	d, err := writeback.NewDomain(writeback.Config{Pages: a.Total(), DirtyRatio: 50, BackgroundRatio: 40, Throttle: writeback.LocalThrottle{}})
	if err != nil {
		t.Fatal(err)
	}
	w := world{Reclaimer: New(a), fs: &fs{}}
	c := pagecache.New(a, w)
	w.pages = c
	w.m = c.NewBacking(d.NewBDI("test"), w.fs).NewMapping(1, nil)
	return w
}

// add puts clean folios for n pages from index into the cache.
func (w world) add(t *testing.T, index, n int) {
	t.Helper()
	for i := range n {
		f, err := w.arena.Alloc(gfp.Scope{}.Memalloc(), gfp.NoWait)
		if err != nil {
			t.Fatal(err)
		}
		f.Set(alloc.Uptodate)
		w.m.Insert(uint64(index+i), f)
		w.arena.Put(f)
	}
}

func (w world) has(index int) bool {
	f := w.m.Get(uint64(index))
	if f == nil {
		return false
	}
	w.arena.Put(f)
	return true
}

func TestOldestGoFirstAndUsedGetASecondChance(t *testing.T) {
	w := newWorld(t)
	w.add(t, 0, 100)
	w.has(3) // used since it was added
	if n := w.scan(gfp.Scope{}, gfp.Kernel, 10, 10); n != 9 {
		t.Fatalf("freed %d folios of 10, want all but the used one", n)
	}
	if w.m.Len() != 91 || !w.has(3) || !w.has(10) {
		t.Errorf("%d folios left; page 3: %v, page 10: %v", w.m.Len(), w.has(3), w.has(10))
	}
	if s := w.Stats(); s.LRU != 91 || s.Freed != 9 || s.Scanned != 10 {
		t.Errorf("stats %+v", s)
	}
}

func TestWhatIsNotCleanStaysAndTheFileSystemIsAskedOnlyIfAllowed(t *testing.T) {
	w := newWorld(t)
	w.add(t, 0, 64)
	for i := range 64 {
		f := w.m.Get(uint64(i))
		f.Clear(alloc.Referenced)
		w.m.MarkDirty(f)
		if i%2 == 0 {
			w.m.BeginFolio(f)
			w.m.EndWriteback([]*alloc.Folio{f}, pagecache.Unstable)
			w.arena.Put(f)
		}
		w.arena.Put(f)
	}
	if n := w.DirectReclaim(gfp.Scope{}, gfp.NoFS, 64); n != 0 || len(w.fs.masks) != 0 {
		t.Errorf("NoFS: freed %d folios that are not clean, asked the file system %d times", n, len(w.fs.masks))
	}
	if n := w.DirectReclaim(gfp.Scope{}, gfp.Kernel, 64); n != 0 || len(w.fs.masks) == 0 {
		t.Errorf("Kernel: freed %d folios that are not clean, asked the file system %d times", n, len(w.fs.masks))
	}
	if w.m.Len() != 64 || w.Stats().LRU != 64 {
		t.Errorf("%d folios in the file, %d on the list, want 64", w.m.Len(), w.Stats().LRU)
	}
}

func TestDirectReclaimIsEnoughToGoOn(t *testing.T) {
	w := newWorld(t)
	w.add(t, 0, w.arena.Free())
	for range 500 {
		f, err := w.arena.Alloc(gfp.Scope{}, gfp.Kernel)
		if err != nil {
			t.Fatal(err)
		}
		w.arena.Put(f)
	}
}

func TestKswapdReachesTheHighWatermark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add(t, 0, w.arena.Free())
		w.Start(w.pages, waitfor.New())
		w.WakeKswapd(40)
		synctest.Wait()
		if free, want := w.arena.Free(), w.arena.Watermarks().High+40; free < want {
			t.Errorf("%d pages free, want %d", free, want)
		}
		w.Stop()
	})
}

func TestNothingIsLostWhenFoliosLeaveWhileIsolated(t *testing.T) {
	w := newWorld(t)
	w.add(t, 0, 32)
	var batch [clusterMax]*alloc.Folio
	n := w.isolate(batch[:])
	w.m.Truncate(16) // half of them leave the file
	w.putBack(batch[:n])
	if s := w.Stats(); s.LRU != 16 || w.arena.Free() != w.arena.Total()-16 {
		t.Errorf("%d on the list, %d pages not free, want 16", s.LRU, w.arena.Total()-w.arena.Free())
	}
}
