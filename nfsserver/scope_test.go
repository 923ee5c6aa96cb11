package nfsserver

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// seen is what the file system can tell of the scope of a call.
type seen struct {
	local, memalloc, throttle bool
	mask                      gfp.Flags
}

// The scope of a call depends on who calls and what, and ends with the call.
func TestScope(t *testing.T) {
	noFS := sunrpc.StampScope(gfp.Scope{}.NoFS().Wire())
	for _, x := range []struct {
		name     string
		locality Locality
		policy   ScopePolicy
		stamp    uint32
		write    seen
		getattr  seen
	}{
		{"local", nil, nil, 0, seen{true, true, true, gfp.Kernel}, seen{true, false, false, gfp.Kernel}},
		{"local, NOFS", nil, nil, noFS, seen{true, true, true, gfp.NoFS}, seen{true, false, false, gfp.NoFS}},
		{"local, another client's stamp", nil, nil, 1, seen{true, true, true, gfp.Kernel}, seen{true, false, false, gfp.Kernel}},
		{"local, scope lost", nil, LoseScope, noFS, seen{true, true, true, gfp.Kernel}, seen{true, false, false, gfp.Kernel}},
		{"remote", NeverLocal{}, nil, 0, seen{mask: gfp.Kernel}, seen{mask: gfp.Kernel}},
		{"remote, NOFS", NeverLocal{}, nil, noFS, seen{mask: gfp.Kernel}, seen{mask: gfp.Kernel}},
	} {
		t.Run(x.name, func(t *testing.T) {
			f := serve(t, func(c *Config) { c.Workers, c.Locality, c.Scope = 1, x.locality, x.policy })
			f.fs.put(t, rootNode, "file", nil)
			c := dial(t, f.addr)
			c.cred.Sys.Stamp = x.stamp
			h := c.file("file")
			scopes := make(chan seen, 1)
			look := func(op *vfs.Op) error {
				scopes <- seen{op.Local, op.Scope.IsMemalloc(), op.Scope.IsLocalThrottle(), op.Scope.Mask(gfp.Kernel)}
				return nil
			}
			f.fs.onWrite.set(look)
			c.write(nfs3.WriteArgs{Handle: h}, pattern(10))
			if got := <-scopes; got != x.write {
				t.Errorf("WRITE: %+v, want %+v", got, x.write)
			}
			f.fs.onGetAttr.set(look)
			c.getattr(h)
			if got := <-scopes; got != x.getattr {
				t.Errorf("GETATTR after it: %+v, want %+v", got, x.getattr)
			}
		})
	}
}

// The wait-for graph tells what each call waits for and what it holds.
func TestWaitGraph(t *testing.T) {
	f := serve(t, func(c *Config) { c.Workers, c.Slots, c.PoolID = 1, 8, 3 })
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	entered, proceed := make(chan struct{}), make(chan struct{})
	page := waitfor.Resource{Kind: waitfor.FreePage, ID: 1}
	commitReply := make(chan waitfor.Resource, 1)
	f.fs.onWrite.set(func(op *vfs.Op) error {
		task := op.Scope.Task()
		task.Wait("", "a free page", 0, page)
		entered <- struct{}{}
		task.Wait("direct reclaim", "COMMIT of inode", 12, <-commitReply)
		<-proceed
		task.Done()
		task.Done()
		return nil
	})
	write := c.startWrite(h, pattern(10))
	<-entered
	commit := c.start(nfs3.Program, nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, nil)
	waiting := func(line string) func() bool {
		return func() bool { return slices.Contains(f.graph.Waits(), line) }
	}
	eventually(t, "COMMIT waits for a worker", waiting("server: COMMIT waits for a server worker"))
	if f.graph.FindCycle() != nil {
		t.Error("a cycle too early")
	}
	port := netip.MustParseAddrPort(c.nc.LocalAddr().String()).Port()
	commitReply <- waitfor.Resource{Kind: waitfor.Reply, ID: waitfor.ReplyID(port, c.xid)}
	want := []string{
		"server: COMMIT waits for a server worker",
		"server: WRITE waits for a free page",
		"direct reclaim waits for COMMIT of inode 12",
	}
	eventually(t, "the cycle is seen", func() bool {
		cy := f.graph.FindCycle()
		// The circle has no first wait: it may be told from any of its tasks on.
		return cy != nil && len(cy.Edges) == len(want) && strings.Contains(
			strings.Join(append(want, want...), "\n"), strings.Join(cy.Edges, "\n"))
	})
	// Back-pressure is on record, too.
	var more []chan []byte
	for range 10 {
		more = append(more, c.start(nfs3.Program, nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, nil))
	}
	eventually(t, "the reader waits", waiting("server: COMMIT waits for a request slot"))
	close(proceed)
	for _, ch := range append(more, write, commit) {
		c.must(ch)
	}
	eventually(t, "nobody waits", func() bool { return len(f.graph.Waits()) == 0 })
	if cy := f.graph.FindCycle(); cy != nil {
		t.Errorf("a cycle is left: %q", cy.Edges)
	}
}

// A reader that gets no memory waits for it under the name of the call.
func TestReaderWaitsForMemory(t *testing.T) {
	f := serve(t, func(c *Config) { c.Locality = NeverLocal{} })
	f.fs.put(t, rootNode, "file", pattern(64<<10))
	c := dial(t, f.addr)
	h := c.file("file")
	hog := takeAllBut(t, f, 70)
	write := c.startWrite(h, pattern(64<<10))
	eventually(t, "the reader waits", func() bool {
		return slices.Contains(f.graph.Waits(), "server: WRITE waits for a free page")
	})
	dial(t, f.addr).getattr(h) // others go on
	hog()
	c.must(write)
}

// takeAllBut takes all pages but n and returns how to give them back.
func takeAllBut(t *testing.T, f *fixture, n int) func() {
	t.Helper()
	v := vfs.Vec{Owner: f.arena}
	for f.arena.Free() > n {
		p, err := f.arena.Alloc(gfp.Scope{}.Memalloc(), gfp.NoWait)
		if err != nil {
			t.Fatal(err)
		}
		v.Pins = append(v.Pins, p.Num())
	}
	return v.Release
}

// The receive path of a client on this host may use the reserve, that of others
// not.
func TestReceiveFromReserve(t *testing.T) {
	f := serve(t, func(c *Config) { c.Locality = only127001{} })
	f.fs.put(t, rootNode, "file", pattern(64<<10))
	c := dial(t, f.addr)
	h := c.file("file")
	hog := takeAllBut(t, f, f.arena.Watermarks().Min*3/4) // half of it is for such data
	defer hog()
	if res := c.write(nfs3.WriteArgs{Handle: h}, pattern(64<<10)); res.Status != nfs3.StatusOK {
		t.Errorf("WRITE: %v", res.Status)
	}
	if f.arena.Stats().ReservePages == 0 {
		t.Error("the reserve was not used")
	}
}

func TestNames(t *testing.T) {
	for i := range nfsProcs {
		if nfsProcs[i] == nil || strings.Contains(nfs3.ProcName(uint32(i)), "UNKNOWN") {
			t.Errorf("procedure %d is missing", i)
		}
	}
	for i := range mountProcs {
		if mountProcs[i] == nil {
			t.Errorf("MOUNT procedure %d is missing", i)
		}
	}
}
