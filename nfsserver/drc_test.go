package nfsserver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
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
	return reply, nfs3.Status(binary.BigEndian.Uint32(reply[successHeader:]))
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
	if _, st := f.ask(conns[0], rec); st != nfs3.StatusOK || writes.Load() != 2 {
		t.Errorf("a WRITE that is over: %v, written %d times", st, writes.Load())
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

// A client that begins with the same XID each time it runs is another one, if the
// one before had all it asked for.
func TestDuplicateXIDOfAnotherClient(t *testing.T) {
	f := serve(t, nil)
	root := dial(t, f.addr).root()
	rec := sameCall(1, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	for range 3 {
		f.fs.put(t, rootNode, "a", nil)
		conns := f.srv.Stats().Conns
		nc := f.connect()
		if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
			t.Fatal(st)
		}
		nc.Close()
		eventually(t, "the connection is gone", func() bool { return f.srv.Stats().Conns == conns })
		if _, err := f.fs.Lookup(&vfs.Op{}, rootNode, "a"); err != syscall.ENOENT {
			t.Fatalf("not carried out: %v", err)
		}
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

// A client that closes a connection has had the replies that it has acknowledged.
func TestAcknowledged(t *testing.T) {
	for _, early := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		check(t, err)
		nc, err := l.Accept()
		check(t, err)
		defer nc.Close()
		c := &conn{nc: nc.(*net.TCPConn)}
		if early {
			client.Close()
		}
		if _, err := nc.Write([]byte("reply")); err != nil {
			t.Fatal(err)
		}
		if !early {
			io.ReadFull(client, make([]byte, 5))
			client.Close()
		}
		if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal(err)
		}
		if c.acknowledged() == early {
			t.Errorf("closed before the reply: %t; acknowledged: %t", early, !early)
		}
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

// The oldest replies make room for new ones.
func TestDuplicatesAreForgotten(t *testing.T) {
	f := serve(t, func(c *Config) { c.StateDir = t.TempDir() })
	root := dial(t, f.addr).root()
	nc := f.connect()
	rec := sameCall(1, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	for round := range 2 {
		f.fs.put(t, rootNode, "a", nil)
		if _, st := f.ask(nc, rec); st != nfs3.StatusOK {
			t.Fatalf("round %d: %v", round, st)
		}
		for i := range uint32(keptReplies) {
			f.ask(nc, sameCall(1000+i, nfs3.ProcRemove, removeArgs(root, "b"), nil))
		}
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
					if st := nfs3.Status(binary.BigEndian.Uint32(reply[successHeader:])); st != nfs3.StatusOK {
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
	if _, err := New(f.srv.cfg); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a second server on the same state: %v", err)
	}
	cfg := f.srv.cfg
	if err := f.srv.Close(); err != nil {
		t.Fatal(err)
	}
	f.srv, f.addr = start(t, cfg)
	if again, _ := f.ask(f.connect(), rec); !bytes.Equal(again, first) {
		t.Errorf("got %x, want %x", again, first)
	}
}

// What is damaged is as if it had never been there.
func TestDamagedJournal(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, journalName)
	good := journaled{seq: 5, when: 1 << 40, key: dupKey{xid: 3, proc: nfs3.ProcRemove}, port: 9, reply: pattern(100)}
	var rec [journalRec]byte
	good.encode(&rec)
	for what, file := range map[string][]byte{
		"empty":        nil,
		"too short":    rec[:100],
		"one record":   rec[:],
		"all the same": bytes.Repeat(rec[:], keptReplies),
		"noise":        pattern(keptReplies * journalRec),
		"too long":     make([]byte, 2*keptReplies*journalRec),
	} {
		if err := os.WriteFile(name, file, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(dir, nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := newDRC(8, j); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		j.close()
		if st, err := os.Stat(name); err != nil || st.Size() != keptReplies*journalRec {
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
	if _, err := openJournal(filepath.Join(dir, "nowhere"), nil); err == nil {
		t.Error("a journal in a directory that is not there")
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
