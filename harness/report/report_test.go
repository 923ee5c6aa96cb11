package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"loopnfs/harness"
	"loopnfs/harness/vm/job"
)

// sample holds real runs: of knfsd, loopnfs and ganesha on 6.12.43, one in which
// nobody of the server was blocked, one that broke, and two of the host tier.
func sample(t *testing.T) []harness.Result {
	t.Helper()
	f, err := os.Open("testdata/results.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	results, err := harness.ReadJSON(f)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func render(t *testing.T, results []harness.Result) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, results); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// elements are all that a page is made of.
var elements = strings.Fields(`html head meta title style body main header section h1 h2 h3 h4 p b em a small
	ul ol li dl dt dd div span pre code table caption thead tbody tr th td details summary figure figcaption
	svg g rect polygon polyline line text`)

// inspect fails if a page is not well formed, has a link that leads nowhere or out
// of it, or anything that could run. It returns the text.
func inspect(t *testing.T, page string) string {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(page))
	d.Strict, d.AutoClose, d.Entity = false, []string{"meta"}, xml.HTMLEntity
	var text strings.Builder
	var links, open []string
	ids := map[string]bool{}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			open = append(open, x.Name.Local)
			if !slices.Contains(elements, x.Name.Local) {
				t.Errorf("an element that no page has: <%s>", x.Name.Local)
			}
			for _, a := range x.Attr {
				switch name := strings.ToLower(a.Name.Local); {
				case name == "id" && ids[a.Value]:
					t.Errorf("two elements are called %s", a.Value)
				case name == "id":
					ids[a.Value] = true
				case name == "href":
					links = append(links, a.Value)
				case name == "src" || strings.HasPrefix(name, "on"):
					t.Errorf("<%s> has %s=%q", x.Name.Local, name, a.Value)
				}
			}
		case xml.EndElement:
			if n := len(open) - 1; n < 0 || open[n] != x.Name.Local {
				t.Fatalf("</%s> in %v", x.Name.Local, open)
			}
			open = open[:len(open)-1]
		case xml.CharData:
			text.Write(x)
		}
	}
	if len(open) > 0 {
		t.Errorf("not closed: %v", open)
	}
	for _, l := range links {
		if id, ok := strings.CutPrefix(l, "#"); !ok || !ids[id] {
			t.Errorf("a link to %q", l)
		}
	}
	for _, bad := range []string{"ZgotmplZ", "NaN", "Inf", "%!", "url(", "@import", "<no value>"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q in it", bad)
		}
	}
	return text.String()
}

var external = regexp.MustCompile(`(?i)(src|href|srcset|data|action)\s*=\s*["']?\s*(https?:|//)`)

