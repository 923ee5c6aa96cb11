package pressure

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

var limits = Limits{Enter: 10, EnterMost: 1 << 30, Leave: 2, Hold: time.Second}

// free returns a sample of a host of 1000 bytes with n that can be had at once.
func free(n int64) Sample { return Sample{Total: 1000, Available: n} }

func TestJudge(t *testing.T) {
	type step struct {
		after   time.Duration
		s       Sample
		stalled bool
		want    bool
	}
	ms := time.Millisecond
	for name, steps := range map[string][]step{
		"enough": {{0, free(100), false, false}, {ms, free(1000), false, false}},
		"enters at once": {
			{0, free(100), false, false}, {0, free(99), false, true},
		},
		"unclean pages do not count": {
			{0, Sample{Total: 1000, Available: 500, Unclean: 400}, false, false}, {ms, Sample{Total: 1000, Available: 500, Unclean: 401}, false, true},
		},
		"more unclean than available": {{0, Sample{Total: 1000, Available: 10, Unclean: 900}, false, true}},
		"a stall is enough":           {{0, free(900), true, true}},
		"leaves after a while": {
			{0, free(0), false, true},
			{ms, free(200), false, true}, {999 * ms, free(200), false, true}, {ms, free(200), false, false},
		},
		"not between the levels": {
			{0, free(0), false, true}, {10 * time.Second, free(199), false, true}, {10 * time.Second, free(199), false, true},
		},
		"a dip starts it over": {
			{0, free(0), false, true},
			{ms, free(200), false, true}, {900 * ms, free(199), false, true},
			{ms, free(200), false, true}, {900 * ms, free(200), false, true}, {100 * ms, free(200), false, false},
		},
		"so does a stall": {
			{0, free(0), false, true},
			{ms, free(900), false, true}, {900 * ms, free(900), true, true},
			{200 * ms, free(900), false, true}, {999 * ms, free(900), false, true}, {ms, free(900), false, false},
		},
	} {
		j := judge{limits: limits}
		now := time.Unix(1000, 0)
		for i, x := range steps {
			now = now.Add(x.after)
			if got := j.step(now, x.s, x.stalled); got != x.want {
				t.Errorf("%s: step %d: %t, want %t", name, i, got, x.want)
			}
		}
	}
}

// On a large host a small part is plenty.
func TestLimitInBytes(t *testing.T) {
	j := judge{limits: Limits{Enter: 10, EnterMost: 50, Leave: 2}}
	if j.step(time.Now(), free(50), false) || !j.step(time.Now(), free(49), false) {
		t.Error("the limit in bytes does not count")
	}
}

// script is a source that plays samples; the last one stays.
type script struct {
	samples []Sample
	errs    map[int]error // by sample
	stalls  map[int]bool
	n       int
	closed  bool
}

func (s *script) Wait(d time.Duration) bool {
	time.Sleep(d)
	s.n++
	return s.stalls[s.n]
}

func (s *script) Read(to *Sample) error {
	*to = s.samples[min(s.n, len(s.samples)-1)]
	return s.errs[s.n]
}

func (s *script) Close() error { s.closed = true; return nil }

func TestWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &script{
			samples: []Sample{free(900), free(50), free(900)}, // short in the second
			stalls:  map[int]bool{40: true},
			errs:    map[int]error{80: errors.New("cannot be read")},
		}
		w, err := Watch(src, limits)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, x := range []struct {
			at    int // sample
			short bool
		}{{0, false}, {1, true}, {11, true}, {12, false}, {39, false}, {40, true}, {51, false}, {80, true}, {91, false}} {
			time.Sleep(time.Duration(x.at-at) * interval)
			synctest.Wait()
			at = x.at
			if got := w.Short(); got != x.short {
				t.Errorf("after sample %d: %t", x.at, got)
			}
		}
		if err := w.Stop(); err != nil || !src.closed {
			t.Errorf("stop: %v, closed: %t", err, src.closed)
		}
		if st := w.Stats(); st != (Stats{Short: false, Entered: 3, Failed: 1}) {
			t.Errorf("%+v", st)
		}
	})
}

func TestWatchNeedsASource(t *testing.T) {
	bad := errors.New("bad")
	if _, err := Watch(&script{samples: []Sample{{}}, errs: map[int]error{0: bad}}, limits); !errors.Is(err, bad) {
		t.Error(err)
	}
}

const meminfo = `MemTotal:         172032 kB
MemFree:            4096 kB
MemAvailable:     100000 kB
Dirty:              3000 kB
Writeback:         20000 kB
WritebackTmp:          9 kB
HugePages_Total:       0
`

