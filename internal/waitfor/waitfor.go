package waitfor

import (
	"fmt"
	"sort"
	"sync"
)

// Kind says what sort of thing a resource is.
type Kind uint8

// The resources that tasks of loopnfs wait for.
const (
	// FreePage is a free page of an arena.
	FreePage Kind = iota + 1
	// Reply is the reply to one RPC; ID from ReplyID.
	Reply
	// Worker is a free worker of the server.
	Worker
	// InodeLock is the lock of an inode of the store; ID is the inode number.
	InodeLock
	// DirtyLimit is the number of dirty pages falling below the limit.
	DirtyLimit
	// Slot is a free slot of the client's call table.
	Slot
	// Writeback is the end of write-back of an inode's pages.
	Writeback
	// Request is a request slot of a server, or room for a request's data.
	Request
	// Stream is the end of a connection being read: what comes next on it.
	// ID is the client's TCP port. Whoever waits for a Reply that nobody
	// works on yet waits for this.
	Stream
	// Connection is the client's connection to its server being there again.
	Connection
	// Folio is a page of a file being read from the server; ID is the inode
	// number.
	Folio
	// Helper is a worker that helps another one to have its work done.
	Helper
)

// Resource is something a task can wait for, and hold. The zero value is none.
type Resource struct {
	Kind Kind
	ID   uint64
}

// ReplyID identifies the reply to one call on this host: xid is unique per
// connection, and port, the client's TCP port, tells connections apart.
func ReplyID(port uint16, xid uint32) uint64 { return uint64(port)<<32 | uint64(xid) }

const (
	maxWaits = 6
	maxHolds = 6
)

type wait struct {
	who  string // who waits, if not the task itself: "direct reclaim"
	what string // for what: "a free page", "COMMIT"
	num  uint64 // appended to what, if not 0: an inode number
	res  Resource
}

// Task is something that can wait. Its methods may be called by the one
// goroutine that works for the task at that time; a nil Task ignores them all.
type Task struct {
	id uint64 // in the order of NewTask

	mu    sync.Mutex
	name  string // who works: "server"
	op    string // on what: "WRITE"
	waits [maxWaits]wait
	nwait int
	holds [maxHolds]Resource
	nhold int
	gen   uint64 // changes whenever the task moves
}

// Begin says that the task now works on op; it drops what was held before.
func (t *Task) Begin(op string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.op, t.nwait, t.nhold = op, 0, 0
	t.gen++
	t.mu.Unlock()
}

// End says that the task is idle: it waits for nothing and holds nothing.
func (t *Task) End() { t.Begin("") }

// Wait records that who (empty: the task itself) is about to block until res
// can be had; what and num say it in words. Done takes it back.
func (t *Task) Wait(who, what string, num uint64, res Resource) {
	if t == nil {
		return
	}
	t.mu.Lock()
	if t.nwait < maxWaits {
		t.waits[t.nwait] = wait{who, what, num, res}
	}
	t.nwait++
	t.gen++
	t.mu.Unlock()
}

// Done takes back the last Wait.
func (t *Task) Done() {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.nwait--
	t.gen++
	t.mu.Unlock()
}

// Hold records that the task holds res: whoever waits for res waits for t.
func (t *Task) Hold(res Resource) {
	if t == nil {
		return
	}
	t.mu.Lock()
	if t.nhold < maxHolds {
		t.holds[t.nhold] = res
		t.nhold++
	}
	t.mu.Unlock()
}

// Release takes back one Hold of res.
func (t *Task) Release(res Resource) {
	if t == nil {
		return
	}
	t.mu.Lock()
	for i := t.nhold - 1; i >= 0; i-- {
		if t.holds[i] == res {
			t.nhold--
			t.holds[i] = t.holds[t.nhold]
			break
		}
	}
	t.mu.Unlock()
}

// Graph is the set of tasks of a process.
type Graph struct {
	mu    sync.Mutex
	tasks map[*Task]struct{}
	made  uint64
}

// New returns an empty graph.
func New() *Graph { return &Graph{tasks: map[*Task]struct{}{}} }

// NewTask adds a task called name ("server", "client", "kswapd"). On a nil
// graph it returns nil, which is a valid task.
func (g *Graph) NewTask(name string) *Task {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.made++
	t := &Task{id: g.made, name: name}
	g.tasks[t] = struct{}{}
	return t
}

// Remove takes t out of the graph.
func (g *Graph) Remove(t *Task) {
	if g == nil || t == nil {
		return
	}
	g.mu.Lock()
	delete(g.tasks, t)
	g.mu.Unlock()
}

// snapshot is a task as it was at one moment.
type snapshot struct {
	task  *Task
	title string
	op    string
	waits []wait
	holds []Resource
	gen   uint64
}

func (t *Task) snapshot() snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := snapshot{task: t, op: t.op, gen: t.gen, title: t.name}
	if t.op != "" {
		s.title = t.name + ": " + t.op
	}
	s.waits = append(s.waits, t.waits[:min(t.nwait, maxWaits)]...)
	s.holds = append(s.holds, t.holds[:t.nhold]...)
	return s
}

func (s *snapshot) sentence(i int) string {
	w := s.waits[i]
	who := w.who
	if who == "" {
		who = s.title
	}
	if w.num != 0 {
		return fmt.Sprintf("%s waits for %s %d", who, w.what, w.num)
	}
	return fmt.Sprintf("%s waits for %s", who, w.what)
}

// snapshots returns every task that waits or holds something.
func (g *Graph) snapshots() []snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []snapshot
	for t := range g.tasks {
		if s := t.snapshot(); len(s.waits) > 0 || len(s.holds) > 0 {
			all = append(all, s)
		}
	}
	return all
}

// Waits returns one sentence per wait, in no order.
func (g *Graph) Waits() []string {
	var lines []string
	for _, s := range g.snapshots() {
		for i := range s.waits {
			lines = append(lines, s.sentence(i))
		}
	}
	return lines
}

// Summary returns a sentence for each kind of wait, and for each kind of task
// that others may wait for although it waits for nothing, with their number.
func (g *Graph) Summary() []string {
	count := map[string]int{}
	for _, s := range g.snapshots() {
		for i := range s.waits {
			count[s.sentence(i)]++
		}
		if len(s.waits) == 0 {
			count[s.title+" is at work"]++
		}
	}
	var lines []string
	for line, n := range count {
		if n > 1 {
			line = fmt.Sprintf("%s (%d times)", line, n)
		}
		lines = append(lines, line)
	}
	sort.Strings(lines)
	return lines
}