func TestPageOfRealRuns(t *testing.T) {
	page := render(t, sample(t))
	text := inspect(t, page)
	if m := external.FindString(page); m != "" {
		t.Errorf("the page needs a network: %s", m)
	}
	for _, want := range []string{
		"7 runs of 3 drills, against 3 servers", "Stock Linux kernels", "loopnfs's own client",
		"0 of 1 survived, 1 hung", // knfsd
		"the server's write allocates", "as documented", "documented: survived",
		"22.0 s", "2.7 MB/s", "0.1 × 22.4 MB/s", "no progress: 18.0 s", "verified", "not checked", "NOT verified",
		"nfs_release_folio waits for the reply to COMMIT", "sleeps until the server has answered COMMIT",
		"__alloc_pages_slowpath.constprop.0", "the NFS server, killed by the OOM killer",
		"without host-guard", "without nonblocking-release", "taking memory did not end within 1m30s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

func TestPageIsTheSameEveryTime(t *testing.T) {
	results := sample(t)
	first := render(t, results)
	if second := render(t, results); first != second {
		t.Error("two pages on the same results differ")
	}
}

func TestPageOfNothing(t *testing.T) {
	if text := inspect(t, render(t, nil)); !strings.Contains(text, "There are no results.") {
		t.Error("an empty page does not say so")
	}
	inspect(t, render(t, []harness.Result{{}}))
	inspect(t, render(t, []harness.Result{{Tier: harness.TierVM, Timeline: []job.Sample{{Seconds: 1}}}}))
	inspect(t, render(t, []harness.Result{{Tier: harness.TierVM, Timeline: make([]job.Sample, 10)}}))
}

func TestTooManyRuns(t *testing.T) {
	if err := Write(io.Discard, make([]harness.Result, MaxRuns+1)); err == nil {
		t.Error("no error")
	}
}

func hostile(text string) harness.Result {
	r := harness.Result{
		Drill: text, Tier: harness.Tier(text), Server: text, Kernel: text, Without: text,
		Outcome: harness.Outcome(text), Expected: harness.Outcome(text), Error: text,
		Cycle: []string{text, text + " needs " + text + " -> " + text + " waits " + text},
		Notes: []string{text}, Killed: []string{text},
		Stacks:  []job.Stack{{PID: -1, Comm: text, Frames: []string{text, "wait_on_commit"}}},
		Seconds: math.Inf(1), Rate: math.NaN(), BaselineRate: math.MaxFloat64,
		Bytes: math.MaxInt64, MaxLatencyMs: math.MinInt64, StallMs: math.MaxInt64, OOMKills: math.MaxInt64,
	}
	for i := range 10_000 {
		n := int64(math.MaxInt64)
		if i%2 == 0 {
			n = math.MinInt64
		}
		r.Timeline = append(r.Timeline, job.Sample{
			Seconds: float64(i%7) * 1e300, FreeKB: n, DirtyKB: -n, WritebackKB: n, Bytes: n, DirectScans: -n, OOMKills: n, Throttle: n,
		})
	}
	return r
}

func TestHostileResults(t *testing.T) {
	for _, text := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`,
		`</style></svg></details><script src=https://example.org/x.js></script>`, `javascript:alert(1)`,
		`{{.Runs}} {{template "run"}}`, "\x00\x1b[31m\xff\xfe\u202egpj.exe", "<!--", "]]>", "&lt;b&gt; &amp;",
		strings.Repeat("A", 1<<20), strings.Repeat("x -> ", 1<<16), strings.Repeat("ü ", 1<<16),
	} {
		vm, list := hostile(text), make([]harness.Result, 0, 3)
		vm.Tier, vm.Outcome = harness.TierVM, harness.Hung
		page := render(t, append(list, hostile(text), vm))
		inspect(t, page)
		if len(page) > 1<<20 {
			t.Errorf("%.20q: a page of %d bytes", text, len(page))
		}
		if strings.ContainsAny(page, "\x00\x1b\u202e") {
			t.Errorf("%.20q: control characters come through", text)
		}
	}
}

func TestRepeatedRunsAreCounted(t *testing.T) {
	run := func(kernel, without string, o harness.Outcome) harness.Result {
		return harness.Result{
			Drill: "release-page", Tier: harness.TierVM, Server: "loopnfs", Kernel: kernel, Without: without,
			Outcome: o, Expected: harness.Survived, DataVerified: o == harness.Survived,
		}
	}
	s, h := harness.Survived, harness.Hung
	p := newPage([]harness.Result{
		run("6.12.43", "", s), run("6.12.43", "", h), run("6.12.43", "", s), run("6.1.192", "", s), run("6.1.192", "", s),
		run("6.1.192", "", s), run("6.12.43", "host-guard", h), run("6.12.43", "direct-io,x", h),
	})
	table := p.Tiers[0].Table
	var got []string
	for i, c := range table.Rows[0].Cells {
		for _, e := range c.Entries {
			got = append(got, fmt.Sprintf("%s: %s %s %s %v", table.Columns[i].Label(), e.Run.Outcome, e.Count, e.Run.Off(), e.Unexpected))
		}
	}
	want := []string{
		"6.1.192: survived 3/3  false",
		"6.12.43: survived 2/3  false",
		"6.12.43: hung 1/3  true",
		"6.12.43, mechanism off: hung  without direct-io, x true",
		"6.12.43, mechanism off: hung  without host-guard true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var folded, open int
	for _, r := range p.Tiers[0].Drills[0].Runs {
		if r.Open {
			open++
		} else {
			folded++
		}
	}
	if folded != 3 || open != 5 { // two of the three, one of the two
		t.Errorf("%d runs are folded, %d are not", folded, open)
	}
	if got := p.Scores[0].Text; got != "5 of 6 survived, 1 hung" {
		t.Errorf("the score is %q", got)
	}
}

func TestVersionsAreInOrder(t *testing.T) {
	want := []string{"6.1", "6.1.9", "6.1.192", "6.12.43", "6.12.117", "10.0"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareVersions)
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
