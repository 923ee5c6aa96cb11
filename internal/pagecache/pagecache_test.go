package pagecache

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/reclaim/writeback"
)

// noReclaim stands in for reclaim, which these tests do without.
type noReclaim struct{}

func (noReclaim) Add(*alloc.Folio)                            {}
func (noReclaim) Remove(*alloc.Folio)                         {}
func (noReclaim) DirectReclaim(gfp.Scope, gfp.Flags, int) int { return 0 }
func (noReclaim) WakeKswapd(int)                              {}

// ops counts how often it is asked and answers with verdict.
type ops struct {
	asked   atomic.Int64
	verdict Verdict
	before  func(m *Mapping)
}

func (o *ops) ReleaseFolio(m *Mapping, _ *alloc.Folio, _ gfp.Scope, _ gfp.Flags) Verdict {
	o.asked.Add(1)
	if o.before != nil {
		o.before(m)
	}
	return o.verdict
}

type world struct {
	*Cache
	back *Backing
	bdi  *writeback.BDI
	ops  *ops
}

func newWorld(t testing.TB) world { return newWorldOf(t, alloc.MinBytes) }

func newWorldOf(t testing.TB, bytes int64) world {
	t.Helper()
	a, err := alloc.New(alloc.Config{Bytes: bytes, Policy: alloc.DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	a.SetReclaimer(noReclaim{})
	d, err := writeback.NewDomain(writeback.Config{
		Pages: a.Total(), DirtyRatio: 20, BackgroundRatio: 10, Throttle: writeback.LocalThrottle{},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := world{Cache: New(a, noReclaim{}), bdi: d.NewBDI("test"), ops: &ops{}}
	w.back = w.NewBacking(w.bdi, w.ops)
	return w
}

// add puts a new folio at index, without a reference of the caller's.
func (w world) add(t testing.TB, m *Mapping, index uint64) *alloc.Folio {
	t.Helper()
	f, err := w.arena.Alloc(gfp.Scope{}, gfp.NoWait)
	if err != nil {
		t.Fatal(err)
	}
	f.Set(alloc.Uptodate)
	if old := m.Insert(index, f); old != nil {
		t.Fatalf("page %d is there already", index)
	}
	w.arena.Put(f)
	return f
}

func TestInsertReturnsWhatIsThere(t *testing.T) {
	w := newWorld(t)
	m := w.back.NewMapping(1, nil)
	f := w.add(t, m, 5)
	other, _ := w.arena.Alloc(gfp.Scope{}, gfp.NoWait)
	if got := m.Insert(5, other); got != f {
		t.Errorf("Insert returned %v, want the first folio", got)
	}
	if f.Refs() != 2 || other.Owner() != 0 {
		t.Errorf("refs %d, owner of the other %d", f.Refs(), other.Owner())
	}
	if m.Get(6) != nil {
		t.Error("found a page that was never added")
	}
}

func TestOneFolioThroughAllStates(t *testing.T) {
	w := newWorld(t)
	m := w.back.NewMapping(1, nil)
	f := w.add(t, m, 0)
	check := func(want State, dirty, wb, unstable int) {
		t.Helper()
		if m.State(f) != want || w.bdi.Nr(writeback.Dirty) != dirty ||
			w.bdi.Nr(writeback.Writeback) != wb || w.bdi.Nr(writeback.Unstable) != unstable {
			t.Fatalf("state %d, %d dirty, %d writeback, %d unstable; want state %d", m.State(f),
				w.bdi.Nr(writeback.Dirty), w.bdi.Nr(writeback.Writeback), w.bdi.Nr(writeback.Unstable), want)
		}
	}
	check(Clean, 0, 0, 0)
	m.MarkDirty(f)
	m.MarkDirty(f)
	check(Dirty, 1, 0, 0)
	if w.back.NextDirty() != m {
		t.Error("the mapping is not listed as dirty")
	}
	var dst [8]*alloc.Folio
	if n := m.BeginWriteback(dst[:], m.Seq()); n != 1 {
		t.Fatalf("%d folios to write", n)
	}
	check(Writeback, 0, 1, 0)
	if w.back.NextDirty() != nil {
		t.Error("the mapping is listed as dirty")
	}
	m.EndWriteback(dst[:1], Unstable)
	w.arena.Put(f)
	check(Unstable, 0, 0, 1)
	m.EndUnstable(m.Seq(), Dirty)
	check(Dirty, 1, 0, 0)
	m.BeginWriteback(dst[:], m.Seq())
	m.MarkDirty(f) // written to again meanwhile
	m.EndWriteback(dst[:1], Clean)
	w.arena.Put(f)
	check(Dirty, 1, 0, 0)
	m.BeginWriteback(dst[:], m.Seq())
	m.EndWriteback(dst[:1], Clean)
	w.arena.Put(f)
	check(Clean, 0, 0, 0)
}

func TestWritebackTakesARunAroundTheOldest(t *testing.T) {
	w := newWorld(t)
	m := w.back.NewMapping(1, nil)
	for _, i := range []uint64{7, 3, 5, 6, 4, 20} {
		m.MarkDirty(w.add(t, m, i))
	}
	var dst [8]*alloc.Folio
	n := m.BeginWriteback(dst[:], ^uint64(0))
	if n != 5 || dst[0].Index != 3 || dst[4].Index != 7 {
		t.Errorf("got %d folios from page %d", n, dst[0].Index)
	}
	if n := m.BeginWriteback(dst[:3], ^uint64(0)); n != 1 || dst[0].Index != 20 {
		t.Errorf("then %d folios from page %d", n, dst[0].Index)
	}
}

func TestSyncIsNotKeptByLaterWriters(t *testing.T) {
	w := newWorld(t)
	m := w.back.NewMapping(1, nil)
	m.MarkDirty(w.add(t, m, 0))
	upTo := m.Seq()
	m.MarkDirty(w.add(t, m, 100))
	var dst [8]*alloc.Folio
	if n := m.BeginWriteback(dst[:], upTo); n != 1 || dst[0].Index != 0 {
		t.Errorf("got %d folios", n)
	}
	if n := m.BeginWriteback(dst[1:], upTo); n != 0 {
		t.Errorf("took %d folios that became dirty later", n)
	}
	m.BeginWriteback(dst[1:], ^uint64(0)) // page 100 is under write-back for ever
	m.EndWriteback(dst[:1], Clean)
	if !m.WaitWriteback(gfp.Scope{}, upTo, nil) {
		t.Error("waited for a later write")
	}
}

func TestReleaseFreesOnlyWhatIsCleanAndUnused(t *testing.T) {
	w := newWorld(t)
	m := w.back.NewMapping(1, nil)
	release := func(f *alloc.Folio, mask gfp.Flags) Verdict {
		f.Get()
		defer w.arena.Put(f)
		return w.Release(f, gfp.Scope{}, mask)
	}
	unstable := w.add(t, m, 0)
	m.MarkDirty(unstable)
	if v := release(unstable, gfp.Kernel); v != Started || w.ops.asked.Load() != 0 {
		t.Errorf("dirty: %v, asked %d times; it is for the flusher", v, w.ops.asked.Load())
	}
	m.BeginFolio(unstable)
	if v := release(unstable, gfp.Kernel); v != Busy || w.ops.asked.Load() != 0 {
		t.Errorf("under write-back: %v, asked %d times", v, w.ops.asked.Load())
	}
	m.EndWriteback([]*alloc.Folio{unstable}, Unstable)
	w.arena.Put(unstable)
	if v := release(unstable, gfp.NoFS); v != Busy || w.ops.asked.Load() != 0 {
		t.Errorf("unstable, without FS: %v, asked %d times", v, w.ops.asked.Load())
	}
	w.ops.verdict = Started
	if v := release(unstable, gfp.Kernel); v != Started || w.ops.asked.Load() != 1 {
		t.Errorf("unstable, with FS: %v, asked %d times", v, w.ops.asked.Load())
	}
	// The file system says it let go, but it did not.
	w.ops.verdict = Freed
	if v := release(unstable, gfp.Kernel); v != Busy || w.ops.asked.Load() != 2 {
		t.Errorf("an unstable folio was freed: %v", v)
	}
	private := w.add(t, m, 1)
	private.Set(alloc.Private)
	w.ops.before = func(*Mapping) { private.Clear(alloc.Private) }
	if v := release(private, gfp.Kernel); v != Freed || m.Get(1) != nil {
		t.Errorf("a private folio that was let go: %v", v)
	}
	used := w.add(t, m, 2)
	used.Get()
	if v := release(used, gfp.Kernel); v != Busy {
		t.Errorf("a folio in use was freed: %v", v)
	}
	w.arena.Put(used)
	if v := release(used, gfp.NoFS); v != Freed || used.Refs() != 0 {
		t.Errorf("a clean folio: %v, %d references left", v, used.Refs())
	}
}

func TestTruncateWaitsForWriteback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.back.NewMapping(1, nil)
		for i := range uint64(6) {
			m.MarkDirty(w.add(t, m, i))
		}
		var dst [8]*alloc.Folio
		n := m.BeginWriteback(dst[:], ^uint64(0))
		done := false
		go func() {
			m.Truncate(2)
			done = true
		}()
		synctest.Wait()
		if done {
			t.Fatal("did not wait for write-back")
		}
		m.EndWriteback(dst[:n], Clean)
		w.arena.PutAll(dst[:n])
		synctest.Wait()
		if !done || m.Len() != 2 || w.bdi.Pages() != 0 {
			t.Errorf("done %v, %d folios left, %d counted", done, m.Len(), w.bdi.Pages())
		}
	})
}

func TestFillersAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.back.NewMapping(1, nil)
		f := w.add(t, m, 0)
		f.Clear(alloc.Uptodate)
		f.Set(alloc.Locked)
		var ok, done bool
		go func() {
			ok = m.WaitUnlocked(f, nil)
			done = true
		}()
		synctest.Wait()
		if done {
			t.Fatal("did not wait")
		}
		m.Unlock(true, f)
		synctest.Wait()
		if !done || !ok {
			t.Errorf("done %v, content valid %v", done, ok)
		}
	})
}

