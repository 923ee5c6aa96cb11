package writeback

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/waitfor"
)

func TestThrottle(t *testing.T) {
	local := gfp.Scope{}.LocalThrottle()
	for _, c := range []struct {
		name   string
		policy Throttle
		sc     gfp.Scope
		load   Load
		want   bool
	}{
		{"below", LocalThrottle{}, gfp.Scope{}, Load{100, 50, 99, 99}, false},
		{"at the limit", LocalThrottle{}, gfp.Scope{}, Load{100, 50, 100, 100}, true},
		{"limit full of others' pages", LocalThrottle{}, gfp.Scope{}, Load{100, 50, 100, 0}, true},
		{"likewise, fair", FairThrottle{LocalThrottle{}}, gfp.Scope{}, Load{100, 50, 100, 11}, false},
		{"more than a share of its own", FairThrottle{LocalThrottle{}}, gfp.Scope{}, Load{100, 50, 100, 12}, true},
		{"twice the limit", FairThrottle{LocalThrottle{}}, gfp.Scope{}, Load{100, 50, 200, 0}, true},
		{"fair, local writer", FairThrottle{LocalThrottle{}}, local, Load{100, 50, 200, 10}, false},
		{"local writer, limit full of others' pages", LocalThrottle{}, local, Load{100, 50, 200, 10}, false},
		{"local writer, its own device is behind", LocalThrottle{}, local, Load{100, 50, 75, 75}, true},
		{"off: the local writer waits for itself", GlobalThrottle{}, local, Load{100, 50, 100, 0}, true},
		{"2014: a quarter more", Historical25{}, local, Load{100, 50, 124, 0}, false},
		{"2014: and no further", Historical25{}, local, Load{100, 50, 125, 0}, true},
	} {
		if got := c.policy.Exceeded(c.load, c.sc); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func newDomain(t *testing.T) *Domain {
	t.Helper()
	d, err := NewDomain(Config{Pages: 1000, DirtyRatio: 20, BackgroundRatio: 10, Throttle: LocalThrottle{}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []Config{
		{Pages: 10, DirtyRatio: 20, BackgroundRatio: 10, Throttle: LocalThrottle{}},
		{Pages: 1000, DirtyRatio: 10, BackgroundRatio: 10, Throttle: LocalThrottle{}},
		{Pages: 1000, DirtyRatio: 60, BackgroundRatio: 10, Throttle: LocalThrottle{}},
		{Pages: 1000, DirtyRatio: 20, BackgroundRatio: 10},
	} {
		if _, err := NewDomain(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestThresholds(t *testing.T) {
	for _, c := range []struct{ pages, background, wantThresh, wantBackground int }{
		{1000, 0, 200, 100}, {1000, 40, 200, 40}, {1000, 500, 200, 100}, {64, 40, 16, 8},
	} {
		d, err := NewDomain(Config{Pages: c.pages, DirtyRatio: 20, BackgroundRatio: 10, BackgroundPages: c.background, Throttle: LocalThrottle{}})
		if err != nil {
			t.Fatal(err)
		}
		if thresh, background := d.Thresholds(); thresh != c.wantThresh || background != c.wantBackground {
			t.Errorf("%d pages, background %d: limits %d and %d, want %d and %d",
				c.pages, c.background, thresh, background, c.wantThresh, c.wantBackground)
		}
	}
}

func TestWritersWaitUntilPagesAreClean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDomain(t)
		b := d.NewBDI("client")
		b.Add(&Counts{Dirty: 200}, false)
		graph := waitfor.New()
		task := graph.NewTask("fuse")
		task.Begin("write")
		done := false
		go func() {
			b.BalanceDirtyPages(gfp.For(task), nil)
			done = true
		}()
		synctest.Wait()
		if now, _ := d.Throttled(); done || now != 1 {
			t.Fatalf("the writer was not throttled")
		}
		if w := graph.Waits(); len(w) != 1 || w[0] != "fuse: write waits for dirty pages to fall below the limit" {
			t.Errorf("waits: %q", w)
		}
		b.Add(&Counts{Dirty: -200, Writeback: 200}, false)
		b.Add(&Counts{Writeback: -200, Unstable: 200}, false)
		synctest.Wait()
		if done {
			t.Error("pages that are not clean stopped to count")
		}
		b.Add(&Counts{Unstable: -1}, false)
		synctest.Wait()
		if !done {
			t.Error("the writer still waits")
		}
	})
}

// What cannot be written is waited for by nobody, and is not memory that can be dirty.
func TestStuckPagesDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDomain(t)
		bad, good := d.NewBDI("bad"), d.NewBDI("good")
		bad.Add(&Counts{Dirty: 200}, false)
		good.Add(&Counts{Dirty: 30}, false) // more than its share
		done := false
		go func() {
			good.BalanceDirtyPages(gfp.Scope{}, nil)
			done = true
		}()
		synctest.Wait()
		if done {
			t.Fatal("the writer was not throttled")
		}
		bad.Stick(200)
		synctest.Wait()
		if thresh, _ := d.Thresholds(); !done || d.Pages() != 30 || d.Stuck() != 200 || thresh != 160 || bad.Nr(Dirty) != 200 {
			t.Errorf("done %v, %d pages of at most %d, %d stuck, %d dirty", done, d.Pages(), thresh, d.Stuck(), bad.Nr(Dirty))
		}
		good.Add(&Counts{Dirty: -30}, false)
		bad.Add(&Counts{Dirty: -50}, true)
		bad.Stick(-150)
		if thresh, _ := d.Thresholds(); d.Pages() != 150 || d.Stuck() != 0 || thresh != 200 || bad.Pages() != 150 {
			t.Errorf("%d pages of at most %d, %d stuck", d.Pages(), thresh, d.Stuck())
		}
		bad.Add(&Counts{Dirty: -150}, false)
	})
}

// Half of the memory stays clean however many write at once, but for a little for each device.
func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDomain(t)
		a, b := d.NewBDI("a"), d.NewBDI("b")
		local := gfp.Scope{}.LocalThrottle()
		a.Add(&Counts{Dirty: 450}, false)
		for _, c := range []struct {
			name  string
			b     *BDI
			sc    gfp.Scope
			pages int
			want  bool
		}{
			{"half", a, gfp.Scope{}, 50, true},
			{"more than half", a, gfp.Scope{}, 51, false},
			{"others wait for it", a, local, 51, true},
			{"device with few", b, gfp.Scope{}, 62, true},
			{"not so few", b, gfp.Scope{}, 63, false},
		} {
			got := c.b.Reserve(c.sc, c.pages)
			if got {
				c.b.Unreserve(c.pages)
			}
			if got != c.want {
				t.Errorf("%s: %v", c.name, got)
			}
		}
		waits := func(pages int) *bool {
			done := new(bool)
			go func() {
				for !a.Reserve(gfp.Scope{}, pages) {
					a.AwaitReserve(gfp.Scope{}, pages, nil)
				}
				a.Unreserve(pages)
				*done = true
			}()
			synctest.Wait()
			return done
		}
		if !a.Reserve(gfp.Scope{}, 50) {
			t.Fatal("there is room")
		}
		first, second := waits(10), waits(60)
		if *first || *second {
			t.Fatal("there is no room")
		}
		a.Unreserve(50)
		synctest.Wait()
		if !*first || *second {
			t.Errorf("what is reserved no more: %v, %v", *first, *second)
		}
		a.Add(&Counts{Dirty: -10, Writeback: 10}, false)
		a.Add(&Counts{Writeback: -10}, false)
		synctest.Wait()
		if !*second {
			t.Error("who waits to reserve does not see what is clean")
		}
		a.Add(&Counts{Dirty: -440}, false)
	})
}

