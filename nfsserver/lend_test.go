package nfsserver

import (
	"math"
	"sync/atomic"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// lookFS has GETATTR wait: mostly for nothing, and at a gate for one file.
type lookFS struct {
	*memFS
	at   *gate
	size uint64 // of the file
	srv  atomic.Pointer[Server]
	lent atomic.Int32 // calls that a reader carried out
}

func (*lookFS) HeedsNoWait() {}

func (l *lookFS) GetAttr(op *vfs.Op, node vfs.NodeID, attr *vfs.Attr) error {
	if op.MustWait() {
		return vfs.ErrJukebox
	}
	if srv := l.srv.Load(); srv != nil && srv.lending.conns[0].Load() != nil {
		l.lent.Add(1)
	}
	err := l.memFS.GetAttr(op, node, attr)
	if err == nil && attr.Size == l.size {
		_ = l.at.wait(op)
	}
	return err
}

// neverSlow has no reader taken for slow because something else ran.
func neverSlow(t *testing.T) {
	call, calls := slowCall, slowCalls
	slowCall, slowCalls = math.MaxInt64, math.MaxInt64
	t.Cleanup(func() { slowCall, slowCalls = call, calls })
}

// What a reader carries out itself delays others of its connection for a moment only: they
// get another reader, again and again, and as many as may be late.
func TestLateReaderIsReplaced(t *testing.T) {
	neverSlow(t)
	l := &lookFS{size: 7, at: newGate(t)}
	f := serve(t, func(c *Config) {
		l.memFS = c.Exports[0].FS.(*memFS)
		c.Exports[0].FS = l
	})
	f.fs.put(t, rootNode, "slow", pattern(7))
	f.fs.put(t, rootNode, "file", pattern(9))
	c := dial(t, f.addr)
	slow, file := c.file("slow"), c.file("file")
	var late []chan []byte
	readers := func() int { return int(f.srv.lending.late.Load()) }
	// One that was slow by chance is not lent for a while: then a worker is.
	for extra := 2; extra > 0 && len(late) < 24; {
		late = append(late, c.startGetattr(slow))
		start := time.Now()
		for range 2 * lendPause {
			if st := c.getattr(file).Status; st != nfs3.StatusOK {
				t.Fatal(st)
			}
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%d calls after a slow one took %v", 2*lendPause, took)
		}
		if readers() == maxLent {
			extra--
		}
	}
	if n := readers(); n != maxLent {
		t.Errorf("%d readers are late after %d slow calls, want %d", n, len(late), maxLent)
	}
	// A reader that the machine held up at a quick call is replaced as well, and not late now.
	if st := f.srv.Stats(); st.Late != maxLent || st.Replaced < maxLent {
		t.Errorf("%d readers are said to be late, and %d replaced", st.Late, st.Replaced)
	}
	l.at.release()
	for _, ch := range late {
		c.must(ch)
	}
	eventually(t, "nobody is late", func() bool { return f.srv.lending.late.Load() == 0 })
	eventually(t, "the ticks end", func() bool { return !f.srv.lending.runs.Load() })
	if st := c.getattr(file).Status; st != nfs3.StatusOK {
		t.Error(st)
	}
}

// A connection that ends while its reader is late is given up when that one is done.
func TestLateReaderOutlivesItsConnection(t *testing.T) {
	l := &lookFS{size: 7, at: newGate(t)}
	f := serve(t, func(c *Config) {
		l.memFS = c.Exports[0].FS.(*memFS)
		c.Exports[0].FS = l
	})
	f.fs.put(t, rootNode, "slow", pattern(7))
	slow := dial(t, f.addr).file("slow")
	c := dial(t, f.addr) // which has not been slow by chance
	c.startGetattr(slow)
	eventually(t, "the reader is late", func() bool { return f.srv.lending.late.Load() == 1 })
	c.close()
	l.at.release()
	eventually(t, "the connection is gone", func() bool { return f.srv.Stats().Conns == 1 })
}

// The reader carries out what waits for nothing after all, and replies together.
func TestReaderIsLent(t *testing.T) {
	neverSlow(t)
	l := &lookFS{size: 7, at: newGate(t)}
	f := serve(t, func(c *Config) {
		l.memFS = c.Exports[0].FS.(*memFS)
		c.Exports[0].FS = l
	})
	f.fs.put(t, rootNode, "file", pattern(9))
	c := dial(t, f.addr)
	h := c.file("file")
	l.srv.Store(f.srv)
	// Readers that the machine holds up at a quick call are not lent for a while.
	for round := 0; l.lent.Load() < 200; round++ {
		if round == 20 {
			t.Fatalf("readers carried out %d calls of %d", l.lent.Load(), 1000*round)
		}
		var all []chan []byte
		for range 1000 {
			all = append(all, c.startGetattr(h))
		}
		for _, ch := range all {
			c.must(ch)
		}
	}
}
