package nfsclient

import (
	"bytes"
	"context"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// theirs makes a stable file on the fake server, as another client would.
func (f *fake) theirs(name string, data []byte) *fakeFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.add(vfs.TypeRegular)
	f.files[0].names[name] = n
	x := f.files[n]
	x.data = append([]byte(nil), data...)
	x.stable = append([]byte(nil), data...)
	x.attr.Size = uint64(len(data))
	return x
}

// Pages are sent as a whole: one that is known to be old is not.
func TestWriteIntoOutdatedPage(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.AttrTimeout = time.Hour })
	old := bytes.Repeat([]byte("o"), 1000)
	x := f.theirs("f", old)
	e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
	must(t, b.c.Open(&b.op, e.Node, true))
	b.read(e.Node, 0, 1000) // cached
	f.set(func() {          // another client writes 0..99, and closes
		copy(x.data, bytes.Repeat([]byte("T"), 100))
		copy(x.stable, x.data)
		f.touch(x)
	})
	ino, _ := b.c.tab.get(e.Node)
	ino.expire()
	b.attr(e.Node) // stat(2): the client knows now
	b.write(e.Node, 500, []byte("ours"))
	must(t, b.c.Flush(&b.op, e.Node))
	want := append(bytes.Repeat([]byte("T"), 100), old[100:]...)
	copy(want[500:], "ours")
	b.checkStable(f, "f", want)
	b.c.Close(e.Node)
}

// What others have cut off does not come back with what is written behind it.
func TestWriteBehindTheirTruncation(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.AttrTimeout = time.Hour })
	x := f.theirs("f", bytes.Repeat([]byte("o"), 1000))
	e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
	must(t, b.c.Open(&b.op, e.Node, true))
	b.read(e.Node, 0, 1000)
	f.set(func() {
		x.data, x.stable = x.data[:10:10], x.stable[:10:10]
		x.attr.Size = 10
		f.touch(x)
	})
	ino, _ := b.c.tab.get(e.Node)
	ino.expire()
	if a := b.attr(e.Node); a.Size != 10 {
		t.Fatal(a.Size)
	}
	b.write(e.Node, 500, []byte("ours"))
	must(t, b.c.Flush(&b.op, e.Node))
	want := append(bytes.Repeat([]byte("o"), 10), make([]byte, 490)...)
	want = append(want, "ours"...)
	b.checkStable(f, "f", want)
	b.c.Close(e.Node)
}

// A rename that fails leaves what it was to replace, though that is open here.
func TestRefusedRenameKeepsTarget(t *testing.T) {
	f, b := fakeBed(t, nil)
	b.create("a")
	n := b.create("b")
	must(t, b.c.Open(&b.op, n, false))
	f.set(func() {
		renames := 0
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcRename {
				if renames++; renames == 2 {
					return noSpace
				}
			}
			return serve
		}
	})
	_, _, err := b.c.Rename(&b.op, vfs.RootID, "a", vfs.RootID, "b")
	wantErrno(t, err, syscall.ENOSPC)
	f.set(func() {
		f.before = nil
		if _, ok := f.files[0].names["b"]; !ok {
			t.Errorf("b is gone: %v", f.files[0].names)
		}
	})
	b.c.Close(n)
	f.set(func() {
		if len(f.files[0].names) != 2 {
			t.Errorf("after the last close there is %v", f.files[0].names)
		}
	})
}

// A caller that is killed in the middle of an unlink does not take the file from others.
func TestKilledUnlinkOfOpenFile(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	must(t, b.c.Open(&b.op, n, true))
	cancel := make(chan struct{})
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcLookup {
				return late
			}
			return serve
		}
	})
	op := vfs.Op{Cancel: cancel}
	res := make(chan error)
	go func() {
		_, err := b.c.Remove(&op, vfs.RootID, "f")
		res <- err
	}()
	eventually(t, "LOOKUP", func() bool { return f.counted(nfs3.ProcLookup) == 1 })
	close(cancel)
	wantErrno(t, <-res, syscall.EINTR)
	f.set(func() { f.before = nil })
	f.sendLate()
	time.Sleep(100 * time.Millisecond)
	if f.counted(nfs3.ProcRemove) != 0 {
		t.Errorf("REMOVE of a file that is open here")
	}
	b.c.Close(n)
}