// Who waits looks again when something was written, though as many pages count as before: the
// limit may be another one by now, or a COMMIT be all that is left to do.
func TestThrottledWriterLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dirtyable atomic.Int64
		dirtyable.Store(1000)
		d, err := NewDomain(Config{
			Pages: 2000, Dirtyable: func() int { return int(dirtyable.Load()) },
			DirtyRatio: 20, BackgroundRatio: 10, Throttle: GlobalThrottle{},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		b := d.NewBDI("client")
		b.Add(&Counts{Writeback: 200}, false)
		done := false
		go func() {
			b.BalanceDirtyPages(gfp.Scope{}, nil)
			done = true
		}()
		synctest.Wait()
		if done {
			t.Fatal("the writer was not throttled")
		}
		dirtyable.Store(2000)
		b.Add(&Counts{Writeback: -200, Unstable: 200}, false)
		synctest.Wait()
		if !done {
			t.Error("the writer still waits")
		}
	})
}

func TestThrottledWriterCanBeCancelled(t *testing.T) {
	d := newDomain(t)
	b := d.NewBDI("client")
	b.Add(&Counts{Dirty: 500}, false)
	cancel := make(chan struct{})
	close(cancel)
	b.BalanceDirtyPages(gfp.Scope{}, cancel) // hangs if it does not look
}

