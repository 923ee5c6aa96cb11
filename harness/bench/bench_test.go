package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
)

func TestHistogram(t *testing.T) {
	var h, half histogram
	rnd, all := rand.New(rand.NewPCG(1, 1)), []int64{}
	for i := range 20_000 {
		v := 1 + rnd.Int64N(1<<(1+i%40))
		all = append(all, v)
		if i%2 == 0 {
			h.note(v)
		} else {
			half.note(v)
		}
	}
	h.add(&half)
	slices.Sort(all)
	for _, q := range []float64{0, .1, .5, .99, .999} {
		want := float64(all[int(q*float64(len(all)))])
		if got := float64(h.quantile(q)); got < want || got > want*1.13+1 {
			t.Errorf("quantile %v is %v, want %v or a little more", q, got, want)
		}
	}
	if got := h.quantile(1); int64(got) != all[len(all)-1] {
		t.Errorf("the most is %v, want %v", got, all[len(all)-1])
	}
}

// nullServer answers NULL calls on one end of a socket pair.
func nullServer(t *testing.T) *conn {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		answerNulls(pair[1], make([]byte, ioSize), 0)
	}()
	c := &conn{fd: pair[0], in: make([]byte, inBytes)}
	t.Cleanup(func() {
		c.close()
		<-done
		unix.Close(pair[1])
	})
	return c
}

func TestLoad(t *testing.T) {
	c := nullServer(t)
	rec := record(nfs3.ProcNull, nothing{}, nil)
	for _, window := range []int{1, 32} {
		got, err := c.run(&load{window: window, noStatus: true, next: func(n uint64) (call, bool) { return call{head: rec}, n < 1000 }})
		if err != nil || got.calls != 1000 || got.latency.total != 1000 {
			t.Errorf("window %d: %d calls, %d latencies, %v; want 1000", window, got.calls, got.latency.total, err)
		}
	}
	got, err := c.run(&load{window: 8, noStatus: true, until: time.Now().Add(50 * time.Millisecond), next: always(rec)})
	if err != nil || got.calls == 0 || got.elapsed < 40*time.Millisecond {
		t.Errorf("for 50 ms: %d calls in %v, %v", got.calls, got.elapsed, err)
	}
}

// A reply with an error status is an error of the load.
func TestLoadSeesErrors(t *testing.T) {
	c := nullServer(t)
	rec := record(nfs3.ProcNull, nothing{}, nil)
	if got, err := c.run(&load{window: 4, next: func(n uint64) (call, bool) { return call{head: rec}, n < 10 }}); err == nil {
		t.Errorf("%d replies without a status are no error", got.calls)
	}
}

func reportFor(t *testing.T, mounts bool) (*report, string) {
	dir := t.TempDir()
	b := &bench{mounts: mounts, json: filepath.Join(dir, "json"), picture: filepath.Join(dir, "svg"), commit: "c<0>"}
	r := newReport(b, []*server{{name: "a"}, {name: "b & c"}})
	r.out = io.Discard
	r.begin(&serverRows[0], limits{Stream: 1})
	r.add(r.servers[0], &result{Value: 12345, MicrosCPU: 1.5}, 1<<20, nil)
	r.add(r.servers[1], nil, 0, errors.New("it <failed>"))
	r.end()
	if err := r.finish(); err != nil {
		t.Fatal(err)
	}
	return r, dir
}

func TestReport(t *testing.T) {
	r, dir := reportFor(t, true)
	if got := r.lines[0].cell() + "|" + r.lines[1].cell(); got != "12k [1.5]|failed" {
		t.Errorf("cells are %q", got)
	}
	text, err := os.ReadFile(filepath.Join(dir, "json"))
	if err != nil || strings.Count(string(text), "\n") != 2 || !strings.Contains(string(text), `"peak_rss_mib":1`) {
		t.Errorf("JSON: %s, %v", text, err)
	}
	f, err := os.Open(filepath.Join(dir, "svg"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	words := ""
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := token.(xml.CharData); ok {
			words += string(c) + "|"
		}
	}
	for _, want := range []string{"FUSE mounts side by side|", "b & c|", "12k MB/s|", "failed|"} {
		if !strings.Contains(words, want) {
			t.Errorf("the picture does not say %q: %s", want, words)
		}
	}
}

func TestUsage(t *testing.T) {
	used := func() time.Duration {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before, start := usageOf(os.Getpid()), used()
	for used()-start < 50*time.Millisecond {
		_, _ = os.ReadFile("/proc/self/stat")
	}
	if u := usageOf(os.Getpid()).since(before); u.cpu < 30*time.Millisecond || u.syscalls == 0 || u.peak < 1<<20 {
		t.Errorf("50 ms of work are %+v", u)
	}
}

func TestServersAndMounts(t *testing.T) {
	for _, name := range []string{"loopnfs", "gonfs", "ganesha"} {
		s, err := newServer(name, "/bin", "/data", t.TempDir())
		if err != nil || s.export == "" || s.addr == "" || len(s.argv) < 2 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	for _, name := range (&bench{mounts: true}).defaultNames() {
		s, err := newMount(name, "/bin", "/data", t.TempDir())
		if err != nil || (s.point == "") != (name == "libnfs") || (s.below != nil) != (name == "libnfs" || name == "client") {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if _, err := newMount("nothing", "/bin", "/data", t.TempDir()); err == nil {
		t.Error("a mount that there is not is no error")
	}
}

// Below the table is how long calls took, and what a server is beside the others and TCP.
func TestComparison(t *testing.T) {
	r := newReport(&bench{}, []*server{{name: "a"}, {name: "b"}, {name: "c"}})
	var out strings.Builder
	r.out = &out
	show := func(w row, values ...float64) {
		r.begin(&w, limits{Stream: 400})
		for i, v := range values {
			var err error
			if v == 0 {
				err = errors.New("no")
			}
			r.add(r.servers[i], &result{Value: v, P50: v, P99: 12 * v, P999: 120 * v}, 0, err)
		}
		r.end()
	}
	show(row{name: "more", unit: "MB/s"}, 300, 120, 0)
	show(row{name: "less", unit: "s"}, 2, 3, 1)
	if err := r.finish(); err != nil {
		t.Fatal(err)
	}
	_, below, _ := strings.Cut(out.String(), "how long")
	got := strings.Join(strings.Fields(below), " ")
	for _, want := range []string{
		"p99.9 a b c more 300 / 3600 / 36k 120 / 1440 / 14k -",
		"as fast as b c TCP limit more 2.50 - 0.75 less 1.50 0.50",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report does not say %q: %s", want, got)
		}
	}
}

// Each axis is a panel, and each point of it has its place in there.
func TestScalePicture(t *testing.T) {
	b := &bench{scale: true, picture: filepath.Join(t.TempDir(), "svg")}
	r := newReport(b, []*server{{name: "a"}, {name: "b"}})
	r.out = io.Discard
	points := 0
	for _, w := range b.rows() {
		r.begin(&w, limits{})
		r.add(r.servers[0], &result{Value: float64(w.at)}, 0, nil)
		r.add(r.servers[1], nil, 0, errors.New("no"))
		r.end()
		points++
	}
	if err := r.finish(); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(b.picture)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(svg), "<circle"); got != points {
		t.Errorf("%d points are drawn, want %d", got, points)
	}
	if got := strings.Count(string(svg), "<g "); got != len(axes) {
		t.Errorf("%d panels are drawn, want %d", got, len(axes))
	}
	if strings.Contains(string(svg), "NaN") {
		t.Error("a point has no place")
	}
}
