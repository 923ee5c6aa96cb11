package nfsserver

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/xdr"
)

// sameCall makes records of calls with an XID of the test's choice.
func sameCall(xid, proc uint32, args encoder, payload []byte) []byte {
	return callRecord(&sunrpc.Call{XID: xid, Prog: nfs3.Program, Vers: nfs3.Version, Proc: proc, Cred: rootCred()}, args, payload)
}

func (f *fixture) connect() net.Conn {
	f.Helper()
	nc, err := net.Dial("tcp", f.addr)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { nc.Close() })
	return nc
}

// ask sends a call and returns the whole reply and its status.
func (f *fixture) ask(nc net.Conn, rec []byte) ([]byte, nfs3.Status) {
	f.Helper()
	if _, err := nc.Write(rec); err != nil {
		f.Fatal(err)
	}
	return f.hear(nc)
}

func (f *fixture) hear(nc net.Conn) ([]byte, nfs3.Status) {
	f.Helper()
	reply, err := readRecord(nc)
	if err != nil {
		f.Fatal(err)
	}
	return reply, statusIn(reply)
}

func removeArgs(root nfs3.FileHandle, name string) encoder {
	return &nfs3.RemoveArgs{Dir: root, Name: []byte(name)}
}

// reset ends a connection as one ends that breaks.
func reset(nc net.Conn) {
	nc.(*net.TCPConn).SetLinger(0)
	nc.Close()
}

// A call that is sent again is not carried out again, on whichever connection.
func TestDuplicate(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	f.fs.put(t, rootNode, "a", nil)
	nc := f.connect()
	rec := sameCall(7, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	first, st := f.ask(nc, rec)
	if st != nfs3.StatusOK {
		t.Fatal(st)
	}
	if again, _ := f.ask(nc, rec); !bytes.Equal(again, first) {
		t.Errorf("on the same connection: %x, want %x", again, first)
	}
	reset(nc)
	nc = f.connect()
	if again, _ := f.ask(nc, rec); !bytes.Equal(again, first) {
		t.Errorf("on another connection: %x, want %x", again, first)
	}
	if n := f.srv.Stats().Duplicates; n != 2 {
		t.Errorf("%d duplicates were counted", n)
	}
	if _, st := f.ask(nc, sameCall(8, nfs3.ProcRemove, removeArgs(root, "a"), nil)); st != nfs3.StatusNoEnt {
		t.Errorf("another XID: %v", st)
	}
	if _, st := f.ask(nc, sameCall(7, nfs3.ProcRemove, removeArgs(root, "b"), nil)); st != nfs3.StatusNoEnt {
		t.Errorf("other arguments: %v", st)
	}
	if _, st := f.ask(nc, sameCall(7, nfs3.ProcRmdir, removeArgs(root, "a"), nil)); st != nfs3.StatusNoEnt {
		t.Errorf("another procedure: %v", st)
	}
}

// Every procedure that changes a directory or attributes.
func TestDuplicateProcedures(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	f.fs.put(t, rootNode, "file", nil)
	file := dial(t, f.addr).file("file")
	where := func(name string) nfs3.DirOpArgs { return nfs3.DirOpArgs{Dir: root, Name: []byte(name)} }
	nc := f.connect()
	for i, c := range []struct {
		proc uint32
		args encoder
	}{
		{nfs3.ProcCreate, &nfs3.CreateArgs{Where: where("c"), How: vfs.Guarded}},
		{nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: where("d")}},
		{nfs3.ProcSymlink, &nfs3.SymlinkArgs{Where: where("s"), Target: []byte("t")}},
		{nfs3.ProcMknod, &nfs3.MknodArgs{Where: where("m"), Type: vfs.TypeFIFO}},
		{nfs3.ProcLink, &nfs3.LinkArgs{Handle: file, To: where("l")}},
		{nfs3.ProcRename, &nfs3.RenameArgs{From: where("l"), To: where("r")}},
		{nfs3.ProcRemove, removeArgs(root, "r")},
		{nfs3.ProcRmdir, removeArgs(root, "d")},
		{nfs3.ProcSetAttr, &nfs3.SetAttrArgs{Handle: file, Set: vfs.SetAttr{SetSize: true}}},
	} {
		rec := sameCall(uint32(i), c.proc, c.args, nil)
		first, st := f.ask(nc, rec)
		if st != nfs3.StatusOK {
			t.Errorf("%s: %v", nfs3.ProcName(c.proc), st)
		}
		if again, st := f.ask(nc, rec); !bytes.Equal(again, first) {
			t.Errorf("%s again: %v", nfs3.ProcName(c.proc), st)
		}
	}
}