// proc makes a /proc with a meminfo.
func proc(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "meminfo"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestWithoutPSI(t *testing.T) {
	p, err := openProc(proc(t, meminfo))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	start := time.Now()
	if p.Wait(20*time.Millisecond) || time.Since(start) < 20*time.Millisecond {
		t.Error("without PSI Wait must sleep, and never tell of a stall")
	}
	var s Sample
	if err := p.Read(&s); err != nil || s != (Sample{Total: 172032 << 10, Available: 100000 << 10, Unclean: 23000 << 10, Unused: 4096 << 10}) {
		t.Errorf("%+v, %v", s, err)
	}
}

// A file that is not what it seems is as good as none.
func TestDamagedPSI(t *testing.T) {
	dir := proc(t, meminfo)
	if err := os.MkdirAll(filepath.Join(dir, "pressure", "memory"), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := openProc(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.psi >= 0 || p.Wait(time.Millisecond) {
		t.Errorf("a directory passes for PSI")
	}
}

func TestDamagedMeminfo(t *testing.T) {
	for _, text := range []string{
		"", "MemTotal: 1 kB\n", "MemTotal: 0 kB\nMemAvailable: 1 kB\nDirty: 1 kB\nWriteback: 1 kB\n",
		"MemTotal: 1 kB\nMemAvailable: -1 kB\nDirty: 1 kB\nWriteback: 1 kB\n",
		"MemTotal: 1 kB\nMemAvailable: 1\nDirty: 1 kB\nWriteback: 1 kB\n",
		"MemTotal: 1 kB\nMemAvailable: kB\nDirty: 1 kB\nWriteback: 1 kB\n",
		"MemTotal: 99999999999999999999999999 kB\nMemAvailable: 1 kB\nDirty: 1 kB\nWriteback: 1 kB\n",
		meminfo + meminfo,
	} {
		var s Sample
		if err := s.parse([]byte(text)); err == nil {
			t.Errorf("%q was understood: %+v", text, s)
		}
	}
	if _, err := openProc(t.TempDir()); err == nil {
		t.Error("no meminfo, no error")
	}
}

// Before Linux 5.8 there was a line of its own for what waits for a COMMIT.
func TestUnstablePages(t *testing.T) {
	var s Sample
	if err := s.parse([]byte(meminfo + "NFS_Unstable: 1 kB\n")); err != nil || s.Unclean != 23001<<10 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestThisHost(t *testing.T) {
	w, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * interval)
	if st := w.Stats(); st.Failed > 0 {
		t.Errorf("%+v", st)
	}
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
}

// A sample of the real thing costs no allocation.
func TestNoAllocation(t *testing.T) {
	p, err := openProc("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w := &Watcher{src: p, judge: judge{limits: DefaultLimits()}}
	if n := testing.AllocsPerRun(100, func() { w.look(p.Wait(0)) }); n != 0 {
		t.Errorf("%v allocations per sample", n)
	}
}

func BenchmarkSample(b *testing.B) {
	p, err := openProc("/proc")
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	w := &Watcher{src: p, judge: judge{limits: DefaultLimits()}}
	b.ReportAllocs()
	for b.Loop() {
		w.look(false)
	}
}

// Help is called when nothing was left for two seconds, whatever may be available, and
// again for as long as that lasts.
func TestWhenExhausted(t *testing.T) {
	w := &Watcher{judge: judge{limits: DefaultLimits()}}
	calls := 0
	w.WhenExhausted(func() { calls++ })
	at := time.Now()
	for i, x := range []struct {
		after  time.Duration
		unused int64
		want   int
	}{
		{0, 149, 0}, {1900 * time.Millisecond, 149, 0}, {100 * time.Millisecond, 149, 1},
		{time.Second, 0, 1}, {time.Second, 0, 2},
		{time.Second, 150, 2}, {time.Second, 149, 2}, {time.Second, 149, 2}, {time.Second, 149, 3},
	} {
		at = at.Add(x.after)
		w.sample = Sample{Total: 10000, Available: 9000, Unused: x.unused, Reserve: 100}
		w.callHelp(at)
		if calls != x.want {
			t.Errorf("step %d: called %d times, want %d", i, calls, x.want)
		}
	}
}

func TestMinFree(t *testing.T) {
	dir := proc(t, meminfo)
	if n := minFree(dir); n != 0 {
		t.Errorf("nothing is %d", n)
	}
	if err := os.MkdirAll(filepath.Join(dir, "sys", "vm"), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int64{"1516\n": 1516 << 10, "much\n": 0, "": 0} {
		if err := os.WriteFile(filepath.Join(dir, "sys", "vm", "min_free_kbytes"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := minFree(dir); n != want {
			t.Errorf("%q is %d, want %d", text, n, want)
		}
	}
}
