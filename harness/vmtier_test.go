package harness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"loopnfs/harness/vm"
	"loopnfs/harness/vm/job"
)

// countRuns counts runs by one of their properties.
func countRuns(runs []VMRun, by func(VMRun) string) map[string]int {
	n := map[string]int{}
	for _, r := range runs {
		n[by(r)]++
	}
	return n
}

func TestMatrix(t *testing.T) {
	peers, alone := VMDrill{Name: "peers", Peers: true}, VMDrill{Name: "alone"}
	both := []VMDrill{peers, alone}
	for _, c := range []struct {
		servers, kernels []string
		n, want          int
	}{
		{nil, nil, 1, 2},
		{nil, nil, 0, 0},
		{[]string{"loopnfs"}, []string{"6.1"}, 3, 6},
		{[]string{"knfsd"}, nil, 1, 1},
		{Servers, VMKernels, 1, len(Servers)*len(VMKernels) + len(VMKernels)},
		{Servers, nil, 2, 2 * (len(Servers) + 1)},
	} {
		runs := Matrix(both, c.servers, c.kernels, c.n)
		if len(runs) != c.want {
			t.Errorf("%v on %v, %d times: %d runs, want %d", c.servers, c.kernels, c.n, len(runs), c.want)
		}
		for _, r := range runs {
			if !r.Drill.Peers && r.Server != "loopnfs" {
				t.Errorf("%s has to face %s", r.Server, r.Drill.Name)
			}
			if len(c.kernels) == 0 && r.Kernel != WaitingKernel || len(c.servers) == 0 && r.Server != "loopnfs" {
				t.Errorf("the default is %s on %s", r.Server, r.Kernel)
			}
		}
	}
}

func TestDefaultMatrix(t *testing.T) {
	drills := 0
	for _, d := range VMDrills() {
		if !d.Full {
			drills++
		}
	}
	for n := 1; n <= 3; n++ {
		runs := DefaultMatrix(n)
		servers := countRuns(runs, func(r VMRun) string { return r.Server })
		if servers["knfsd"] != n || servers["loopnfs"] != n*(drills+3) || len(servers) != 2 {
			t.Errorf("%d times: %v", n, servers)
		}
		kernels := countRuns(runs, func(r VMRun) string { return r.Kernel })
		if kernels[WaitingKernel] != n*(drills+1) || kernels[VMKernels[0]] != 2*n || kernels[VMKernels[2]] != n {
			t.Errorf("%d times: %v", n, kernels)
		}
		if first := runs[0]; first.Server != "knfsd" || first.Drill.Name != "release-page" {
			t.Errorf("it begins with %s of %s", first.Drill.Name, first.Server)
		}
	}
}

// Everything that a drill asks for can be given, and what is checked can be.
func TestVMDrills(t *testing.T) {
	for _, d := range VMDrills() {
		l := d.Job.Load
		if d.Loop == "" || l == nil || l.Work.Jobs < 1 || l.Work.Dir != l.Baseline.Dir || l.Work.Log == l.Baseline.Log {
			t.Errorf("%s: %+v", d.Name, l)
			continue
		}
		if l.HangSeconds <= l.StallSeconds || l.LimitSeconds < l.HangSeconds {
			t.Errorf("%s: stall %d, hang %d, limit %d", d.Name, l.StallSeconds, l.HangSeconds, l.LimitSeconds)
		}
		res := Result{Server: "loopnfs", Kernel: WaitingKernel}
		g := newGuests(d, &res, VMOptions{Tools: &vm.Tools{}, Seed: 1})
		g.client.Address = "" // the wire comes with the guest
		cfg := g.config(g.client, vmMemoryMiB)
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s: %v", d.Name, err)
		}
	}
}