// A call that comes again while it is being carried out waits for the reply, and
// takes no worker meanwhile.
func TestDuplicateWaits(t *testing.T) {
	f := serve(t, func(c *Config) { c.Workers = 2 })
	f.fs.put(t, rootNode, "file", nil)
	h := dial(t, f.addr).file("file")
	g := newGate(t)
	var writes atomic.Int32
	f.fs.onWrite.set(func(op *vfs.Op) error { writes.Add(1); return g.wait(op) })
	data := pattern(3 * 4096)
	rec := sameCall(9, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: uint32(len(data))}, data)
	conns := []net.Conn{f.connect(), f.connect(), f.connect(), f.connect()}
	for i, nc := range conns {
		nc.Write(rec)
		if i == 0 {
			<-g.entered
		}
	}
	eventually(t, "all calls are there", func() bool { return f.srv.Stats().InFlight == len(conns) })
	dial(t, f.addr).getattr(h) // there is a worker for it
	g.release()
	for _, nc := range conns {
		if _, st := f.hear(nc); st != nfs3.StatusOK {
			t.Error(st)
		}
	}
	if n := writes.Load(); n != 1 {
		t.Errorf("written %d times", n)
	}
}

// A WRITE that is read late, for its connection had no slot for it, does not land on
// what its client wrote since, on another connection.
func TestLateWrite(t *testing.T) {
	f := serve(t, func(c *Config) { c.Workers, c.Slots = 8, 8 })
	f.fs.put(t, rootNode, "file", make([]byte, 100))
	c := dial(t, f.addr)
	h := c.file("file")
	write := func(xid uint32, data []byte) []byte {
		return sameCall(xid, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: uint32(len(data))}, data)
	}
	g := newGate(t)
	f.fs.onRead.set(g.wait)
	old := f.connect()
	for i := range uint32(4) { // its share of the slots
		old.Write(sameCall(100+i, nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Count: 10}, nil))
		<-g.entered
	}
	late, after := write(9, pattern(100)), bytes.Repeat([]byte("new"), 30)
	old.Write(late)
	old.Close()
	nc := f.connect()
	for _, rec := range [][]byte{late, write(10, after)} {
		if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
			t.Fatal(st)
		}
	}
	nc.Close() // it has all it asked for
	eventually(t, "that is noticed", func() bool { return f.srv.Stats().Conns == 2 })
	g.release()
	eventually(t, "all is over", func() bool {
		st := f.srv.Stats()
		return st.InFlight == 0 && st.Conns == 1
	})
	if _, got := c.read(h, 0, 100); !bytes.Equal(got[:90], after) {
		t.Errorf("the file has %q", got)
	}
	if n := f.srv.Stats().Duplicates; n != 1 {
		t.Errorf("%d duplicates", n)
	}
}

// What has other data is another WRITE, while the first is being carried out and
// after that.
func TestDuplicateOfOtherData(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", nil)
	h := dial(t, f.addr).file("file")
	g := newGate(t)
	var writes atomic.Int32
	f.fs.onWrite.set(func(op *vfs.Op) error { writes.Add(1); return g.wait(op) })
	write := func(data string) net.Conn {
		nc := f.connect()
		nc.Write(sameCall(9, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: 4}, []byte(data)))
		return nc
	}
	conns := []net.Conn{write("once"), write("then")}
	eventually(t, "both are carried out", func() bool { return writes.Load() == 2 })
	g.release()
	conns = append(conns, write("last"))
	for _, nc := range conns {
		if _, st := f.hear(nc); st != nfs3.StatusOK {
			t.Error(st)
		}
	}
	if n := writes.Load(); n != 3 {
		t.Errorf("written %d times", n)
	}
}

