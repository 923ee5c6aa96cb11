package waitfor

import (
	"slices"
	"sort"
	"strings"
)

// Cycle is a set of tasks that wait for each other in a ring.
type Cycle struct {
	// Edges says it in words, one sentence per wait, in the order in which
	// each waits for the next; the last waits for the first.
	Edges []string
	moves []move
}

// move is a position in a task's life; if it has not changed, the task has not
// moved.
type move struct {
	task *Task
	gen  uint64
}

// Same reports whether c and d are the same tasks and none of them has moved
// between the two: then the cycle is a deadlock, not a coincidence.
func (c *Cycle) Same(d *Cycle) bool {
	if c == nil || d == nil || len(c.moves) != len(d.moves) {
		return false
	}
	for i := range c.moves {
		if c.moves[i] != d.moves[i] {
			return false
		}
	}
	return true
}

// FindCycle returns a shortest cycle among the tasks, or nil.
func (g *Graph) FindCycle() *Cycle {
	if all := g.FindCycles(); len(all) > 0 {
		return all[0]
	}
	return nil
}

// FindCycles returns a shortest cycle through each task that is part of one,
// those that read the same only once, the shortest first. A resource that
// several tasks hold is followed only if all of them wait.
func (g *Graph) FindCycles() []*Cycle {
	all := g.snapshots()
	// A fixed order makes the answer the same as long as nothing moves.
	sort.Slice(all, func(i, j int) bool { return all[i].task.id < all[j].task.id })
	f := finder{all: all, holders: map[Resource][]int{}}
	for i := range all {
		for _, r := range append(all[i].holds, all[i].reclaims()...) {
			f.holders[r] = append(f.holders[r], i)
		}
	}
	var found []*Cycle
	known := map[string]bool{}
	for i := range all {
		tasks := f.shortestFrom(i)
		if tasks == nil {
			continue
		}
		c := f.describe(tasks)
		if key := c.key(); !known[key] {
			known[key] = true
			found = append(found, c)
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return len(found[i].Edges) < len(found[j].Edges) })
	return found
}

// key is the same for cycles that read the same, wherever they begin.
func (c *Cycle) key() string {
	edges := slices.Clone(c.Edges)
	sort.Strings(edges)
	return strings.Join(edges, "\n")
}

type finder struct {
	all     []snapshot
	holders map[Resource][]int
}

// reclaims returns what the task was about to set free when it blocked: whoever
// waits for something else while it waits for a free page is reclaiming, and
// others who need a page wait for it to get on.
func (s *snapshot) reclaims() []Resource {
	for i, w := range s.waits {
		if w.res.Kind == FreePage && i < len(s.waits)-1 {
			return []Resource{w.res}
		}
	}
	return nil
}

// next returns the tasks that task i waits for through its innermost wait.
func (f *finder) next(i int) []int {
	w := f.all[i].waits
	if len(w) == 0 {
		return nil
	}
	res := w[len(w)-1].res
	hs := f.holders[res]
	if len(hs) == 0 && res.Kind == Reply {
		hs = f.holders[Resource{Stream, res.ID >> 32}]
	}
	for _, h := range hs {
		if len(f.all[h].waits) == 0 {
			return nil
		}
	}
	return hs
}

// shortestFrom returns the tasks of a shortest cycle through start.
func (f *finder) shortestFrom(start int) []int {
	parent := map[int]int{}
	queue := []int{start}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		for _, h := range f.next(i) {
			if h == start {
				return path(parent, start, i)
			}
			if _, seen := parent[h]; !seen {
				parent[h] = i
				queue = append(queue, h)
			}
		}
	}
	return nil
}

func path(parent map[int]int, start, end int) []int {
	var p []int
	for i := end; i != start; i = parent[i] {
		p = append([]int{i}, p...)
	}
	return append([]int{start}, p...)
}

func (f *finder) describe(tasks []int) *Cycle {
	c := &Cycle{}
	for _, i := range tasks {
		s := &f.all[i]
		c.moves = append(c.moves, move{s.task, s.gen})
		for w := range s.waits {
			c.Edges = append(c.Edges, s.sentence(w))
		}
	}
	return c
}
