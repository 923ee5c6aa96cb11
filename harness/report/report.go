package report

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"strings"

	"loopnfs/harness"
)

//go:embed page.html style.css
var files embed.FS

// MaxRuns is how many results a page has room for.
const MaxRuns = 2000

// Write writes a page on results, which may hold several runs of the same drill.
// It fails if there are more than MaxRuns, or if w does.
func Write(w io.Writer, results []harness.Result) error {
	if len(results) > MaxRuns {
		return fmt.Errorf("%d results are too many for one page, which holds %d: make several", len(results), MaxRuns)
	}
	// Not at the start of the process: most commands make no pages.
	t, err := template.ParseFS(files, "page.html", "style.css")
	if err != nil {
		return err
	}
	return t.ExecuteTemplate(w, "page.html", newPage(results))
}

// page is what the template shows.
type page struct {
	Summary string
	Example *ringDrawing
	Scores  []score
	Tiers   []tier
	Words   []term
}

// tier is the table and the runs of one tier.
type tier struct {
	ID, Name, About string
	Table           *table
	Drills          []drill
}

// drill is the runs of one drill, in the order of the columns.
type drill struct {
	Name  string
	Steps []string // of its loop
	Runs  []*run
}

func newPage(results []harness.Result) *page {
	runs := newRuns(results)
	p := &page{Summary: summary(runs), Example: drawRing(exampleRing), Scores: scores(runs), Words: terms}
	for i, name := range tierNames(runs) {
		t := newTier(name, runs)
		t.ID = fmt.Sprintf("tier-%d", i+1)
		p.Tiers = append(p.Tiers, t)
	}
	return p
}

// tierNames returns the tiers of the runs, clusters and stock kernels first.
func tierNames(runs []*run) []string {
	order := ordered([]string{string(harness.TierCluster), string(harness.TierVM), string(harness.TierHost)})
	return order.of(runs, func(r *run) string { return string(r.Tier) })
}

func newTier(name string, all []*run) tier {
	var runs []*run
	for _, r := range all {
		if string(r.Tier) == name {
			runs = append(runs, r)
		}
	}
	about, ok := tierWords[harness.Tier(name)]
	if !ok {
		about = tierText{Name: "Tier " + name}
	}
	var order ordered
	steps := map[string][]string{}
	for _, l := range loopsOf(name) {
		order = append(order, l.drill)
		steps[l.drill] = strings.Split(l.text, " -> ")
	}
	t := tier{Name: about.Name, About: about.Text, Table: newTable(runs, order)}
	for _, row := range t.Table.Rows {
		d := drill{Name: row.Drill, Steps: steps[row.Drill]}
		for _, c := range row.Cells {
			d.Runs = append(d.Runs, c.runs...)
		}
		foldRepetitions(d.Runs)
		t.Drills = append(t.Drills, d)
	}
	return t
}

// foldRepetitions numbers the runs of the same thing, and folds those that only
// confirm one above them.
func foldRepetitions(runs []*run) {
	type kind struct {
		cell    cellKey
		outcome harness.Outcome
	}
	total, nth, seen := map[cellKey]int{}, map[cellKey]int{}, map[kind]bool{}
	for _, r := range runs {
		total[r.cell()]++
	}
	for _, r := range runs {
		c := r.cell()
		k := kind{c, r.Outcome}
		if nth[c]++; total[c] > 1 {
			r.Nth = fmt.Sprintf("run %d of %d", nth[c], total[c])
		}
		r.Open = !seen[k] || !r.AsDocumented()
		seen[k] = true
	}
}

// summary says in a sentence what the page is about.
func summary(runs []*run) string {
	count := func(by func(*run) string) int { return len(ordered(nil).of(runs, by)) }
	s := fmt.Sprintf("%s of %s", plural(len(runs), "run"), plural(count(func(r *run) string { return r.Drill }), "drill"))
	s += fmt.Sprintf(", against %s", plural(count(func(r *run) string { return r.Server }), "server"))
	kernels := count(func(r *run) string { return r.Kernel })
	for _, r := range runs {
		if r.Kernel == "" {
			return s
		}
	}
	return s + fmt.Sprintf(", on %s", plural(kernels, "stock kernel"))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// score is how one server did, with every mechanism on.
type score struct {
	Server string
	Text   string
	Shares []share
}

// share is a part of a score's bar.
type share struct {
	Class string
	Count int
}

// scores counts, for each server, how its runs on stock kernels ended.
func scores(runs []*run) []score {
	var counted []*run
	for _, r := range runs {
		if r.Without == "" && r.Tier == harness.TierVM {
			counted = append(counted, r)
		}
	}
	var all []score
	for _, server := range ordered(harness.Servers).of(counted, func(r *run) string { return r.Server }) {
		all = append(all, newScore(server, counted))
	}
	return all
}

func newScore(server string, runs []*run) score {
	counts, total := map[string]int{}, 0
	for _, r := range runs {
		if r.Server == server {
			counts[r.Class()]++
			total++
		}
	}
	s := score{Server: server, Text: fmt.Sprintf("%d of %d survived", counts["survived"], total)}
	for _, o := range outcomes {
		n := counts[string(o)]
		if n == 0 {
			continue
		}
		s.Shares = append(s.Shares, share{string(o), n})
		if o != harness.Survived {
			s.Text += fmt.Sprintf(", %d %s", n, o)
		}
	}
	return s
}