// What is sent again on the same connection takes nothing: the reply to the first
// may depend on what comes behind it.
func TestDuplicateOnTheSameConnection(t *testing.T) {
	f := serve(t, func(c *Config) { c.Slots, c.Workers = 8, 8 })
	f.fs.put(t, rootNode, "file", nil)
	h := dial(t, f.addr).file("file")
	g := newGate(t)
	f.fs.onWrite.set(g.wait)
	data := pattern(2 * 4096)
	rec := sameCall(9, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: uint32(len(data))}, data)
	nc := f.connect()
	for i := range 20 {
		nc.Write(rec)
		if i == 0 {
			<-g.entered
		}
	}
	if _, st := f.ask(nc, sameCall(10, nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, nil)); st != nfs3.StatusOK {
		t.Error(st)
	}
	eventually(t, "only the first is there", func() bool {
		st := f.srv.Stats()
		return st.InFlight == 1 && st.PayloadBytes == int64(len(data))
	})
	g.release()
	if _, st := f.hear(nc); st != nfs3.StatusOK {
		t.Error(st)
	}
	if _, st := f.ask(nc, sameCall(11, nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, nil)); st != nfs3.StatusOK {
		t.Error(st)
	}
	if n := f.srv.Stats().Duplicates; n != 19 {
		t.Errorf("%d duplicates", n)
	}
}

// A client that connects again from its port waits for the call it sent before,
// not for itself.
func TestDuplicateFromTheSamePort(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", nil)
	h := dial(t, f.addr).file("file")
	disk := waitfor.Resource{Kind: waitfor.Writeback, ID: 7}
	g := newGate(t)
	f.fs.onWrite.set(func(op *vfs.Op) error {
		op.Scope.Task().Wait("", "the disk", 0, disk)
		defer op.Scope.Task().Done()
		return g.wait(op)
	})
	data := pattern(100)
	rec := sameCall(9, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: uint32(len(data))}, data)
	old := dialFrom(t, "127.0.0.78", f.addr) // nobody else has ports there
	old.Write(rec)
	<-g.entered
	reset(old)
	d := net.Dialer{LocalAddr: old.LocalAddr()}
	nc, err := d.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.Write(rec)
	eventually(t, "both calls are there", func() bool { return f.srv.Stats().InFlight == 2 })
	eventually(t, "the second one waits", func() bool { return strings.Contains(fmt.Sprint(f.graph.Waits()), "sent before") })
	if c := f.graph.FindCycle(); c != nil {
		t.Errorf("a circle: %q", c.Edges)
	}
	g.release()
	if _, st := f.hear(nc); st != nfs3.StatusOK {
		t.Error(st)
	}
}

// Whoever waits for a call whose client has gone carries it out.
func TestDuplicateOfACallThatIsGivenUp(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", nil)
	h := dial(t, f.addr).file("file")
	entered := make(chan struct{}, 9)
	var first atomic.Bool
	f.fs.onWrite.set(func(op *vfs.Op) error {
		if first.Swap(true) {
			return nil
		}
		entered <- struct{}{}
		<-op.Cancel
		return syscall.EINTR
	})
	data := pattern(100)
	rec := sameCall(9, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: uint32(len(data))}, data)
	old := f.connect()
	old.Write(rec)
	<-entered
	nc := f.connect()
	nc.Write(rec)
	eventually(t, "both calls are there", func() bool { return f.srv.Stats().InFlight == 2 })
	reset(old)
	if _, st := f.hear(nc); st != nfs3.StatusOK {
		t.Error(st)
	}
	if _, got := dial(t, f.addr).read(h, 0, 200); !bytes.Equal(got, data) {
		t.Errorf("%d bytes were written", len(got))
	}
}

// Whoever is told to try later does so with another XID: the call must not be
// carried out after that. Nor must one that panics do so again.
func TestDuplicateOfACallThatFails(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", nil)
	h := dial(t, f.addr).file("file")
	a, b, xid := f.connect(), f.connect(), uint32(9)
	for what, fail := range map[string]func() error{
		"try later": func() error { return vfs.ErrJukebox },
		"panic":     func() error { panic("oh no") },
	} {
		g := newGate(t)
		var writes atomic.Int32
		f.fs.onWrite.set(func(op *vfs.Op) error {
			writes.Add(1)
			g.wait(op)
			return fail()
		})
		xid++
		rec := sameCall(xid, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: 100}, pattern(100))
		a.Write(rec)
		<-g.entered
		b.Write(rec)
		eventually(t, "both calls are there", func() bool { return f.srv.Stats().InFlight == 2 })
		g.release()
		first, _ := readRecord(a)
		if second, _ := readRecord(b); !bytes.Equal(first, second) || len(first) == 0 || writes.Load() != 1 {
			t.Errorf("%s: carried out %d times: %x, %x", what, writes.Load(), first, second)
		}
		eventually(t, "both calls are over", func() bool { return f.srv.Stats().InFlight == 0 })
	}
}

