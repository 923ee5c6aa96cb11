package nfsserver

import (
	"errors"
	"net"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// Close lets requests in progress finish and sends their replies.
func TestCloseDrains(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", pattern(1<<20))
	c := dial(t, f.addr)
	h := c.file("file")
	g := newGate(t)
	f.fs.onRead.set(g.wait)
	read := c.startRead(h, 1<<20)
	<-g.entered
	closed := make(chan error, 1)
	go func() { closed <- f.srv.Close() }()
	eventually(t, "nothing is accepted any more", func() bool {
		nc, err := net.Dial("tcp", f.addr)
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	select {
	case err := <-closed:
		t.Fatalf("Close did not wait: %v", err)
	default:
	}
	g.release()
	d := c.must(read)
	var res nfs3.ReadResult
	if err := res.Decode(d); err != nil || res.Count != 1<<20 {
		t.Errorf("READ: %+v, %v", res, err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// Close gives up on a file system that hangs, and everything ends when that
// lets go.
func TestCloseGivesUp(t *testing.T) {
	f := serve(t, func(c *Config) { c.CloseTimeout = 100 * time.Millisecond })
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	g := newGate(t)
	cancelled := make(chan struct{}, 1)
	f.fs.onRead.set(func(op *vfs.Op) error {
		g.entered <- struct{}{}
		<-op.Cancel
		cancelled <- struct{}{}
		<-g.open
		return nil
	})
	read := c.startRead(h, 1)
	<-g.entered
	began := time.Now()
	err := f.srv.Close()
	if err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(began))
	}
	<-cancelled
	if _, err := c.wait(read); err == nil {
		t.Error("the connection is still there")
	}
	g.release()
	eventually(t, "the request has ended", func() bool { return f.srv.Stats().InFlight == 0 })
}

// Readers that wait for a slot, for memory or for their peer end with Close.
func TestCloseEndsWaits(t *testing.T) {
	f := serve(t, func(c *Config) { c.Workers, c.Slots = 1, 8 })
	f.fs.put(t, rootNode, "file", nil)
	c, idle := dial(t, f.addr), dial(t, f.addr)
	root, h := c.root(), c.file("file")
	g := newGate(t)
	f.fs.onGetAttr.set(g.wait)
	for range 50 {
		c.startGetattr(root)
	}
	half := dialFrom(t, "127.0.0.1", f.addr)
	half.Write([]byte{0x80, 0, 1, 0, 7})
	payload := dial(t, f.addr)
	payload.start(nfs3.Program, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: 1 << 20}, pattern(100))
	<-g.entered
	eventually(t, "a reader waits for a slot", func() bool { return f.srv.adm.wq.Len() > 0 })
	closed := make(chan error, 1)
	go func() { closed <- f.srv.Close() }()
	<-idle.ended
	g.release()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestCloseUnused(t *testing.T) {
	f := serve(t, nil)
	s, err := New(Config{Exports: []Export{{Name: "/x", FS: f.fs}}, Arena: f.arena})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); !errors.Is(err, ErrClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
}