// Unmount does not outlive its context, also if there is a hidden file on a server that is gone.
func TestUnmountWithHiddenFile(t *testing.T) {
	f := startFake(t)
	mem := testMemory(t, 8<<20)
	b := &bed{t: t, c: mountFor(t, mem, f.addr(), "/x", nil), mem: mem}
	mem.rec.Start(mem.cache, mem.graph, b.c.BDI())
	n := b.create("f")
	must(t, b.c.Open(&b.op, n, true))
	_, err := b.c.Remove(&b.op, vfs.RootID, "f")
	must(t, err)
	f.set(func() { f.before = func(*fakeCall) verdict { return ignore } })
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	over := make(chan error, 1)
	go func() { over <- b.c.Unmount(ctx) }()
	select {
	case <-over:
	case <-time.After(5 * time.Second):
		t.Error("it is not over 4 s after the end of its context")
		f.set(func() { f.before = nil })
		f.cutAll()
		<-over
	}
	mem.stop()
}

// A server without READDIRPLUS is asked for READDIR.
func TestNoReaddirplus(t *testing.T) {
	f, b := fakeBed(t, nil)
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcReaddirplus || c.proc == nfs3.ProcReaddir {
				return garbageArgs // and after that, what we put there
			}
			return serve
		}
		f.after = func(c *fakeCall, r []byte) []byte {
			switch c.proc {
			case nfs3.ProcReaddirplus:
				r[len(r)-1] = byte(sunrpc.ProcUnavail)
			case nfs3.ProcReaddir:
				r[len(r)-1] = byte(sunrpc.Success)
				e := xdr.Encoder{Buf: r}
				(&nfs3.ReaddirResult{}).Encode(&e)
				e.Bool(false) // no entry
				e.Bool(true)  // the end
				return setMark(e.Buf)
			}
			return r
		}
	})
	_, eof, err := b.c.ReadDir(&b.op, vfs.RootID, 0, vfs.Verifier{}, &listing{})
	if err != nil || !eof {
		t.Errorf("%v, at the end: %v", err, eof)
	}
}

// A server that cannot carry out a WRITE now is asked again.
func TestSystemErrIsTriedAgain(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	hits := 0
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcWrite && hits == 0 {
				hits++
				return garbageArgs
			}
			return serve
		}
		f.after = func(c *fakeCall, r []byte) []byte {
			if c.proc == nfs3.ProcWrite && hits == 1 {
				hits++
				r[len(r)-1] = 5 // SYSTEM_ERR
			}
			return r
		}
	})
	b.write(n, 0, []byte("data"))
	if err := b.c.Sync(&b.op, n); err != nil {
		t.Errorf("sync: %v", err)
	}
	b.checkStable(f, "f", []byte("data"))
}

// Who makes a file can write to it, whatever its mode, though it is another user's on a server
// that squashes.
func TestCreateReadOnlySquashed(t *testing.T) {
	f, b := fakeBed(t, nil)
	f.set(func() {
		f.after = func(c *fakeCall, r []byte) []byte {
			if c.proc == nfs3.ProcAccess { // mode 0444: the server says READ only
				r[len(r)-1] = vfs.AccessRead
			}
			return r
		}
	})
	op := vfs.Op{Cred: vfs.Cred{UID: 1000, GID: 1000}}
	e, _, err := b.c.Create(&op, vfs.RootID, "f", vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: 0o444}, vfs.Verifier{})
	must(t, err)
	var a vfs.Attr
	f.set(func() {
		x := f.files[1]
		x.attr.UID, x.attr.Mode = 65534, 0o444
		f.touch(x)
		a = x.attr
	})
	ino, _ := b.c.tab.get(e.Node)
	b.c.update(ino, &a, b.c.seq.Add(1)) // as if CREATE had returned it
	must(t, b.c.Open(&op, e.Node, true))
	if err := writeAt(b.c, &op, e.Node, 0, []byte("x")); err != nil {
		t.Errorf("write to the file just created: %v", err)
	}
	b.c.Close(e.Node)
}

// Of two calls, the one that begins later may be carried out earlier.
func TestAttributesDoNotGoBack(t *testing.T) {
	_, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	old := b.attr(n)
	now := old
	now.Size, now.Ctime.Sec, now.Mtime.Sec = 500, old.Ctime.Sec+5, old.Mtime.Sec+5
	a := b.c.seq.Add(1)
	bb := b.c.seq.Add(1)
	b.c.update(ino, &now, a)  // the reply to A, which the server carried out last
	b.c.update(ino, &old, bb) // the reply to B, which it carried out before
	if got := b.attr(n); got.Size != 500 {
		t.Errorf("size %d: older attributes, that were on their way when newer ones came, were taken", got.Size)
	}
}