// A client that begins with the same XID each time it runs is another one, if the
// one before had all it asked for.
func TestDuplicateXIDOfAnotherClient(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	rec := sameCall(1, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	for range 300 {
		f.fs.put(t, rootNode, "a", nil)
		nc := f.connect()
		if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
			t.Fatal(st)
		}
		nc.Close()
		if _, err := f.fs.Lookup(&vfs.Op{}, rootNode, "a"); err != syscall.ENOENT {
			t.Fatalf("not carried out: %v", err)
		}
	}
}

// It is the same client, if it closed a connection without having all it asked for:
// before a reply, or with one that it heard on another connection.
func TestDuplicateXIDOfTheSameClient(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	g := newGate(t)
	f.fs.onGetAttr.set(g.wait)
	conns := f.srv.Stats().Conns
	rec := sameCall(1, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	nc := f.connect()
	nc.Write(rec)
	<-g.entered // for the attributes in its reply
	nc.Close()
	g.release()
	gone := func() bool { return f.srv.Stats().Conns == conns }
	eventually(t, "the connection is gone", gone)
	f.fs.put(t, rootNode, "a", nil)
	nc = f.connect()
	if _, st := f.ask(nc, rec); st != nfs3.StatusNoEnt {
		t.Errorf("the reply that was not heard: %v", st)
	}
	nc.Close()
	eventually(t, "the connection is gone", gone)
	if _, st := f.ask(f.connect(), rec); st != nfs3.StatusOK {
		t.Errorf("after it was: %v", st)
	}
}

// Who hangs up before the reply comes has not had it, and who sends the call again is not
// somebody else.
func TestDuplicateOfACallThatWasHungUpOn(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	for i := range uint32(500) {
		f.fs.put(t, rootNode, "a", nil)
		rec := sameCall(i, nfs3.ProcRemove, removeArgs(root, "a"), nil)
		first := f.connect()
		first.Write(rec)
		time.Sleep(time.Duration(i%100) * time.Microsecond)
		first.Close()
		nc := f.connect()
		if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
			t.Fatalf("call %d: %v", i, st)
		}
		nc.Close()
	}
}

// A call that is read late from a connection that was given up is not carried out again,
// even if the client has had its reply on another one and closed that.
func TestDuplicateThatIsLate(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	f.fs.put(t, rootNode, "a", nil)
	rec := sameCall(7, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	conns := f.srv.Stats().Conns
	old := f.connect()
	old.Write(rec[:20])
	eventually(t, "it is accepted", func() bool { return f.srv.Stats().Conns == conns+1 })
	nc := f.connect()
	first, st := f.ask(nc, rec)
	if st != nfs3.StatusOK {
		t.Fatal(st)
	}
	nc.Close()
	eventually(t, "the connection is gone", func() bool { return f.srv.Stats().Conns == conns+1 })
	old.Write(rec[20:])
	if late, st := f.hear(old); !bytes.Equal(late, first) {
		t.Errorf("got %v", st)
	}
}

// Many clients that give up a connection, with or without having the reply.
func TestDuplicateAfterGivingUp(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	var wg sync.WaitGroup
	for client := range uint32(8) {
		wg.Go(func() {
			for i := range uint32(100) {
				dir := nfs3.DirOpArgs{Dir: root, Name: fmt.Append(nil, client, "-", i)}
				rec := sameCall(client<<16|i, nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: dir}, nil)
				for range 2 {
					nc := f.connect()
					nc.Write(rec)
					nc.Close()
				}
				nc := f.connect()
				if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
					t.Errorf("%s: %v", dir.Name, st)
				}
				nc.Close()
			}
		})
	}
	wg.Wait()
}

