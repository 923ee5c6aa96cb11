package nfsclient

import (
	"slices"
	"strings"
	"testing"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// releaseBed is a file with one page in a state that the server keeps it in.
type releaseBed struct {
	*bed
	f     *fake
	node  vfs.NodeID
	ino   *inode
	folio *alloc.Folio
}

// newReleaseBed leaves the page of a file in state s: until let is called the
// server answers neither WRITE nor COMMIT.
func newReleaseBed(t *testing.T, s pagecache.State, policy ReleasePolicy) *releaseBed {
	f, b := fakeBed(t, func(c *Config) { c.Release = policy })
	r := &releaseBed{bed: b, f: f, node: b.create("f")}
	r.ino, _ = b.c.tab.get(r.node)
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcCommit || c.proc == nfs3.ProcWrite && s != pagecache.Unstable {
				return ignore
			}
			return serve
		}
	})
	b.write(r.node, 0, []byte("data"))
	if s != pagecache.Dirty {
		_, err := b.c.startWrites(gfp.Scope{}, r.ino, 1<<62, 100, nil)
		must(t, err)
	}
	r.folio = r.ino.m.Get(0)
	eventually(t, "the page is in its state", func() bool { return r.ino.m.State(r.folio) == s })
	t.Cleanup(func() { r.let(); b.mem.arena.Put(r.folio) })
	return r
}

// let has the server answer again; what it ignored is sent again.
func (r *releaseBed) let() {
	r.f.set(func() { r.f.before = nil })
	r.f.cutAll()
}

func (r *releaseBed) release(sc gfp.Scope, mask gfp.Flags) pagecache.Verdict {
	return releaseSide{r.c}.ReleaseFolio(r.ino.m, r.folio, sc, mask)
}

func TestRelease2026NeverWaits(t *testing.T) {
	want := map[pagecache.State]pagecache.Verdict{
		pagecache.Dirty: pagecache.Started, pagecache.Writeback: pagecache.Busy, pagecache.Unstable: pagecache.Started,
	}
	for state, verdict := range want {
		r := newReleaseBed(t, state, nil)
		// Every slot is taken: whoever needed one would wait.
		var taken []*slot
		for s := r.c.t.tryAcquire(gfp.For(nil).Memalloc()); s != nil; s = r.c.t.tryAcquire(gfp.For(nil).Memalloc()) {
			taken = append(taken, s)
		}
		start := time.Now()
		for range 1000 {
			if v := r.release(gfp.For(nil), gfp.Kernel); v != verdict && !(state == pagecache.Dirty && v == pagecache.Busy) {
				t.Fatalf("state %d: verdict %d, want %d", state, v, verdict)
			}
		}
		if d := time.Since(start); d > time.Second {
			t.Fatalf("state %d: 1000 answers took %v", state, d)
		}
		if n := testing.AllocsPerRun(100, func() { r.release(gfp.For(nil), gfp.Kernel) }); n > 0 {
			t.Fatalf("state %d: %v allocations", state, n)
		}
		for _, s := range taken {
			r.c.t.home(s) <- s
		}
		r.let()
		eventually(t, "what was started ends", func() bool { return r.release(gfp.For(nil), gfp.Kernel) == pagecache.Freed })
	}
}

func TestRelease2023Blocks(t *testing.T) {
	for _, state := range []pagecache.State{pagecache.Dirty, pagecache.Writeback, pagecache.Unstable} {
		r := newReleaseBed(t, state, Release2023{})
		for _, mask := range []gfp.Flags{gfp.NoWait, gfp.NoIO, gfp.NoFS} {
			if v := r.release(gfp.For(nil), mask); v != pagecache.Busy {
				t.Fatalf("verdict %d with %v", v, mask)
			}
		}
		if v := r.release(gfp.For(nil).Kswapd(), gfp.Kernel); v != pagecache.Busy {
			t.Fatalf("verdict %d for kswapd", v)
		}
		task := r.mem.graph.NewTask("server")
		task.Begin("WRITE")
		answer := make(chan pagecache.Verdict, 1)
		go func() { answer <- r.release(gfp.For(task).Reclaim(), gfp.Kernel) }()
		what := "direct reclaim waits for WRITE of inode 11"
		if state == pagecache.Unstable {
			what = "direct reclaim waits for COMMIT of inode 11"
		}
		eventually(t, what, func() bool { return slices.Contains(r.mem.graph.Waits(), what) })
		// The server is stuck in allocating for just that call: a cycle.
		proc := nfs3.ProcWrite
		if state == pagecache.Unstable {
			proc = nfs3.ProcCommit
		}
		eventually(t, "the call arrives", func() bool { return r.lastCall(proc) != nil })
		call := r.lastCall(proc)
		task.Hold(waitfor.Resource{Kind: waitfor.Reply, ID: waitfor.ReplyID(call.port, call.xid)})
		if cycle := r.mem.graph.FindCycle(); cycle == nil || !slices.Contains(cycle.Edges, what) {
			t.Fatalf("no cycle in %q", r.mem.graph.Waits())
		}
		select {
		case v := <-answer:
			t.Fatalf("state %d: answered %d though the server did not", state, v)
		case <-time.After(100 * time.Millisecond):
		}
		r.let()
		if v := <-answer; v != pagecache.Freed {
			t.Fatalf("state %d: verdict %d in the end", state, v)
		}
		task.End()
		r.mem.graph.Remove(task)
	}
}

