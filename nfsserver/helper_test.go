package nfsserver

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// helped is a server of a directory that two workers can list.
type helped struct {
	*fixture
	c       *rpcClient
	root    nfs3.FileHandle
	names   []string
	helpers map[*waitfor.Task]bool
}

func serveHelped(t *testing.T) *helped {
	if runtime.NumCPU() == 1 {
		t.Skip("there is one processor")
	}
	h := &helped{fixture: serve(t, nil), names: []string{".", ".."}, helpers: map[*waitfor.Task]bool{}}
	for i := range 2000 {
		name := fmt.Sprint(strings.Repeat("n", 1+i%200), i)
		h.fs.put(t, rootNode, name, nil)
		h.names = append(h.names, name)
	}
	for range cap(h.srv.helpers) {
		one := <-h.srv.helpers
		h.helpers[one.task] = true
		h.srv.helpers <- one
	}
	h.c = dial(t, h.addr)
	h.root = h.c.root()
	return h
}

func (h *helped) list(maxCount uint32) (calls int) {
	h.Helper()
	got, calls, st := h.c.listPlus(h.root, 1<<20, maxCount)
	if st != nfs3.StatusOK || !slices.Equal(got, h.names) {
		h.Errorf("READDIRPLUS of %d bytes: %v, %d names, want %d", maxCount, st, len(got), len(h.names))
	}
	return calls
}

// Two workers look at the entries of one listing at the same time.
func TestListingOfTwoWorkers(t *testing.T) {
	h := serveHelped(t)
	var both sync.WaitGroup
	both.Add(2)
	var main, helper sync.Once
	var met atomic.Bool
	h.fs.onLookup.set(func(op *vfs.Op) error {
		once := &main
		if h.helpers[op.Scope.Task()] {
			once = &helper
		}
		once.Do(func() {
			both.Done()
			both.Wait()
			met.Store(true)
		})
		return nil
	})
	done := make(chan struct{})
	go func() { h.list(1 << 16); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		both.Done() // nobody helps
		<-done
		t.Error("one worker did it alone")
	}
	if !met.Load() {
		t.Error("nobody looked")
	}
	for _, n := range []uint32{512, 4096, 8192, 20000, 1 << 20} {
		h.list(n)
	}
}

// What the second worker cannot do is done by the next call.
func TestHelperThatFails(t *testing.T) {
	h := serveHelped(t)
	calls := h.list(1 << 16)
	var n, panics atomic.Int64
	h.fs.onLookup.set(func(op *vfs.Op) error {
		if !h.helpers[op.Scope.Task()] {
			time.Sleep(20 * time.Microsecond) // or there is nothing left to help with
			return nil
		}
		if n.Add(1)%50 == 0 {
			panics.Add(1)
			panic("test")
		}
		return nil
	})
	if more := h.list(1 << 16); more <= calls || panics.Load() == 0 {
		t.Errorf("%d calls, %d before, %d panics", more, calls, panics.Load())
	}
	h.fs.onLookup.set(func(*vfs.Op) error { return syscall.ENOENT })
	var a nfs3.ReaddirplusResult
	d := h.c.call(nfs3.ProcReaddirplus, &nfs3.ReaddirplusArgs{Handle: h.root, DirCount: 1 << 16, MaxCount: 1 << 16}, &a)
	var e nfs3.EntryPlus
	got := 0
	for ; nfs3.NextEntryPlus(d, &e); got++ {
		if name := string(e.Name); name != h.names[got] || name != "." && (e.Attr.Has || e.Handle.Has) {
			t.Fatalf("entry %d: %+v", got, e)
		}
	}
	if got < pieceLen {
		t.Errorf("%d entries", got)
	}
}

// Listings, of which no more than a few are helped, and their clients that go away.
func TestManyListings(t *testing.T) {
	h := serveHelped(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			c := dial(t, h.addr)
			for range 5 {
				if i%2 == 0 {
					if got, _, st := c.listPlus(h.root, 1<<20, 1<<16); st != nfs3.StatusOK || !slices.Equal(got, h.names) {
						t.Errorf("%v, %d names", st, len(got))
					}
					continue
				}
				c := dial(t, h.addr)
				c.start(nfs3.Program, nfs3.ProcReaddirplus, &nfs3.ReaddirplusArgs{Handle: h.root, DirCount: 1 << 16, MaxCount: 1 << 16}, nil)
				c.close()
			}
		})
	}
	all.Wait()
	eventually(t, "all helpers are back", func() bool { return len(h.srv.helpers) == cap(h.srv.helpers) })
}