// The oldest replies make room for new ones.
func TestDuplicatesAreForgotten(t *testing.T) {
	f := serve(t, func(c *Config) { c.StateDir = t.TempDir() })
	root := dial(t, f.addr).root()
	nc := f.connect()
	rec := sameCall(1, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	f.fs.put(t, rootNode, "file", nil)
	h := dial(t, f.addr).file("file")
	for round := range 2 {
		f.fs.put(t, rootNode, "a", nil)
		if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
			t.Fatalf("round %d: %v", round, st)
		}
		for i := range uint32(keptWrites + 1) {
			f.ask(nc, sameCall(2+i, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: 1}, []byte{1}))
		}
		if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
			t.Errorf("round %d: forgotten for WRITEs: %v", round, st)
		}
		for i := range uint32(keptReplies) {
			f.ask(nc, sameCall(9000+i, nfs3.ProcRemove, removeArgs(root, "b"), nil))
		}
	}
	if n := f.srv.Stats().Duplicates; n != 2 {
		t.Errorf("%d duplicates", n)
	}
}

// The last calls of a client that is away are not forgotten for what others do meanwhile, but
// for those of as many others.
func TestLastCallsAreKept(t *testing.T) {
	f := serve(t, func(c *Config) { c.StateDir = t.TempDir() })
	root := dial(t, f.addr).root()
	away, busy := f.connect(), f.connect()
	var recs [][]byte
	for i := range uint32(2 * lastCalls) {
		name := fmt.Sprint("a", i)
		f.fs.put(t, rootNode, name, nil)
		recs = append(recs, sameCall(1+i, nfs3.ProcRemove, removeArgs(root, name), nil))
		f.ask(away, recs[i])
	}
	reset(away)
	xid := uint32(10000)
	calls := func(n int, nc net.Conn) {
		for range n {
			xid++
			f.ask(nc, sameCall(xid, nfs3.ProcRemove, removeArgs(root, "b"), nil))
		}
	}
	calls(3*keptReplies, busy)
	again := f.connect()
	for i, rec := range recs {
		if _, st := f.ask(again, rec); (st == nfs3.StatusOK) != (i >= lastCalls) {
			t.Errorf("call %d of %d: %v", i, len(recs), st)
		}
	}
	for range keptLast/lastCalls + 1 {
		other := f.connect()
		calls(lastCalls, other)
		reset(other)
	}
	calls(keptReplies, busy)
	if _, st := f.ask(f.connect(), recs[lastCalls]); st != nfs3.StatusNoEnt {
		t.Errorf("it is kept for good: %v", st)
	}
}

// Many clients that send everything twice: each call is carried out once.
func TestDuplicateStress(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	var wg sync.WaitGroup
	for client := range 8 {
		a, b := f.connect(), f.connect()
		wg.Go(func() {
			for i := range 100 {
				name := []byte(fmt.Sprintf("%d-%d", client, i))
				rec := sameCall(uint32(client<<16|i), nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: nfs3.DirOpArgs{Dir: root, Name: name}}, nil)
				a.Write(rec)
				b.Write(rec)
				for _, nc := range []net.Conn{a, b} {
					reply, err := readRecord(nc)
					if err != nil {
						t.Error(err)
						return
					}
					if st := statusIn(reply); st != nfs3.StatusOK {
						t.Errorf("%s: %v", name, st)
					}
				}
			}
		})
	}
	wg.Wait()
}

// A call that the last server has carried out is answered by the next.
func TestRepliesOutliveTheServer(t *testing.T) {
	dir := t.TempDir()
	f := serve(t, func(c *Config) { c.StateDir = dir })
	root := dial(t, f.addr).root()
	f.fs.put(t, rootNode, "a", nil)
	rec := sameCall(7, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	first, st := f.ask(f.connect(), rec)
	if st != nfs3.StatusOK {
		t.Fatal(st)
	}
	if _, st := f.ask(f.connect(), sameCall(8, nfs3.ProcRemove, removeArgs(root, "a"), nil)); st != nfs3.StatusNoEnt {
		t.Error(st)
	}
	if _, err := New(f.srv.cfg); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a second server on the same state: %v", err)
	}
	cfg := f.srv.cfg
	if err := f.srv.Close(); err != nil {
		t.Fatal(err)
	}
	if n := f.srv.dups.journal.ended; n != 1 {
		t.Errorf("%d syncs for a call that changed something and one that did not", n)
	}
	f.srv, f.addr = start(t, cfg)
	if again, _ := f.ask(f.connect(), rec); !bytes.Equal(again, first) {
		t.Errorf("got %x, want %x", again, first)
	}
}