func (r *releaseBed) lastCall(proc uint32) *fakeCall {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	for i := len(r.f.calls) - 1; i >= 0; i-- {
		if r.f.calls[i].proc == proc {
			return &r.f.calls[i]
		}
	}
	return nil
}

func TestRelease2014WaitsASecond(t *testing.T) {
	r := newReleaseBed(t, pagecache.Unstable, Release2014{})
	start := time.Now()
	if v := r.release(gfp.For(nil), gfp.Kernel); v != pagecache.Busy {
		t.Fatalf("verdict %d", v)
	}
	if d := time.Since(start); d < releaseWait || d > 3*releaseWait {
		t.Fatalf("waited %v", d)
	}
	start = time.Now()
	r.release(gfp.For(nil), gfp.Kernel) // congested now
	r.release(gfp.For(nil).Kswapd(), gfp.Kernel)
	if d := time.Since(start); d > releaseWait/2 {
		t.Fatalf("waited %v though congested", d)
	}
	r.let()
	eventually(t, "the COMMIT ends", func() bool { return !r.c.congested.Load() })
	r.write(r.node, 0, []byte("more"))
	_, err := r.c.startWrites(gfp.Scope{}, r.ino, 1<<62, 100, nil)
	must(t, err)
	eventually(t, "the page is unstable", func() bool { return r.ino.m.State(r.folio) != pagecache.Writeback })
	if v := r.release(gfp.For(nil), gfp.Kernel); v != pagecache.Freed {
		t.Fatalf("verdict %d though the server answers", v)
	}
}

// Tasks say what they wait for in words that read well.
func TestWaitsAreVisible(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.Slots = 8 })
	n := b.create("f")
	b.write(n, 0, []byte("x"))
	f.set(func() { f.before = func(*fakeCall) verdict { return ignore } })
	cancel := make(chan struct{})
	var waiting int
	over := make(chan struct{}, 20)
	call := func(name string, do func(op *vfs.Op)) {
		waiting++
		task := b.mem.graph.NewTask(name)
		task.Begin("test")
		go func() {
			op := vfs.Op{Scope: gfp.For(task), Cancel: cancel}
			do(&op)
			b.mem.graph.Remove(task)
			over <- struct{}{}
		}()
	}
	see := func(want string) {
		t.Helper()
		eventually(t, want, func() bool {
			return slices.ContainsFunc(b.mem.graph.Waits(), func(s string) bool { return strings.HasPrefix(s, want) })
		})
	}
	call("a", func(op *vfs.Op) { b.c.Lookup(op, vfs.RootID, "f") })
	see("a: test waits for the reply to LOOKUP of inode 10")
	call("b", func(op *vfs.Op) { b.c.Sync(op, n) })
	see("b: test waits for write-back of inode 11")
	see("client: write-back waits for the reply to WRITE of inode 11")
	f.l.Close()
	f.cutAll()
	see("client: write-back waits for the connection to the server")
	see("a: test waits for the connection to the server")
	for range 6 {
		call("c", func(op *vfs.Op) { b.c.Lookup(op, vfs.RootID, "f") })
	}
	see("c: test waits for a free slot for a call")
	close(cancel)
	for range waiting {
		<-over
	}
	f.restart()
}

// restart listens again at the same address.
func (f *fake) restart() {
	f.t.Helper()
	l, err := listenAgain(f.addr())
	must(f.t, err)
	f.l = l
	f.set(func() { f.before = nil })
	go f.accept(l)
}