// Many tasks change the states of a few pages at random; at the end every
// count must be what the lists hold.
func TestCountsUnderConcurrency(t *testing.T) {
	w := newWorld(t)
	maps := []*Mapping{w.back.NewMapping(1, nil), w.back.NewMapping(2, nil)}
	var tasks sync.WaitGroup
	for i := range 8 {
		tasks.Go(func() { churn(t, w, maps, rand.New(rand.NewPCG(1, uint64(i)))) })
	}
	tasks.Wait()
	for _, m := range maps {
		m.Truncate(0)
		m.Close()
	}
	if w.bdi.Pages() != 0 || w.arena.Free() != w.arena.Total() {
		t.Errorf("%d pages still count, %d of %d free", w.bdi.Pages(), w.arena.Free(), w.arena.Total())
	}
	for i, h := range w.heads {
		if h != alloc.None {
			t.Fatalf("hash chain %d is not empty", i)
		}
	}
}

func churn(t *testing.T, w world, maps []*Mapping, rng *rand.Rand) {
	var dst [4]*alloc.Folio
	for range 3000 {
		m, index := maps[rng.IntN(2)], rng.Uint64N(16)
		switch rng.IntN(6) {
		case 0, 1:
			f, err := w.arena.Alloc(gfp.Scope{}, gfp.NoWait)
			if err != nil {
				t.Error(err)
				return
			}
			if old := m.Insert(index, f); old != nil {
				w.arena.Put(old)
			}
			w.arena.Put(f)
		case 2:
			if f := m.Get(index); f != nil {
				m.MarkDirty(f)
				w.arena.Put(f)
			}
		case 3:
			n := m.BeginWriteback(dst[:], ^uint64(0))
			m.EndWriteback(dst[:n], State(rng.IntN(int(numStates)-1)+1)%Writeback)
			w.arena.PutAll(dst[:n])
		case 4:
			m.EndUnstable(m.Seq(), Clean)
		case 5:
			if f := m.Get(index); f != nil {
				w.Release(f, gfp.Scope{}, gfp.Kernel)
				w.arena.Put(f)
			}
		}
	}
}