// A client that had all its replies from the last server is not that which calls the
// next one from another port.
func TestEndsOutliveTheServer(t *testing.T) {
	f := serve(t, func(c *Config) { c.StateDir = t.TempDir() })
	root := dial(t, f.addr).root()
	rec := sameCall(1, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	f.fs.put(t, rootNode, "a", nil)
	nc := f.connect()
	if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
		t.Fatal(st)
	}
	nc.Close()
	eventually(t, "the connection is gone", func() bool { return f.srv.Stats().Conns == 1 })
	if err := f.srv.Close(); err != nil {
		t.Fatal(err)
	}
	f.srv, f.addr = start(t, f.srv.cfg)
	f.fs.put(t, rootNode, "a", nil)
	f.ask(f.connect(), rec)
	if n := f.srv.Stats().Duplicates; n != 0 {
		t.Error("not carried out")
	}
}

// What is damaged is as if it had never been there.
func TestDamagedJournal(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, journalName)
	good := journaled{seq: 5, when: 1 << 40, key: dupKey{xid: 3, proc: nfs3.ProcRemove}, port: 9, reply: pattern(100)}
	var rec [journalRec]byte
	good.encode(rec[:])
	for what, file := range map[string][]byte{
		"empty":        nil,
		"too short":    rec[:100],
		"one record":   rec[:],
		"all the same": bytes.Repeat(rec[:], keptReplies),
		"noise":        pattern(journalLen),
		"too long":     make([]byte, 2*journalLen),
	} {
		if err := os.WriteFile(name, file, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(dir, false, nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := newDRC(8, j, nil); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		j.close()
		if st, err := os.Stat(name); err != nil || st.Size() != journalLen {
			t.Errorf("%s: the file has %d bytes (%v)", what, st.Size(), err)
		}
	}
	for i := range rec {
		bad := rec
		bad[i] ^= 4
		if r, ok := decodeJournaled(bad[:]); ok {
			t.Fatalf("byte %d changed: %+v", i, r)
		}
	}
	if r, ok := decodeJournaled(rec[:]); !ok || r.seq != 5 || r.key != good.key || r.port != 9 || !bytes.Equal(r.reply, good.reply) {
		t.Errorf("got %+v", r)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(filepath.Join(dir, "nowhere"), false, nil); err == nil {
		t.Error("a journal in a directory that is not there")
	}
}

// A disk that is full, or read-only since it had an error, is no reason not to serve.
func TestNoRoomForJournal(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		flags  uintptr
		option string
	}{{0, "size=64k"}, {unix.MS_RDONLY, ""}} {
		if err := unix.Mount("none", dir, "tmpfs", c.flags, c.option); err != nil {
			t.Skip("cannot mount a tmpfs:", err)
		}
		f := serve(t, func(cfg *Config) { cfg.StateDir = dir })
		check(t, unix.Unmount(dir, 0)) // nothing in it is open
		f.fs.put(t, rootNode, "a", nil)
		rec := sameCall(1, nfs3.ProcRemove, removeArgs(dial(t, f.addr).root(), "a"), nil)
		for range 2 {
			if _, st := f.ask(f.connect(), rec); st != nfs3.StatusOK {
				t.Error(st)
			}
		}
		if !strings.Contains(f.logs.String(), "next start") {
			t.Errorf("the operator is not told: %s", f.logs)
		}
	}
}

// How old a reply is, is told by the time in which there was a server, whatever clocks say.
func TestAgeOfReplies(t *testing.T) {
	const age = int64(journalAge / time.Second)
	dir := t.TempDir()
	write := func(now int64, xid uint32) { // by a server that has been there until now
		j, err := openJournal(dir, true, nil)
		check(t, err)
		d, err := newDRC(8, j, nil)
		check(t, err)
		j.base = now
		check(t, j.add(&journaled{seq: d.records.number(), key: dupKey{xid: xid, proc: nfs3.ProcRemove}, port: 9, reply: pattern(100)}))
		check(t, j.close())
	}
	heeds := func(xid uint32) bool {
		j, err := openJournal(dir, true, nil)
		check(t, err)
		defer j.close()
		d, err := newDRC(8, j, nil)
		check(t, err)
		return d.find(&dupKey{xid: xid, proc: nfs3.ProcRemove}) != nil
	}
	for _, start := range []int64{3, 1 << 33, 1 << 40} { // 1970, 2242, and one day
		check(t, os.RemoveAll(filepath.Join(dir, journalName)))
		write(start, 1)
		if !heeds(1) {
			t.Errorf("clock at %d: a reply of a moment ago is not heeded", start)
		}
		write(start+age-5, 2)
		if !heeds(1) || !heeds(2) {
			t.Errorf("clock at %d: replies of the last ten minutes are not heeded", start)
		}
		write(start+age+5, 3)
		if heeds(1) || !heeds(2) || !heeds(3) {
			t.Errorf("clock at %d: a reply of more than ten minutes ago is heeded", start)
		}
		j, err := openJournal(dir, true, nil) // nothing is changed, and time goes by
		check(t, err)
		_, err = newDRC(8, j, nil)
		check(t, err)
		for range 2 {
			j.base += age/2 + 10
			j.tick()
		}
		check(t, j.close())
		if heeds(3) {
			t.Errorf("clock at %d: an idle server does not let replies grow old", start)
		}
	}
}

// A reply of the server before is heeded for ten minutes of this one.
func TestRestoredRepliesAreForgotten(t *testing.T) {
	dir := t.TempDir()
	f := serve(t, func(cfg *Config) { cfg.StateDir = dir })
	rec := sameCall(1, nfs3.ProcRemove, removeArgs(dial(t, f.addr).root(), "a"), nil)
	f.fs.put(t, rootNode, "a", nil)
	if _, st := f.ask(f.connect(), rec); st != nfs3.StatusOK {
		t.Fatal(st)
	}
	check(t, f.srv.Close())
	f.srv, f.addr = start(t, f.srv.cfg)
	if _, st := f.ask(f.connect(), rec); st != nfs3.StatusOK {
		t.Errorf("at once: %v", st)
	}
	check(t, f.srv.Close())
	f.srv, f.addr = start(t, f.srv.cfg)
	began := time.Now().Add(-journalAge - 2*time.Second)
	f.srv.dups.journal.since.Store(&began)
	if _, st := f.ask(f.connect(), rec); st != nfs3.StatusNoEnt {
		t.Errorf("after ten minutes: %v", st)
	}
}

// A link is not followed: what it points to would be overwritten.
func TestJournalIsALink(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	check(t, os.WriteFile(other, []byte("precious"), 0o600))
	check(t, os.Symlink(other, filepath.Join(dir, journalName)))
	if _, err := openJournal(dir, false, nil); err == nil {
		t.Error("opened")
	}
	if b, err := os.ReadFile(other); string(b) != "precious" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	check(t, os.Remove(filepath.Join(dir, journalName)))
	check(t, syscall.Mkfifo(filepath.Join(dir, journalName), 0o600))
	if _, err := openJournal(dir, false, nil); err == nil {
		t.Error("a FIFO was opened")
	}
}

// The largest replies fit.
func TestLargestReply(t *testing.T) {
	var h nfs3.FileHandle
	h, _ = nfs3.MakeHandle(make([]byte, nfs3.MaxHandle))
	res := nfs3.CreateResult{}
	res.Handle.Has, res.Handle.Handle = true, h
	res.Attr.Set(&vfs.Attr{})
	res.DirWCC = vfs.WCC{HasPre: true, HasPost: true}
	var e xdr.Encoder
	sunrpc.ReplySuccess(&e, 1)
	if e.Len() != successHeader {
		t.Errorf("the header has %d bytes", e.Len())
	}
	res.Encode(&e)
	if e.Len() > maxKept || journalHead+maxKept > journalRec {
		t.Errorf("%d bytes", e.Len())
	}
}

// A client that connects from the address of the service is the same when that has moved
// away, or before it came.
func TestClientOfTheMovingAddress(t *testing.T) {
	service, node, other := netip.MustParseAddr("10.77.0.10"), netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2")
	key := func(peer, here netip.Addr) *dupKey { return &dupKey{addr: identity(peer, here), xid: 7, sum: 9} }
	loop := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		a, b *dupKey
		same bool
	}{
		{key(service, service), key(node, service), true},
		{key(node, service), key(service, service), true},
		{key(node, service), key(node, service), true},
		{key(node, service), key(other, service), false},
		{key(loop, loop), key(node, service), false},
		{key(service, service), &dupKey{xid: 8, sum: 9}, false},
	} {
		if c.a.same(c.b) != c.same || c.same && c.a.hash() != c.b.hash() {
			t.Errorf("%v and %v: want %v", c.a, c.b, c.same)
		}
	}
}
