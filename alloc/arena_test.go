package alloc

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/waitfor"
)

// give is a reclaimer that frees the folios it was given, one per call.
type give struct {
	a     *Arena
	fs    []*Folio
	masks []gfp.Flags
	woken int
}

func (g *give) DirectReclaim(_ gfp.Scope, mask gfp.Flags, _ int) int {
	g.masks = append(g.masks, mask)
	if len(g.fs) == 0 {
		return 0
	}
	g.a.Put(g.fs[0])
	g.fs = g.fs[1:]
	return 1
}

func (g *give) WakeKswapd(int) { g.woken++ }

func newArena(t *testing.T, policy Policy) (*Arena, *give) {
	t.Helper()
	a, err := New(Config{Bytes: MinBytes, Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	g := &give{a: a}
	a.SetReclaimer(g)
	return a, g
}

// fill leaves free pages in a and returns the others.
func fill(t *testing.T, a *Arena, free int) []*Folio {
	t.Helper()
	fs := make([]*Folio, a.Free()-free)
	if !a.take(fs, 0) {
		t.Fatal("cannot fill the arena")
	}
	return fs
}

func TestSizeIsChecked(t *testing.T) {
	for _, bytes := range []int64{-1, 0, MinBytes - 1, MaxBytes + 1} {
		if _, err := New(Config{Bytes: bytes, Policy: DefaultPolicy()}); err == nil {
			t.Errorf("an arena of %d bytes was made", bytes)
		}
	}
}

func TestFoliosDoNotOverlap(t *testing.T) {
	a, _ := newArena(t, DefaultPolicy())
	fs := fill(t, a, 0)
	for i, f := range fs {
		b := a.Bytes(f)
		b[0], b[PageSize-1] = byte(i), byte(i>>8)
	}
	for i, f := range fs {
		if b := a.Bytes(f); b[0] != byte(i) || b[PageSize-1] != byte(i>>8) {
			t.Fatalf("folio %d was overwritten", i)
		}
	}
	a.PutAll(fs)
	if a.Free() != a.Total() {
		t.Errorf("%d of %d pages are free again", a.Free(), a.Total())
	}
}

func TestKswapdIsWokenBelowLow(t *testing.T) {
	a, g := newArena(t, DefaultPolicy())
	fill(t, a, a.marks.Low+1)
	if _, err := a.Alloc(gfp.Scope{}, gfp.Kernel); err != nil || g.woken != 0 {
		t.Fatalf("above low: %v, kswapd woken %d times", err, g.woken)
	}
	if _, err := a.Alloc(gfp.Scope{}, gfp.Kernel); err != nil || g.woken != 1 {
		t.Fatalf("below low: %v, kswapd woken %d times", err, g.woken)
	}
}

func TestReserveIsForMemallocOnly(t *testing.T) {
	a, _ := newArena(t, DefaultPolicy())
	fill(t, a, a.marks.Min)
	if _, err := a.Alloc(gfp.Scope{}, gfp.NoWait); !errors.Is(err, ErrNoMemory) {
		t.Errorf("an ordinary allocation below min: %v", err)
	}
	if _, err := a.Alloc(gfp.Scope{}.Memalloc(), gfp.NoWait); err != nil {
		t.Errorf("a Memalloc allocation below min: %v", err)
	}
	if n := a.Stats().ReservePages; n != 1 {
		t.Errorf("%d pages counted as taken from the reserve, want 1", n)
	}
}

func TestHighReachesHalfOfTheReserve(t *testing.T) {
	a, _ := newArena(t, DefaultPolicy())
	fill(t, a, a.marks.Min)
	for range a.marks.Min / 2 {
		if _, err := a.Alloc(gfp.Scope{}, gfp.High); err != nil {
			t.Fatalf("with %d pages free: %v", a.Free(), err)
		}
	}
	if _, err := a.Alloc(gfp.Scope{}, gfp.High); !errors.Is(err, ErrNoMemory) {
		t.Errorf("in the lower half: %v", err)
	}
	if n := a.Stats().ReservePages; int(n) != a.marks.Min/2 {
		t.Errorf("%d pages counted as taken from the reserve, want %d", n, a.marks.Min/2)
	}
}

func TestWithoutReserveEverybodyTakesTheLastPage(t *testing.T) {
	a, _ := newArena(t, Policy{Mask: gfp.Scope.Mask})
	fill(t, a, 1)
	if _, err := a.Alloc(gfp.Scope{}, gfp.NoWait); err != nil {
		t.Error(err)
	}
}

func TestScopeMasksTheFlags(t *testing.T) {
	for _, c := range []struct {
		name string
		sc   gfp.Scope
		mask func(gfp.Scope, gfp.Flags) gfp.Flags
		want gfp.Flags
	}{
		{"none", gfp.Scope{}, gfp.Scope.Mask, gfp.Kernel},
		{"NoFS", gfp.Scope{}.NoFS(), gfp.Scope.Mask, gfp.NoFS},
		{"NoIO", gfp.Scope{}.NoIO(), gfp.Scope.Mask, gfp.NoIO},
		{"NoFS, mechanism off", gfp.Scope{}.NoFS(), Unmasked, gfp.Kernel},
	} {
		a, g := newArena(t, Policy{Mask: c.mask, Reserve: true})
		g.fs = fill(t, a, a.marks.Min)
		if _, err := a.Alloc(c.sc, gfp.Kernel); err != nil || len(g.masks) == 0 || g.masks[0] != c.want {
			t.Errorf("%s: reclaim ran under %v, want %v (%v)", c.name, g.masks, c.want, err)
		}
	}
}

func TestReclaimDoesNotRecurse(t *testing.T) {
	a, g := newArena(t, DefaultPolicy())
	g.fs = fill(t, a, 0)
	go func() {
		time.Sleep(10 * time.Millisecond)
		a.PutAll(g.fs)
	}()
	if _, err := a.Alloc(gfp.Scope{}.Reclaim(), gfp.Kernel); err != nil || len(g.masks) != 0 {
		t.Errorf("direct reclaim was entered from reclaim: %v, %v", g.masks, err)
	}
}

func TestAllOrNothing(t *testing.T) {
	a, _ := newArena(t, Policy{Mask: gfp.Scope.Mask})
	fill(t, a, 3)
	dst := make([]*Folio, 4)
	if err := a.AllocInto(gfp.Scope{}, gfp.NoWait, dst); !errors.Is(err, ErrNoMemory) || a.Free() != 3 {
		t.Errorf("4 of 3 pages: %v, %d left", err, a.Free())
	}
	if err := a.AllocInto(gfp.Scope{}, gfp.Kernel, make([]*Folio, a.MaxAlloc()+1)); !errors.Is(err, ErrNoMemory) {
		t.Errorf("more than could ever be had: %v", err)
	}
}

func TestWaitsForSomeMemoryAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := newArena(t, DefaultPolicy())
		fs := fill(t, a, a.marks.Min)
		graph := waitfor.New()
		task := graph.NewTask("server")
		task.Begin("WRITE")
		got := make(chan error, 1)
		go func() {
			_, err := a.Alloc(gfp.For(task), gfp.Kernel)
			got <- err
		}()
		synctest.Wait()
		if w := graph.Waits(); len(w) != 1 || w[0] != "server: WRITE waits for a free page" {
			t.Errorf("waits: %q", w)
		}
		a.Put(fs[0])
		synctest.Wait()
		select {
		case err := <-got:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("still waiting, though a page was freed")
		}
		if w := graph.Waits(); len(w) != 0 {
			t.Errorf("waits afterwards: %q", w)
		}
	})
}

func TestCloseWakesThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := newArena(t, DefaultPolicy())
		fill(t, a, 0)
		got := make(chan error, 1)
		go func() {
			_, err := a.Alloc(gfp.Scope{}, gfp.Kernel)
			got <- err
		}()
		synctest.Wait()
		a.Close()
		if err := <-got; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

func BenchmarkAllocPut(b *testing.B) {
	a, err := New(Config{Bytes: 64 << 20, Policy: DefaultPolicy()})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		f, _ := a.Alloc(gfp.Scope{}, gfp.Kernel)
		a.Put(f)
	}
}

func BenchmarkAllocInto256(b *testing.B) {
	a, err := New(Config{Bytes: 64 << 20, Policy: DefaultPolicy()})
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]*Folio, 256)
	b.ReportAllocs()
	for b.Loop() {
		_ = a.AllocInto(gfp.Scope{}, gfp.Kernel, dst)
		a.PutAll(dst)
	}
}