// The name under which an open file is hidden is busy.
func TestRemoveHiddenName(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	must(t, b.c.Open(&b.op, n, true))
	b.write(n, 0, []byte("x"))
	must(t, b.c.Flush(&b.op, n))
	_, err := b.c.Remove(&b.op, vfs.RootID, "f")
	must(t, err)
	var name string
	f.set(func() { name = f.hidden()[0] })
	_, err = b.c.Remove(&b.op, vfs.RootID, name)
	wantErrno(t, err, syscall.EBUSY)
	b.c.Close(n)
}

// Any time that others have given a file is one.
func TestOddNanoseconds(t *testing.T) {
	f, b := fakeBed(t, nil)
	x := f.theirs("f", []byte("x"))
	f.set(func() { x.attr.Atime = vfs.Time{Sec: 1, Nsec: 0xfffffff0} })
	_, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	if err != nil {
		t.Errorf("lookup: %v after %d reconnects", err, b.c.Stats().Reconnects)
	}
}

// link(2) changes the attributes of a file, and does not hide that others have, too.
func TestLinkShowsTheirChange(t *testing.T) {
	f, b := fakeBed(t, nil)
	x := f.theirs("f", []byte("old data"))
	e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
	must(t, b.c.Open(&b.op, e.Node, false))
	b.read(e.Node, 0, 8)
	b.c.Close(e.Node)
	f.set(func() { copy(x.data, "new data"); f.touch(x) })
	_, _, err = b.c.Link(&b.op, e.Node, vfs.RootID, "g")
	must(t, err)
	must(t, b.c.Open(&b.op, e.Node, false))
	if got := b.read(e.Node, 0, 8); string(got) != "new data" {
		t.Errorf("opened after they closed, read %q", got)
	}
	b.c.Close(e.Node)
}

// Who opens a file reads what others had written when they closed it, also while somebody
// here writes to another part of it.
func TestOpenWhileOthersWriteHere(t *testing.T) {
	f, b := fakeBed(t, nil)
	x := f.theirs("f", pattern(1, 40960))
	e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
	ino, _ := b.c.tab.get(e.Node)
	must(t, b.c.Open(&b.op, e.Node, true)) // a writer, here
	b.read(e.Node, 0, 40960)
	f.set(func() { copy(x.data, "theirs"); f.touch(x) })
	b.write(e.Node, 5*4096, []byte("ours"))
	must(t, b.c.writeOut(&b.op, ino))
	for i := range 3 { // the writer goes on, a reader opens the file
		b.write(e.Node, 6*4096, []byte{byte(i)})
		must(t, b.c.Open(&b.op, e.Node, false))
		if got := b.read(e.Node, 0, 6); string(got) != "theirs" {
			t.Errorf("open %d, read %q", i, got)
		}
		b.c.Close(e.Node)
	}
	b.c.Close(e.Node)
}

// A call that begins while the transport ends is over once.
func TestSubmitWhileClosing(t *testing.T) {
	f := startFake(t)
	for i := range 40 {
		mem := testMemory(t, 4<<20)
		c := mountFor(t, mem, f.addr(), "/x", nil)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for range 3000 {
					op := rootOp(mem)
					c.fetchAttr(&op, must1(c.tab.get(vfs.RootID)))
					c.t.mu.Lock()
					down := c.t.down
					c.t.mu.Unlock()
					if down {
						for range 200 {
							c.fetchAttr(&op, must1(c.tab.get(vfs.RootID)))
						}
						return
					}
				}
			})
		}
		time.Sleep(time.Millisecond)
		c.t.close()
		over := make(chan struct{})
		go func() { wg.Wait(); close(over) }()
		select {
		case <-over:
		case <-time.After(5 * time.Second):
			buf := make([]byte, 1<<16)
			t.Fatalf("round %d: a call never returned\n%s", i, buf[:runtime.Stack(buf, true)])
		}
		c.flusher.Stop()
		c.worker.Wait()
		mem.stop()
	}
}

func must1(i *inode, _ error) *inode { return i }

// A server may drop a call that was sent again while it is at work on the first one, and reply
// to a connection that is gone.
func TestDuplicateIsDroppedByServer(t *testing.T) {
	defer func(d time.Duration) { resendAfter = d }(resendAfter)
	resendAfter = 100 * time.Millisecond
	f, b := fakeBed(t, nil)
	n := b.create("f")
	writes := 0
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc != nfs3.ProcWrite {
				return serve
			}
			switch writes++; writes {
			case 1:
				return cut
			case 2:
				return ignore
			}
			return serve
		}
	})
	b.write(n, 0, []byte("x"))
	over := make(chan error, 1)
	go func() {
		op := rootOp(b.mem)
		over <- b.c.Sync(&op, n)
	}()
	select {
	case err := <-over:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Errorf("after %d WRITEs fsync waits on", f.counted(nfs3.ProcWrite))
		f.cutAll()
		<-over
	}
}