// counter is a Writer that cleans what it is asked to, for one flusher at a time: else two
// would take the same pages for dirty.
type counter struct {
	b  *BDI
	mu *sync.Mutex
}

func (c counter) WritePages(sc gfp.Scope, nr int) int {
	if !sc.IsMemalloc() || !sc.IsReclaim() {
		panic("a flusher must run under Memalloc and Reclaim")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(nr, c.b.Nr(Dirty))
	c.b.Add(&Counts{Dirty: -n}, false)
	return n
}

func TestFlusherWritesOverTheBackgroundLimitAndWhatIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDomain(t)
		b := d.NewBDI("store")
		f := StartFlusher(b, counter{b, new(sync.Mutex)}, waitfor.New(), 2)
		defer f.Stop()
		b.Add(&Counts{Dirty: 5}, false)
		b.BalanceDirtyPages(gfp.Scope{}, nil)
		synctest.Wait()
		if b.Nr(Dirty) != 5 {
			t.Error("a few fresh pages were written at once")
		}
		b.Add(&Counts{Dirty: 100}, false)
		b.BalanceDirtyPages(gfp.Scope{}, nil)
		synctest.Wait()
		if b.Nr(Dirty) != 0 {
			t.Error("nothing was written above the background limit")
		}
		for range 2 * minStream {
			b.Add(&Counts{Dirty: 1}, false)
			b.Streamed(1)
		}
		synctest.Wait()
		if b.Nr(Dirty) != 2*minStream {
			t.Error("small writes were taken for a stream")
		}
		for i := range minStream / largeWrite {
			synctest.Wait()
			if b.Nr(Dirty) == 0 {
				t.Errorf("written after %d large writes", i)
			}
			b.Streamed(largeWrite)
		}
		synctest.Wait()
		if b.Nr(Dirty) != 0 {
			t.Error("large writes were left to wait")
		}
		b.Add(&Counts{Dirty: 5}, false)
		time.Sleep(2 * interval)
		synctest.Wait()
		if b.Nr(Dirty) != 0 || b.Written() != 110+2*minStream {
			t.Errorf("%d old pages were left, %d written", b.Nr(Dirty), b.Written())
		}
	})
}

// committing has pages that stay unstable until it is asked to commit them.
type committing struct {
	counter
	asked *atomic.Int32
}

func (c committing) CommitPages() { c.asked.Add(1) }

func TestNoCommitForAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newDomain(t).NewBDI("client")
		w := committing{counter{b, new(sync.Mutex)}, new(atomic.Int32)}
		f := StartFlusher(b, w, waitfor.New(), 2)
		defer f.Stop()
		b.Add(&Counts{Dirty: minStream, Unstable: 10}, false)
		b.Streamed(minStream)
		synctest.Wait()
		if n := w.asked.Load(); b.Nr(Dirty) != 0 || n != 0 {
			t.Errorf("%d pages are dirty, and %d COMMITs were asked for, want 0 and 0", b.Nr(Dirty), n)
		}
		b.WakeFlusher()
		synctest.Wait()
		if w.asked.Load() == 0 {
			t.Error("no COMMIT was asked for when nothing else was left")
		}
	})
}

// A page that is being written is always counted: who asks whether anything is left must not
// hear that nothing is.
func TestPagesOnTheirWayCount(t *testing.T) {
	b := newDomain(t).NewBDI("test")
	b.Add(&Counts{Dirty: 3}, false)
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				b.Add(&Counts{Dirty: -3, Writeback: 3}, false)
				b.Add(&Counts{Dirty: 3, Writeback: -3}, false)
			}
		}
	}()
	for range 3_000_000 {
		if n := b.Pages(); n != 3 {
			t.Errorf("%d pages count, want 3", n)
			break
		}
	}
	close(stop)
	<-ended
}
