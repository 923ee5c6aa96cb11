package waitfor

import (
	"slices"
	"testing"
)

// The loop of the release-page drill: two workers in WRITE, a COMMIT queued.
func releasePage(g *Graph) (write1, write2, commit *Task) {
	pool := Resource{Worker, 1}
	reply := Resource{Reply, ReplyID(700, 9)}
	write1, write2, commit = g.NewTask("server"), g.NewTask("server"), g.NewTask("server")
	for _, w := range []*Task{write1, write2} {
		w.Begin("WRITE")
		w.Hold(pool)
		w.Wait("", "a free page", 0, Resource{FreePage, 1})
		w.Wait("direct reclaim", "COMMIT of inode", 12, reply)
	}
	commit.Begin("COMMIT")
	commit.Hold(reply)
	commit.Wait("", "a server worker", 0, pool)
	return
}

func TestCycleInWords(t *testing.T) {
	g := New()
	releasePage(g)
	c := g.FindCycle()
	if c == nil {
		t.Fatal("no cycle found")
	}
	want := []string{
		"server: WRITE waits for a free page",
		"direct reclaim waits for COMMIT of inode 12",
		"server: COMMIT waits for a server worker",
	}
	if !slices.Equal(c.Edges, want) {
		t.Errorf("got %q, want %q", c.Edges, want)
	}
}

func TestOneFreeHolderBreaksTheCycle(t *testing.T) {
	g := New()
	w1, _, _ := releasePage(g)
	w1.Done()
	w1.Done()
	if c := g.FindCycle(); c != nil {
		t.Errorf("a worker is running, yet a cycle was found: %q", c.Edges)
	}
}

func TestSameSeesMovement(t *testing.T) {
	g := New()
	w1, w2, _ := releasePage(g)
	a := g.FindCycle()
	if b := g.FindCycle(); !a.Same(b) {
		t.Error("nothing moved, yet the cycles differ")
	}
	for _, w := range []*Task{w1, w2} {
		w.Done()
		w.Wait("direct reclaim", "COMMIT of inode", 12, Resource{Reply, ReplyID(700, 9)})
	}
	if b := g.FindCycle(); a.Same(b) {
		t.Error("the tasks moved, yet the cycle counts as the same")
	}
}

func TestSelfCycle(t *testing.T) {
	g := New()
	task := g.NewTask("server")
	task.Begin("CREATE")
	lock := Resource{InodeLock, 7}
	task.Hold(lock)
	task.Wait("", "a free page", 0, Resource{FreePage, 1})
	task.Wait("direct reclaim", "the lock of inode", 7, lock)
	c := g.FindCycle()
	if c == nil || len(c.Edges) != 2 {
		t.Fatalf("want a cycle of two edges, got %v", c)
	}
}

func TestEveryKindOfCycleIsFound(t *testing.T) {
	g := New()
	releasePage(g)
	self := g.NewTask("server")
	self.Begin("CREATE")
	lock := Resource{InodeLock, 7}
	self.Hold(lock)
	self.Wait("direct reclaim", "the lock of inode", 7, lock)
	if all := g.FindCycles(); len(all) != 2 || len(all[0].Edges) != 1 || len(all[1].Edges) != 3 {
		t.Errorf("want the short one, then the long one; got %d", len(all))
	}
}

func TestACallThatIsNotReadWaitsForWhatIsReadBeforeIt(t *testing.T) {
	g := New()
	reader, worker := g.NewTask("server"), g.NewTask("server")
	reader.Begin("WRITE")
	reader.Hold(Resource{Stream, 700})
	reader.Wait("", "room for its data", 0, Resource{Request, 1})
	worker.Begin("WRITE")
	worker.Hold(Resource{Request, 1})
	worker.Wait("direct reclaim", "COMMIT of inode", 12, Resource{Reply, ReplyID(700, 9)})
	if c := g.FindCycle(); c == nil || len(c.Edges) != 2 {
		t.Errorf("want a cycle of two, got %v", c)
	}
}

func TestWhoNeedsAPageWaitsForWhoReclaims(t *testing.T) {
	g := New()
	reader, worker := g.NewTask("server"), g.NewTask("server")
	page := Resource{Kind: FreePage}
	reader.Begin("WRITE")
	reader.Hold(Resource{Stream, 700})
	reader.Wait("", "a free page", 0, page)
	worker.Begin("WRITE")
	worker.Wait("", "a free page", 0, page)
	if c := g.FindCycle(); c != nil {
		t.Errorf("two that need memory are no circle: %q", c.Edges)
	}
	worker.Wait("direct reclaim", "COMMIT of inode", 12, Resource{Reply, ReplyID(700, 9)})
	if c := g.FindCycle(); c == nil || len(c.Edges) != 3 {
		t.Errorf("want a circle of two, got %v", c)
	}
}

func TestSummaryCounts(t *testing.T) {
	g := New()
	releasePage(g)
	idle := g.NewTask("flusher")
	idle.Begin("write-back")
	idle.Hold(Resource{DirtyLimit, 1})
	want := []string{
		"direct reclaim waits for COMMIT of inode 12 (2 times)",
		"flusher: write-back is at work",
		"server: COMMIT waits for a server worker",
		"server: WRITE waits for a free page (2 times)",
	}
	if got := g.Summary(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestNilTaskAndNoAllocation(t *testing.T) {
	var none *Task
	none.Begin("x")
	none.Wait("", "y", 0, Resource{})
	none.Done()
	task := New().NewTask("server")
	n := testing.AllocsPerRun(100, func() {
		task.Begin("READ")
		task.Hold(Resource{Worker, 1})
		task.Wait("", "a free page", 0, Resource{FreePage, 1})
		task.Done()
		task.End()
	})
	if n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}