// The load of one run is not that of the next.
func TestGuestsDoNotShareALoad(t *testing.T) {
	drills, err := FindVM([]string{"swap"})
	if err != nil {
		t.Fatal(err)
	}
	d := drills[0]
	one := newGuests(d, &Result{Server: "loopnfs"}, VMOptions{Seed: 5, Without: []string{"scope"}})
	two := newGuests(d, &Result{Server: "knfsd"}, VMOptions{Seed: 6, Without: []string{"scope"}})
	a, b := one.client.Load, two.client.Load
	if a.Work.Seed != 5 || b.Work.Seed != 6 || a.Server.Name != "loopnfs" || b.Server.Name != "knfsd" || d.Job.Load.Server.Name != "" {
		t.Errorf("%+v, %+v", a, b)
	}
	if len(a.Server.Without) != 1 || len(b.Server.Without) != 0 {
		t.Errorf("without %v, %v", a.Server.Without, b.Server.Without)
	}
	if a.Server.Host != serverAddress || one.client.Address != clientAddress+"/24" {
		t.Errorf("the server of a remote drill is at %q", a.Server.Host)
	}
}

func TestFindVM(t *testing.T) {
	all, err := FindVM(nil)
	if err != nil || len(all) != len(VMDrills()) {
		t.Errorf("%d drills, %v", len(all), err)
	}
	two, err := FindVM([]string{"swap", "freeze"})
	if err != nil || len(two) != 2 || two[0].Name != "swap" || two[1].Name != "freeze" {
		t.Errorf("%v, %v", two, err)
	}
	if _, err := FindVM([]string{"swap", "nonexistent"}); err == nil || !strings.Contains(err.Error(), "stacked-xfs") {
		t.Errorf("the error does not say which there are: %v", err)
	}
}

func TestVMExpected(t *testing.T) {
	release, swap := &VMDrill{Name: "release-page"}, &VMDrill{Name: "swap"}
	for _, c := range []struct {
		drill          *VMDrill
		server, kernel string
		without        []string
		want           Outcome
	}{
		{release, "loopnfs", "6.12.43", nil, Survived},
		{swap, "loopnfs", "6.1.192", nil, Survived},
		{release, "loopnfs", "6.12.43", []string{"scope"}, ""},
		{release, "knfsd", "6.12.43", nil, Hung},
		{release, "ganesha", "6.12.43", []string{"scope"}, Hung},
		{release, "knfsd", "6.12.117", nil, ""},
		{release, "knfsd", "6.12.430", nil, ""},
		{release, "knfsd", "6.1.192", nil, ""},
		{swap, "knfsd", "6.12.43", nil, ""},
	} {
		if got := vmExpected(c.drill, c.server, c.kernel, c.without); got != c.want {
			t.Errorf("%s, %s on %s without %v: %q, want %q", c.drill.Name, c.server, c.kernel, c.without, got, c.want)
		}
	}
}