func BenchmarkGetRange256(b *testing.B) {
	w := newWorld(b)
	m := w.back.NewMapping(1, nil)
	for i := range uint64(256) {
		w.add(b, m, i)
	}
	dst := make([]*alloc.Folio, 256)
	b.ReportAllocs()
	for b.Loop() {
		m.GetRange(0, dst)
		w.arena.PutAll(dst)
	}
}

// BenchmarkWriteback256 is what becomes of the pages of 1 MiB that is written, in a cache
// that no processor's holds.
func BenchmarkWriteback256(b *testing.B) {
	const size, files = 32 << 20, 4
	w := newWorldOf(b, 2*size)
	var ms []*Mapping
	for i := range uint64(files) {
		ms = append(ms, w.back.NewMapping(i+1, nil))
		for index := range uint64(size / files / alloc.PageSize) {
			w.add(b, ms[i], index)
		}
	}
	dst := make([]*alloc.Folio, 256)
	at := 0
	b.ReportAllocs()
	for b.Loop() {
		m := ms[at%files]
		m.GetRange(uint64(at/files*len(dst))%(size/files/alloc.PageSize), dst)
		m.MarkDirty(dst...)
		w.arena.PutAll(dst)
		if m.BeginWriteback(dst, m.Seq()) != len(dst) {
			b.Fatal("not all that was written is dirty")
		}
		m.EndWriteback(dst, Unstable)
		m.EndUnstable(m.Seq(), Clean)
		w.arena.PutAll(dst)
		at++
	}
}

