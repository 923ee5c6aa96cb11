package report

import (
	"cmp"
	"fmt"
	"slices"

	"loopnfs/harness"
)

// table has a row for each drill and a column for each server and kernel.
type table struct {
	Servers []heading
	Columns []column
	Rows    []row
}

// Dense reports whether there are too many columns for a page's usual width.
func (t *table) Dense() bool { return len(t.Columns) > 7 }

// heading stands above the columns of one server.
type heading struct {
	Server string
	Span   int
}

// column is a server on a kernel, with everything on, or with something off.
type column struct {
	server, kernel string
	off            bool
	First          bool // of its server
}

// Label says what sets the column apart from others of its server.
func (c column) Label() string {
	switch {
	case c.kernel == "" && c.off:
		return "one mechanism off"
	case c.kernel == "":
		return "everything on"
	case c.off:
		return c.kernel + ", mechanism off"
	}
	return c.kernel
}

type row struct {
	Drill string
	Cells []cell
}

// cell is what became of a drill on one column.
type cell struct {
	Entries []entry
	First   bool
	runs    []*run
}

// entry is the runs of a cell that ended alike.
type entry struct {
	Class      string
	Count      string // of how many; empty if there was but one run
	Run        *run   // the first of them
	Unexpected bool
}

// cellKey is what runs of the same thing have in common.
type cellKey struct {
	drill, server, kernel, without string
	tier                           harness.Tier
}

func (r *run) cell() cellKey { return cellKey{r.Drill, r.Server, r.Kernel, r.Without, r.Tier} }

func (r *run) column() column {
	return column{server: r.Server, kernel: r.Kernel, off: r.Without != ""}
}

func newTable(runs []*run, drills ordered) *table {
	t := &table{Columns: columns(runs)}
	for i := range t.Columns {
		c := &t.Columns[i]
		if c.First = i == 0 || t.Columns[i-1].server != c.server; c.First {
			t.Servers = append(t.Servers, heading{Server: c.server})
		}
		t.Servers[len(t.Servers)-1].Span++
	}
	for _, d := range drills.of(runs, func(r *run) string { return r.Drill }) {
		t.Rows = append(t.Rows, newRow(d, runs, t.Columns))
	}
	return t
}

func columns(runs []*run) []column {
	servers := ordered(ordered(harness.Servers).of(runs, func(r *run) string { return r.Server }))
	var all []column
	for _, r := range runs {
		if c := r.column(); !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b column) int {
		return cmp.Or(
			cmp.Compare(servers.rank(a.server), servers.rank(b.server)),
			compareBools(a.off, b.off),
			compareVersions(a.kernel, b.kernel), cmp.Compare(a.kernel, b.kernel))
	})
	return all
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func newRow(drill string, runs []*run, columns []column) row {
	w := row{Drill: drill}
	for _, col := range columns {
		c := cell{First: col.First}
		col.First = false
		for _, r := range runs {
			if r.Drill == drill && r.column() == col {
				c.runs = append(c.runs, r)
			}
		}
		c.Entries = entries(c.runs)
		w.Cells = append(w.Cells, c)
	}
	return w
}

// entries counts the runs of a cell: those without the same mechanism are one
// population, in which an outcome has its share.
func entries(runs []*run) []entry {
	total := map[string]int{}
	for _, r := range runs {
		total[r.Without]++
	}
	type kind struct {
		without string
		outcome harness.Outcome
	}
	counts := map[kind]int{}
	var all []entry
	for _, r := range runs {
		k := kind{r.Without, r.Outcome}
		if counts[k]++; counts[k] == 1 {
			all = append(all, entry{Class: r.Class(), Run: r})
		}
	}
	for i := range all {
		e := &all[i]
		k := kind{e.Run.Without, e.Run.Outcome}
		if total[k.without] > 1 {
			e.Count = fmt.Sprintf("%d/%d", counts[k], total[k.without])
		}
		e.Unexpected = slices.ContainsFunc(runs, func(r *run) bool {
			return r.Without == k.without && r.Outcome == k.outcome && !r.AsDocumented()
		})
	}
	slices.SortStableFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Run.Without, b.Run.Without), cmp.Compare(a.Run.badness(), b.Run.badness()))
	})
	return all
}