func TestJudge(t *testing.T) {
	const mb = 1e6
	good := job.Result{Outcome: job.Survived, Verified: true, Rate: mb, BaselineRate: mb, Stall: 1}
	for _, c := range []struct {
		name            string
		change          func(*job.Result)
		server, without string
		want            Outcome
		error           string
	}{
		{"it survives", func(*job.Result) {}, "loopnfs", "", Survived, ""},
		{"a tenth of the rate", func(r *job.Result) { r.Rate = mb / 10 }, "loopnfs", "", Survived, ""},
		{"less than a tenth", func(r *job.Result) { r.Rate = mb/10 - 1 }, "loopnfs", "", Collapsed, ""},
		{"no baseline", func(r *job.Result) { r.Rate, r.BaselineRate = 1, 0 }, "loopnfs", "", Survived, ""},
		{"the longest stall", func(r *job.Result) { r.Stall = stallSeconds }, "loopnfs", "", Survived, ""},
		{"a stall", func(r *job.Result) { r.Stall = stallSeconds + 0.01 }, "loopnfs", "", "", "stood still for 8.0 s; 8 s are allowed"},
		{"a stall of others", func(r *job.Result) { r.Stall = 12 }, "knfsd", "", Survived, ""},
		{"a stall without", func(r *job.Result) { r.Stall = 12 }, "loopnfs", "scope", Survived, ""},
		{"the hog is killed", func(r *job.Result) { r.Killed = []string{"hog", "loopnfsd"} }, "loopnfs", "", Survived, ""},
		{"the server is killed", func(r *job.Result) { r.Killed = []string{"hog", "loopnfs"} }, "loopnfs", "", "", "killed by the OOM killer"},
		{"the server without is killed", func(r *job.Result) { r.Killed = []string{"loopnfs"} }, "loopnfs", "scope", Survived, ""},
		{"it hangs", func(r *job.Result) { r.Outcome, r.Error = job.Hung, "mounting did not end" }, "knfsd", "", Hung, ""},
		{"too slow", func(r *job.Result) { r.Outcome, r.Rate = job.Slow, mb/20 }, "loopnfs", "", Collapsed, ""},
		{"not done", func(r *job.Result) { r.Outcome = job.Slow }, "loopnfs", "", "", "not finished after"},
		{"it fails", func(r *job.Result) { r.Outcome, r.Error = job.Failed, "a byte is wrong" }, "loopnfs", "", "", "a byte is wrong"},
		{"it fails and does not say why", func(r *job.Result) { r.Outcome = job.Failed }, "knfsd", "", "", "did not say"},
		{"nothing is known", func(r *job.Result) { *r = job.Result{} }, "knfsd", "", "", "did not say"},
	} {
		r := good
		c.change(&r)
		res := Result{Server: c.server, Without: c.without}
		err := judge(&res, &r, stallSeconds)
		if (err != nil) != (c.error != "") || err != nil && !strings.Contains(err.Error(), c.error) {
			t.Errorf("%s: error %v", c.name, err)
		}
		if err == nil && res.Outcome != c.want {
			t.Errorf("%s: %s, want %s", c.name, res.Outcome, c.want)
		}
		if res.DataVerified != r.Verified || res.Seconds != r.Seconds || res.StallMs != int64(1000*r.Stall) {
			t.Errorf("%s: %+v", c.name, res)
		}
	}
	res, hung := Result{Server: "knfsd"}, job.Result{Outcome: job.Hung, Error: "mounting did not end", Notes: []string{"a fact"}}
	if err := judge(&res, &hung, stallSeconds); err != nil || res.Cycle == nil || !slices.Equal(res.Notes, []string{"a fact", "mounting did not end"}) {
		t.Errorf("hung: %+v, %v", res, err)
	}
}

func TestLatencyIsNeverBelowTheStall(t *testing.T) {
	for _, r := range []job.Result{{Latency: 2, Stall: 1}, {Latency: 1, Stall: 2}} {
		r.Outcome = job.Survived
		var res Result
		if err := judge(&res, &r, stallSeconds); err != nil || res.MaxLatencyMs != 2000 {
			t.Errorf("%+v: %d ms, %v", r, res.MaxLatencyMs, err)
		}
	}
}

// A run that could not be made is a failure, whatever was expected.
func TestRunThatCannotBeMade(t *testing.T) {
	t.Setenv("LOOPNFS_CACHE", "/dev/null/cache")
	var said []string
	opt := VMOptions{
		Tools: &vm.Tools{}, Without: []string{"scope"},
		Say: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) },
	}
	drills, err := FindVM([]string{"release-page"})
	if err != nil {
		t.Fatal(err)
	}
	runs := Matrix(drills, []string{"loopnfs", "knfsd"}, nil, 1)
	results, err := RunVM(t.Context(), runs, opt)
	if err != nil || len(results) != 2 {
		t.Fatalf("%d results, %v", len(results), err)
	}
	for i, without := range []string{"scope", ""} {
		if r := results[i]; r.Outcome != Failed || r.Error == "" || r.AsDocumented() || r.Without != without {
			t.Errorf("got %+v", r)
		}
	}
	if !strings.Contains(said[0], "release-page, loopnfs on 6.12.43 without scope") || strings.Contains(said[2], "without") {
		t.Errorf("said %q", said)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if results, err := RunVM(ctx, runs, opt); !errors.Is(err, context.Canceled) || len(results) != 1 {
		t.Errorf("interrupted: %d results, %v", len(results), err)
	}
}