// What takes the place of a folio is as dirty and as old as that was: a sync that began
// before waits for it.
func TestExchange(t *testing.T) {
	w := newWorld(t)
	m := w.back.NewMapping(1, nil)
	fresh := func() *alloc.Folio {
		f, err := w.arena.Alloc(gfp.Scope{}, gfp.NoWait)
		if err != nil {
			t.Fatal(err)
		}
		f.Set(alloc.Uptodate)
		return f
	}
	for i := range uint64(7) {
		w.add(t, m, i)
	}
	for _, index := range []uint64{0, 2, 4} {
		m.MarkDirty(m.Get(index))
	}
	seq := m.Seq()
	m.MarkDirty(m.Get(6))
	for _, index := range []uint64{2, 0, 4, 3} {
		old, f := m.Get(index), fresh()
		want := m.State(old)
		if !m.Exchange(old, f) {
			t.Fatalf("page %d was not exchanged", index)
		}
		if got := m.Get(index); got != f || m.State(f) != want || old.Owner() != 0 {
			t.Errorf("page %d is folio %d in state %v, want %d in %v", index, got.Num(), m.State(f), f.Num(), want)
		}
	}
	if m.Nr(Dirty) != 4 || w.bdi.Nr(writeback.Dirty) != 4 || m.Len() != 7 {
		t.Errorf("%d dirty of %d, the device has %d; want 4 of 7 and 4", m.Nr(Dirty), m.Len(), w.bdi.Nr(writeback.Dirty))
	}
	for _, index := range []uint64{0, 2, 4} {
		dst := make([]*alloc.Folio, 8)
		if n := m.BeginWriteback(dst, seq); n != 1 || dst[0].Index != index {
			t.Fatalf("%d pages are written from %d on, want page %d, which is the oldest", n, dst[0].Index, index)
		}
	}
	if n := m.BeginWriteback(make([]*alloc.Folio, 8), seq); n != 0 {
		t.Errorf("%d more pages are as old", n)
	}
	refused := func(f *alloc.Folio, why string) {
		if m.Exchange(f, fresh()) {
			t.Errorf("a folio was exchanged that %s", why)
		}
	}
	refused(m.Get(0), "is under write-back")
	m.EndWriteback([]*alloc.Folio{m.Get(0), m.Get(2), m.Get(4)}, Clean)
	gone := m.Get(3)
	m.Truncate(3)
	refused(gone, "left the mapping")
	refused(w.locked(t, m, 7), "is being filled")
	refused(w.private(t, m, 8), "the file system wants to be asked about")
}

func (w world) locked(t testing.TB, m *Mapping, index uint64) *alloc.Folio {
	f := w.add(t, m, index)
	f.Set(alloc.Locked)
	return f
}

func (w world) private(t testing.TB, m *Mapping, index uint64) *alloc.Folio {
	f := w.add(t, m, index)
	f.Set(alloc.Private)
	return f
}
