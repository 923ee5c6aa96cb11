package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"loopnfs/internal/vfs"
)

// now returns op, made one that may not wait.
func now(op *vfs.Op) *vfs.Op {
	n := *op
	n.NoWait, n.Waits = true, false
	return &n
}

// A WRITE that may not wait does not wait for the attributes either, which are locked
// while the backing file is touched, and then has changed nothing.
func TestWriteNowWaitsForNobody(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	in, _ := f.inode(node)
	for i := range 100 {
		f.write(node, 0, pattern(1<<20, byte(i)), vfs.FileSync)
		op := now(f.op)
		began, ended := make(chan struct{}), make(chan error)
		go func() {
			close(began)
			_, err := writeAs(f.Store, op, node, 0, pattern(1<<20, byte(i+1)), vfs.Unstable)
			ended <- err
		}()
		<-began
		for start := time.Now(); time.Since(start) < time.Duration(i)*5*time.Microsecond; { // anywhere in the WRITE
		}
		in.am.Lock()
		var err error
		select {
		case err = <-ended:
			in.am.Unlock()
		case <-time.After(2 * time.Second):
			in.am.Unlock()
			t.Fatalf("try %d: the WRITE waits for the attributes: %v", i, <-ended)
		}
		if done := !in.dirty(); op.Waits != done || (err != nil) != done {
			t.Fatalf("try %d: %v, waits: %v, nothing dirty: %v", i, err, op.Waits, done)
		}
	}
}

// Taking away set-uid is a change on the disk.
func TestWriteNowKeepsSuid(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o4777)
	f.write(node, 0, pattern(4096, 1), vfs.FileSync)
	user := f.as(1000, 1000)
	if _, err := f.Access(user, node, all); err != nil { // now it is known that there is no ACL
		t.Fatal(err)
	}
	op := now(user)
	if _, err := writeAs(f.Store, op, node, 0, pattern(4096, 2), vfs.Unstable); err == nil || !op.Waits {
		t.Errorf("WRITE: %v, waits: %v", err, op.Waits)
	}
	if a := f.getattr(node); a.Mode != 0o4777 {
		t.Errorf("mode %o after a WRITE that was put off", a.Mode)
	}
	if _, err := writeAs(f.Store, user, node, 0, pattern(4096, 2), vfs.Unstable); err != nil {
		t.Fatal(err)
	}
	if a := f.getattr(node); a.Mode != 0o777 {
		t.Errorf("mode %o after WRITE", a.Mode)
	}
}

// Who closes a file without a name waits for the disk to forget its data.
func TestNowDropsNoFile(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(4096, 1), vfs.FileSync)
	f.ok(os.Remove(filepath.Join(f.dir, "f")))
	var a vfs.Attr
	op := now(f.op)
	if err := f.GetAttr(op, node, &a); err == nil || !op.Waits {
		t.Errorf("GETATTR: %v, waits: %v", err, op.Waits)
	}
	if in, _ := f.inode(node); f.fds.peek(in) < 0 {
		t.Error("it was closed")
	}
	f.wants(f.GetAttr(f.op, node, &a), vfs.ErrStale)
}

// A look-up that may not wait makes inodes while there is some room, and drops none: that
// closes files. One that may wait makes room again.
func TestLookupNowDropsNothing(t *testing.T) {
	f := newFixture(t, options{inodes: MinInodes, noStart: true})
	for i := range 4 * MinInodes {
		f.ok(os.WriteFile(filepath.Join(f.dir, fmt.Sprint("f", i)), nil, 0o644))
	}
	f.Lookup(f.op, vfs.RootID, "f0") // opens the directory
	first := f.nodes.last
	waits := 0
	for i := range 4 * MinInodes {
		op := now(f.op)
		e, err := f.Lookup(op, vfs.RootID, fmt.Sprint("f", i))
		if op.Waits {
			waits++
			continue
		}
		f.ok(err)
		f.nodes.forget(e.Node, 1) // without room for others
	}
	if waits == 0 || f.nodes.last == first {
		t.Errorf("%d of %d look-ups would wait: want some, and not all", waits, 4*MinInodes)
	}
	if n := len(f.nodes.all()); n > 2*MinInodes || n <= MinInodes {
		t.Errorf("%d inodes in memory, the limit is %d and as much again", n, MinInodes)
	}
	e, err := f.Lookup(f.op, vfs.RootID, fmt.Sprint("f", 4*MinInodes-1))
	f.ok(err)
	f.Forget(e.Node, 1)
	if n := len(f.nodes.all()); n > MinInodes+1 {
		t.Errorf("%d inodes in memory after a look-up that may wait, the limit is %d", n, MinInodes)
	}
}

// With a smaller limit inodes go at once, but for those that somebody refers to.
func TestSetMaxInodes(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	const files, held = 4 * maxEvict, 10
	for i := range files {
		name := fmt.Sprint("f", i)
		f.ok(os.WriteFile(filepath.Join(f.dir, name), nil, 0o644))
		e, err := f.Lookup(f.op, vfs.RootID, name)
		f.ok(err)
		if i >= held {
			f.Forget(e.Node, 1)
		}
	}
	if n := len(f.nodes.all()); n != files+1 {
		t.Errorf("%d inodes in memory, want %d and the root", n, files)
	}
	f.SetMaxInodes(1)
	if n := len(f.nodes.all()); n != MinInodes {
		t.Errorf("%d inodes in memory with a smaller limit, want %d", n, MinInodes)
	}
}
