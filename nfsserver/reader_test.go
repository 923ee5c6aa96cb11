package nfsserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
)

// nfsCall returns the record of an NFS call.
func nfsCall(xid, proc uint32, args encoder, payload []byte) []byte {
	head := sunrpc.Call{XID: xid, Prog: nfs3.Program, Vers: nfs3.Version, Proc: proc, Cred: rootCred()}
	return callRecord(&head, args, payload)
}

// The data of a WRITE has a limited time to arrive also if all of it seems to be there,
// because what was received has the mark of another fragment in it.
func TestDribbledFragments(t *testing.T) {
	const size = 7000 // more than is looked at in one piece, and not more than is buffered
	f := serve(t, func(c *Config) { c.ReceiveTimeout = 200 * time.Millisecond })
	f.fs.put(t, rootNode, "file", nil)
	h := dial(t, f.addr).file("file")
	rec := nfsCall(7, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: size}, pattern(size))
	binary.BigEndian.PutUint32(rec, uint32(len(rec)-4-4)) // not the last, and 4 bytes short
	copy(rec[len(rec)-4:], []byte{0x80, 0, 0, 4})
	nc := dialFrom(t, "127.0.0.1", f.addr)
	if _, err := nc.Write(rec); err != nil {
		t.Fatal(err)
	}
	nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := readRecord(nc); err == nil || errors.Is(err, errTimeout(err)) {
		t.Errorf("a slow WRITE was not given up: %v", err)
	}
}

// While a reader waits for memory, the replies to what came before are not kept back.
func TestRepliesBeforeMemory(t *testing.T) {
	dir, state := diskDirs(t)
	check(t, os.WriteFile(filepath.Join(dir, "file"), pattern(10), 0o666))
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0")
	c := dial(t, s.addr)
	h := c.file("file")
	c.getattr(h)
	all := takeAll(s.arena)
	defer func() { s.arena.PutAll(all) }()
	nc := dialFrom(t, "127.0.0.1", s.addr)
	burst := nfsCall(1, nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, nil)
	burst = append(burst, nfsCall(2, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: 4096}, pattern(4096))...)
	if _, err := nc.Write(burst); err != nil {
		t.Fatal(err)
	}
	nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	if rec, err := readRecord(nc); err != nil || binary.BigEndian.Uint32(rec) != 1 {
		t.Errorf("no reply to GETATTR while the WRITE behind it waits for memory: %v", err)
	}
	s.arena.PutAll(all)
	all = nil
	nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	if rec, err := readRecord(nc); err != nil || binary.BigEndian.Uint32(rec) != 2 {
		t.Errorf("no reply to WRITE when there is memory: %v", err)
	}
}

// takeAll allocates what is free in a.
func takeAll(a *alloc.Arena) (all []*alloc.Folio) {
	sc := gfp.Scope{}.Memalloc()
	for {
		f, err := a.Alloc(sc, gfp.NoWait)
		if err != nil {
			return all
		}
		all = append(all, f)
	}
}

// panicFS panics in the first WRITE that may not wait, after it said that it has to.
type panicFS struct {
	*memFS
	tries atomic.Int32
}

func (*panicFS) HeedsNoWait() {}

func (p *panicFS) Write(op *vfs.Op, node vfs.NodeID, off uint64, v *vfs.Vec, how vfs.Stable, res *vfs.WriteResult) error {
	p.tries.Add(1)
	if op.MustWait() {
		panic("on purpose")
	}
	return p.memFS.Write(op, node, off, v, how, res)
}

// A call whose procedure panicked is answered, not carried out again: its data is gone.
func TestPanicOfReader(t *testing.T) {
	p := &panicFS{}
	f := serve(t, func(c *Config) {
		p.memFS = c.Exports[0].FS.(*memFS)
		c.Exports[0].FS = p
	})
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	var res nfs3.WriteResult
	_, err := c.try(nfs3.ProcWrite, &nfs3.WriteArgs{Handle: c.file("file"), Count: 10}, pattern(10), &res)
	if err == nil || p.tries.Load() != 1 {
		t.Errorf("WRITE: %v, %v, %d bytes, %d tries", err, res.Status, res.Count, p.tries.Load())
	}
}

// waitFS has every WRITE wait.
type waitFS struct {
	*memFS
	tries, done atomic.Int32
}

func (*waitFS) HeedsNoWait() {}

func (w *waitFS) Write(op *vfs.Op, node vfs.NodeID, off uint64, v *vfs.Vec, how vfs.Stable, res *vfs.WriteResult) error {
	w.tries.Add(1)
	if op.MustWait() {
		return vfs.ErrJukebox
	}
	w.done.Add(1)
	return w.memFS.Write(op, node, off, v, how, res)
}

// A WRITE that the reader has tried and a worker carries out is still one call: sent again,
// on its connection or another, it is not done again, and the data is all there.
func TestDuplicateOfPutOff(t *testing.T) {
	w := &waitFS{}
	f := serve(t, func(c *Config) {
		w.memFS = c.Exports[0].FS.(*memFS)
		c.Exports[0].FS = w
	})
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	g := newGate(t)
	f.fs.onWrite.set(g.wait)
	rec := nfsCall(7, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: 5000}, pattern(5000))
	one, two := dialFrom(t, "127.0.0.1", f.addr), dialFrom(t, "127.0.0.1", f.addr)
	one.Write(rec)
	<-g.entered
	one.Write(rec)
	two.Write(rec)
	eventually(t, "both are known to be sent again", func() bool { return f.srv.Stats().InFlight == 2 && f.srv.Stats().Duplicates == 1 })
	g.release()
	for _, nc := range []net.Conn{one, two} {
		nc.SetReadDeadline(time.Now().Add(20 * time.Second))
		if reply, err := readRecord(nc); err != nil || statusIn(reply) != nfs3.StatusOK {
			t.Errorf("WRITE: %v", err)
		}
	}
	if _, got := c.read(h, 0, 5000); !bytes.Equal(got, pattern(5000)) {
		t.Error("the data differs")
	}
	if w.tries.Load() != 2 || w.done.Load() != 1 {
		t.Errorf("%d tries, carried out %d times", w.tries.Load(), w.done.Load())
	}
}