func TestEventsOfAGuest(t *testing.T) {
	var said []string
	res := Result{Server: "knfsd"}
	g := newGuests(VMDrills()[0], &res, VMOptions{
		Say: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) },
	})
	g.arm(func() {})
	defer g.frozen.Stop()
	g.handle(job.Event{})
	g.handle(job.Event{Say: "mounting"})
	for i := range 21 { // half a second each
		g.handle(job.Event{Sample: &job.Sample{Seconds: float64(i) / 2, Bytes: 1 << 20}})
	}
	if len(said) != 4 || len(res.Timeline) != 21 {
		t.Errorf("%d samples, said %q", len(res.Timeline), said)
	}
	stuck, end := &job.Result{Outcome: job.Hung}, &job.Result{Outcome: job.Survived}
	g.handle(job.Event{Stuck: stuck})
	if g.stuck != stuck || !g.frozen.Stop() {
		t.Error("a guest that stands still is not waited for")
	}
	g.handle(job.Event{Stuck: stuck})
	g.handle(job.Event{Sample: &job.Sample{Seconds: 12}})
	if g.frozen.Stop() {
		t.Error("a guest that goes on is ended")
	}
	g.handle(job.Event{Stuck: stuck})
	g.handle(job.Event{Result: end})
	if g.report != end || g.frozen.Stop() {
		t.Error("a guest with a result is ended")
	}
}

func TestWriteTable(t *testing.T) {
	var b strings.Builder
	err := WriteTable(&b, []Result{
		{Drill: "release-page", Server: "loopnfs", Kernel: "6.12.43", Outcome: Survived, Expected: Survived, Seconds: 12.34,
			Bytes: 3 << 20, MaxLatencyMs: 1500, DataVerified: true, Notes: []string{"a fact"}, Killed: []string{"hog", "dd"}},
		{Drill: "release-page", Server: "knfsd", Kernel: "6.12.43", Outcome: Hung, Expected: Hung, Cycle: []string{"a waits for b", "b waits for a"}},
		{Drill: "freeze", Server: "loopnfs", Without: "scope", Outcome: Failed, Error: "\nit broke\n"},
		{Drill: "swap", Server: "gonfs", Kernel: "6.1", Outcome: Survived},
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	for i, want := range []string{
		"drill on without outcome expected time acknowledged worst latency data",
		"release-page loopnfs, Linux 6.12.43 - survived survived 12.3 s 3.0 MiB 1.5 s verified",
		"release-page knfsd, Linux 6.12.43 - hung hung 0.0 s 0.0 MiB 0.0 s -",
		"freeze loopnfs scope failed - 0.0 s 0.0 MiB 0.0 s NOT verified",
		"swap gonfs, Linux 6.1 - survived - 0.0 s 0.0 MiB 0.0 s NOT verified",
	} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	const why = `
release-page on loopnfs, Linux 6.12.43:
  a fact
  the OOM killer took: hog, dd

release-page on knfsd, Linux 6.12.43 hung, because
  a waits for b
  b waits for a
  and so on, round and round.

freeze without scope: it broke
`
	if got := strings.Join(lines[5:], "\n"); got != why {
		t.Errorf("got %s", got)
	}
	b.Reset()
	if err := WriteTable(&b, nil); err != nil || strings.Count(b.String(), "\n") != 1 {
		t.Errorf("of nothing: %q, %v", b.String(), err)
	}
}
