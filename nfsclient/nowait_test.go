package nfsclient

import (
	"bytes"
	"testing"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// A server that answers nothing more is not waited for, nor memory, nor others: what the
// cache has is told, and what it has not is left to a caller that may wait.
func TestNoWait(t *testing.T) {
	const size = 64 << 10
	f := startFake(t)
	b := newBed(t, 8<<20, f.addr(), "/", func(c *Config) { c.AttrTimeout = time.Hour; c.ReadAhead = -1 })
	n, other := b.create("f"), b.create("other")
	want := pattern(1, size)
	b.write(n, 0, want)
	b.sync(n)
	b.write(other, 0, want)
	b.sync(other)
	ino, _ := b.c.tab.get(n)
	ino2, _ := b.c.tab.get(other)
	ino2.m.InvalidateClean()
	handle, err := b.c.Handle(n, nil)
	must(t, err)
	f.set(func() { f.before = func(*fakeCall) verdict { return ignore } })

	now := func(what string, waits bool, call func(op *vfs.Op) error) {
		t.Helper()
		op := b.op
		op.NoWait = true
		done := make(chan error, 1)
		go func() { done <- call(&op) }()
		select {
		case err := <-done:
			if op.Waits != waits || (err == nil) == waits {
				t.Errorf("%s: %v, has to wait: %v, want %v", what, err, op.Waits, waits)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s waits", what)
		}
	}
	read := func(n vfs.NodeID, off int) func(*vfs.Op) error {
		return func(op *vfs.Op) error {
			got, err := readAt(b.c, op, n, off, 8192)
			if err == nil && !bytes.Equal(got, want[off:off+8192]) {
				t.Errorf("wrong data at %d", off)
			}
			return err
		}
	}
	write := func(n vfs.NodeID, off, count int) func(*vfs.Op) error {
		return func(op *vfs.Op) error { return writeAt(b.c, op, n, off, pattern(2, count)) }
	}
	var attr vfs.Attr
	getattr := func(op *vfs.Op) error { return b.c.GetAttr(op, n, &attr) }

	now("attributes that are known", false, getattr)
	now("cached pages", false, read(n, 4096))
	now("pages that are not cached", true, read(other, 4096))
	now("a write to cached pages", false, write(n, 100, 5000))
	copy(want[100:], pattern(2, 5000))
	now("cached pages, again", false, read(n, 0))
	now("a write of whole pages that are not cached", false, write(n, size, 8192))
	want = append(want, pattern(2, 8192)...)
	now("a write to a part of a page that is not cached", true, write(other, 8192, 4097))
	if n := ino2.m.Len(); n != 0 {
		t.Errorf("a write that had to wait left %d pages", n)
	}
	now("a write that is to be stable", true, func(op *vfs.Op) error {
		return b.c.Write(op, n, 0, &vfs.Vec{Bufs: [][]byte{want[:10]}}, vfs.FileSync, &vfs.WriteResult{})
	})
	now("a name", true, func(op *vfs.Op) error {
		_, err := b.c.Lookup(op, vfs.RootID, "f")
		return err
	})
	now("rights", true, func(op *vfs.Op) error {
		_, err := b.c.Access(op, n, vfs.AccessRead)
		return err
	})
	now("a handle", true, func(op *vfs.Op) error {
		_, err := b.c.ByHandle(op, handle)
		return err
	})
	setStale := func(stale bool) {
		ino.mu.Lock()
		ino.stale = stale
		ino.mu.Unlock()
	}
	setStale(true)
	pages := ino.m.Len()
	now("a file that was changed elsewhere", true, read(n, 0))
	if n := ino.m.Len(); n != pages {
		t.Errorf("a read that had to wait left %d pages of %d", n, pages)
	}
	setStale(false)
	must(t, ino.lockFor(&vfs.Op{}))
	now("a write to a file that somebody else has locked", true, write(n, 0, 10))
	ino.unlock(gfp.Scope{})
	taken := make([]*alloc.Folio, b.mem.arena.Free()-b.mem.arena.Watermarks().Low)
	must(t, b.mem.arena.AllocInto(gfp.Scope{}, gfp.NoWait, taken[:len(taken)/2]))
	must(t, b.mem.arena.AllocInto(gfp.Scope{}, gfp.NoWait, taken[len(taken)/2:]))
	now("a write that others would lack memory for", true, write(n, size+8192, 4096))
	b.mem.arena.PutAll(taken)
	thresh, _ := b.mem.dom.Thresholds()
	for i := 2; b.c.BDI().Pages() < thresh; i++ {
		now("a write below the dirty limit", false, write(n, size+i*4096, 4096))
		want = append(want, pattern(2, 4096)...)
	}
	now("a write above it", true, write(n, 0, 4096))
	ino.expire()
	now("attributes that are too old", true, getattr)

	f.set(func() { f.before = nil })
	f.cutAll()
	b.sync(n)
	if got := f.content("f"); !bytes.Equal(got, want) {
		t.Errorf("the server has %d bytes, want %d, or others", len(got), len(want))
	}
	if got := f.content("other"); !bytes.Equal(got, pattern(1, size)) {
		t.Error("a write that had to wait was done in part")
	}
	if f.counted(nfs3.ProcLookup) != 0 {
		t.Error("a call was sent for somebody who may not wait")
	}
}
