package nfsclient

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"loopnfs/alloc/gfp"
	"loopnfs/fusefs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// A reply that is being received when its call becomes overdue.
func TestOverdueWhileReceiving(t *testing.T) {
	before := resendAfter
	t.Cleanup(func() { resendAfter = before })
	resendAfter = 200 * time.Millisecond
	f, b := fakeBed(t, nil)
	f.theirs("f", pattern(1, 200<<10))
	e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
	f.set(func() {
		reads := 0
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcRead {
				switch reads++; reads {
				case 1:
					return cut
				case 2:
					return late
				}
			}
			return serve
		}
	})
	over := make(chan []byte, 1)
	go func() {
		op := rootOp(b.mem)
		got, _ := readAt(b.c, &op, e.Node, 0, 100<<10)
		over <- got
	}()
	var reply []byte
	var conn net.Conn
	eventually(t, "second READ", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.late) == 1 && len(f.conns) == 1 {
			reply = f.late[0]
			for c := range f.conns {
				conn = c
			}
		}
		return reply != nil
	})
	tr := b.c.t
	conn.Write(reply[:len(reply)/2])
	time.Sleep(50 * time.Millisecond) // the reader is in takeRead
	tr.sendMu.Lock()                  // somebody is in writev: the server does not take what is sent
	inQueue := func() int { tr.mu.Lock(); defer tr.mu.Unlock(); return tr.nqueue }
	for end := time.Now().Add(4 * resendAfter); inQueue() == 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	conn.Write(reply[len(reply)/2:])
	got := <-over
	if !bytes.Equal(got, pattern(1, 200<<10)[:len(got)]) {
		t.Errorf("wrong data")
	}
	time.Sleep(100 * time.Millisecond)
	tr.mu.Lock()
	for i := range tr.nqueue {
		s := tr.queue[(tr.head+i)%len(tr.queue)]
		if s.state != queued {
			t.Errorf("slot %d is in the queue and its state is %d: its call is over", s.index, s.state)
		}
	}
	tr.mu.Unlock()
	tr.sendMu.Unlock()
	tr.kickSender()
	time.Sleep(200 * time.Millisecond)
	f.set(func() { f.late = nil })
}

// A call that was given up, sent again after a reconnect, and dropped by the server.
func TestGoneOverdueSlot(t *testing.T) {
	before := resendAfter
	t.Cleanup(func() { resendAfter = before })
	resendAfter = 100 * time.Millisecond
	f, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	ino.expire()
	tr := b.c.t
	total := len(tr.free) + len(tr.reserve)
	calls := 0
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcGetAttr {
				switch calls++; calls {
				case 1:
					return cut
				case 2:
					return ignore // RC_DROPIT
				}
			}
			return serve
		}
	})
	cancel := make(chan struct{})
	res := make(chan error, 1)
	go func() {
		op := vfs.Op{Scope: gfp.For(nil), Cancel: cancel}
		var a vfs.Attr
		res <- b.c.GetAttr(&op, n, &a)
	}()
	eventually(t, "second", func() bool { return f.counted(nfs3.ProcGetAttr) >= 2 })
	close(cancel)
	wantErrno(t, <-res, syscall.EINTR)
	time.Sleep(20 * resendAfter)
	if now := len(tr.free) + len(tr.reserve); now != total {
		t.Errorf("%d of %d slots are free %v after the call was given up", now, total, 20*resendAfter)
	}
}

// A rename is refused; somebody has made a file under the name meanwhile.
func TestShowTargetClobbers(t *testing.T) {
	f, b := fakeBed(t, nil)
	b.create("a")
	n := b.create("b")
	must(t, b.c.Open(&b.op, n, false))
	theirs := 0
	f.set(func() {
		renames := 0
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcRename {
				if renames++; renames == 2 {
					theirs = f.add(vfs.TypeRegular) // another client creates b, which there is none of
					f.files[0].names["b"] = theirs
					return noSpace
				}
			}
			return serve
		}
	})
	_, _, err := b.c.Rename(&b.op, vfs.RootID, "a", vfs.RootID, "b")
	wantErrno(t, err, syscall.ENOSPC)
	b.c.Close(n)
	f.set(func() {
		f.before = nil
		if f.files[0].names["b"] != theirs {
			t.Errorf("a rename that failed has replaced the file that another client made: %v", f.files[0].names)
		}
	})
}

// ENOENT from the RENAME: the source is gone.
func TestRenameSourceGone(t *testing.T) {
	f, b := fakeBed(t, nil)
	b.create("a")
	n := b.create("b")
	must(t, b.c.Open(&b.op, n, false))
	f.set(func() {
		renames := 0
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcRename {
				if renames++; renames == 2 {
					delete(f.files[0].names, "a") // another client
				}
			}
			return serve
		}
	})
	_, _, err := b.c.Rename(&b.op, vfs.RootID, "a", vfs.RootID, "b")
	wantErrno(t, err, syscall.ENOENT)
	b.c.Close(n)
	f.set(func() {
		f.before = nil
		if _, ok := f.files[0].names["b"]; !ok {
			t.Errorf("a rename failed with ENOENT, and its target is lost: %v", f.files[0].names)
		}
	})
}

// A mv that is killed while there is no connection.
func TestRenameKilledInOutage(t *testing.T) {
	f, b := fakeBed(t, nil)
	b.create("a")
	n := b.create("b")
	must(t, b.c.Open(&b.op, n, false))
	renames := 0
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcRename {
				if renames++; renames >= 2 {
					return ignore // it has not reached the server
				}
			}
			return serve
		}
	})
	cancel := make(chan struct{})
	res := make(chan error, 1)
	go func() {
		op := vfs.Op{Scope: gfp.For(nil), Cancel: cancel}
		_, _, err := b.c.Rename(&op, vfs.RootID, "a", vfs.RootID, "b")
		res <- err
	}()
	eventually(t, "second RENAME", func() bool { return f.counted(nfs3.ProcRename) == 2 })
	close(cancel)
	wantErrno(t, <-res, syscall.EINTR)
	f.set(func() { f.before = nil })
	f.cutAll()
	time.Sleep(300 * time.Millisecond)
	b.attr(n)
	b.c.Close(n)
	f.set(func() {
		if f.files[0].names["b"] == 0 && len(f.hidden()) == 0 {
			t.Errorf("the rename was not carried out, and its target is lost: %v", f.files[0].names)
		}
	})
}

// An outdated page that was sent, and is not committed.
func TestWriteIntoOutdatedUnstablePage(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.AttrTimeout = time.Hour })
	x := f.theirs("log", []byte("zero\n"))
	e, err := b.c.Lookup(&b.op, vfs.RootID, "log")
	must(t, err)
	must(t, b.c.Open(&b.op, e.Node, true))
	ino, _ := b.c.tab.get(e.Node)
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcCommit {
				return late // a slow disk
			}
			return serve
		}
	})
	appendTo := func(s string) {
		v := vfs.Vec{Bufs: [][]byte{[]byte(s)}}
		var res vfs.WriteResult
		must(t, b.c.Write(&b.op, e.Node, vfs.AtEnd, &v, vfs.Unstable, &res))
	}
	appendTo("one\n")
	must(t, b.c.writeOut(&b.op, ino))
	f.set(func() { // another client appends, and closes
		x.data = append(x.data, "two\n"...)
		x.attr.Size = uint64(len(x.data))
		f.touch(x)
	})
	ino.expire()
	over := make(chan struct{})
	go func() {
		appendTo("three\n")
		close(over)
	}()
	select {
	case <-over:
	case <-time.After(time.Second): // it may wait for the COMMIT
	}
	f.set(func() { f.before = nil })
	f.sendLate()
	<-over
	must(t, b.c.Flush(&b.op, e.Node))
	if got := f.content("log"); string(got) != "zero\none\ntwo\nthree\n" {
		t.Errorf("the log is %q", got)
	}
	b.c.Close(e.Node)
}

// An outdated page that was not clean is dropped when it is.
func TestSuspectPageStays(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.AttrTimeout = time.Hour })
	x := f.theirs("f", pattern(1, 8192))
	e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
	ino, _ := b.c.tab.get(e.Node)
	must(t, b.c.Open(&b.op, e.Node, true))
	b.read(e.Node, 0, 8192)
	b.write(e.Node, 0, []byte("ours"))
	must(t, b.c.writeOut(&b.op, ino)) // unstable
	f.set(func() { copy(x.data[100:], "theirs"); f.touch(x) })
	must(t, b.c.Open(&b.op, e.Node, false)) // finds out
	b.c.Close(e.Node)
	b.write(e.Node, 4096, []byte("more")) // the writer goes on
	must(t, b.c.commitWait(b.op.Scope, "", ino, nil))
	for i := range 3 {
		if p := ino.m.Get(0); p != nil {
			if s := ino.m.State(p); s != 0 {
				t.Fatal("page 0 is in state", s)
			}
			b.c.arena.Put(p)
		}
		must(t, b.c.Open(&b.op, e.Node, false))
		if got := b.read(e.Node, 100, 6); string(got) != "theirs" {
			t.Errorf("open %d: a clean page of before: %q", i, got)
		}
		b.c.Close(e.Node)
	}
	b.c.Close(e.Node)
}

// link(2) while something is dirty.
func TestLinkWhileDirty(t *testing.T) {
	for _, link := range []bool{false, true} {
		f, b := fakeBed(t, func(c *Config) { c.AttrTimeout = time.Hour })
		x := f.theirs("f", pattern(1, 40960))
		e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
		must(t, err)
		must(t, b.c.Open(&b.op, e.Node, true))
		b.read(e.Node, 0, 40960)
		b.write(e.Node, 5*4096, []byte("ours"))
		f.set(func() { copy(x.data, "theirs"); f.touch(x) })
		if link {
			_, _, err = b.c.Link(&b.op, e.Node, vfs.RootID, "g")
			must(t, err)
		}
		must(t, b.c.Flush(&b.op, e.Node))
		b.c.Close(e.Node)
		must(t, b.c.Open(&b.op, e.Node, false))
		if got := b.read(e.Node, 0, 6); string(got) != "theirs" {
			t.Errorf("link %v: opened after they closed, read %q", link, got)
		}
		b.c.Close(e.Node)
	}
}

// O_CREAT of a file that another user has made just before.
func TestCreateOfExisting(t *testing.T) {
	f, b := fakeBed(t, nil)
	f.set(func() {
		f.after = func(c *fakeCall, r []byte) []byte {
			if c.proc == nfs3.ProcAccess && c.cred.UID == 2 {
				r[len(r)-1] = 0
			}
			return r
		}
	})
	x := f.theirs("f", []byte("secret"))
	f.set(func() { x.attr.UID, x.attr.Mode = 1, 0o600 })
	one := vfs.Op{Scope: gfp.For(nil), Cred: vfs.Cred{UID: 1}}
	e, err := b.c.Lookup(&one, vfs.RootID, "f")
	must(t, err)
	must(t, b.c.Open(&one, e.Node, false))
	_, err = readAt(b.c, &one, e.Node, 0, 6)
	must(t, err)
	two := vfs.Op{Scope: gfp.For(nil), Cred: vfs.Cred{UID: 2}}
	if _, _, err = b.c.Create(&two, vfs.RootID, "f", vfs.Unchecked, &vfs.SetAttr{SetMode: true, Mode: 0o644}, vfs.Verifier{}); err != nil {
		t.Skip(err)
	}
	if b.c.Open(&two, e.Node, false) != nil {
		return
	}
	got, err := readAt(b.c, &two, e.Node, 0, 6)
	if err == nil {
		t.Errorf("user 2 reads %q of a file that is not his", got)
	}
}

// The end of the file after an append that was lost.
func TestAppendAfterLoss(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	var file vfs.File
	op := vfs.Op{Scope: gfp.For(nil), File: &file}
	must(t, b.c.Open(&op, n, true))
	appendTo := func(s string) {
		v := vfs.Vec{Bufs: [][]byte{[]byte(s)}}
		var res vfs.WriteResult
		must(t, b.c.Write(&op, n, vfs.AtEnd, &v, vfs.Unstable, &res))
	}
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcWrite {
				return noSpace
			}
			return serve
		}
	})
	appendTo("lost")
	wantErrno(t, b.c.Sync(&op, n), syscall.ENOSPC)
	f.set(func() { f.before = nil })
	appendTo("kept")
	must(t, b.c.Sync(&op, n))
	if got := f.content("f"); string(got) != "kept" {
		t.Errorf("the file is %q", got)
	}
	b.c.Close(n)
}

// An append that is in the cache is not made again when a signal interrupts its sync.
func TestDoorAppendSyncSignal(t *testing.T) {
	f, b := fakeBed(t, nil)
	f.theirs("log", []byte("zero\n"))
	dir := tempDir(t)
	door, err := fusefs.MountFS(fusefs.DoorConfig{FS: b.c, Mountpoint: dir, FsName: "test"})
	must(t, err)
	t.Cleanup(func() {
		if err := door.Unmount(); err != nil {
			t.Error(err)
			door.Abort()
		}
		door.Wait()
	})
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcCommit && f.count[nfs3.ProcCommit] == 1 {
				return late
			}
			return serve
		}
	})
	cmd := exec.Command("perl", "-MFcntl", "-e", `
use Time::HiRes qw(setitimer ITIMER_REAL);
$SIG{ALRM} = sub { };
sysopen(my $h, $ARGV[0], O_WRONLY|O_APPEND|O_SYNC) or die $!;
setitimer(ITIMER_REAL, 0.3);
my $n = syswrite($h, "line\n");
print STDERR "write returned $n\n";
`, filepath.Join(dir, "log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	eventually(t, "COMMIT", func() bool { return f.counted(nfs3.ProcCommit) >= 1 })
	time.Sleep(800 * time.Millisecond)
	f.sendLate()
	must(t, cmd.Wait())
	if got := f.content("log"); string(got) != "zero\nline\n" {
		t.Errorf("one write(2) of a line: %q", got)
	}
}

// Two changes in one tick of the server's clock; the open is after both.
func TestOpenSameTick(t *testing.T) {
	f, b := fakeBed(t, nil)
	x := f.theirs("f", []byte("old"))
	e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
	ino, _ := b.c.tab.get(e.Node)
	ino.expire()
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcGetAttr || c.proc == nfs3.ProcAccess {
				return late
			}
			return serve
		}
	})
	over := make(chan error, 2)
	go func() { op := rootOp(b.mem); var a vfs.Attr; over <- b.c.GetAttr(&op, e.Node, &a) }()
	eventually(t, "GETATTR", func() bool { return f.counted(nfs3.ProcGetAttr) == 2 })
	f.set(func() { // another client appends, in the same tick, and closes
		x.data = append(x.data, "+new"...)
		x.attr.Size = uint64(len(x.data))
	})
	go func() { op := rootOp(b.mem); over <- b.c.Open(&op, e.Node, false) }()
	eventually(t, "ACCESS", func() bool { return f.counted(nfs3.ProcAccess) == 1 })
	var second [][]byte
	f.set(func() { f.before = nil; f.late, second = f.late[:1], f.late[1:] })
	f.sendLate()
	must(t, <-over)
	f.set(func() { f.late = second })
	f.sendLate()
	must(t, <-over)
	if got := b.read(e.Node, 0, 7); string(got) != "old+new" {
		t.Errorf("opened after they closed: %q", got)
	}
	b.c.Close(e.Node)
}

// An unlink, or a rename, that is killed while the open file is being hidden.
func TestKilledWhileHiding(t *testing.T) {
	for _, rename := range []bool{false, true} {
		f, b := fakeBed(t, nil)
		b.create("a")
		n := b.create("b")
		must(t, b.c.Open(&b.op, n, false))
		f.set(func() {
			f.before = func(c *fakeCall) verdict {
				if c.proc == nfs3.ProcRename {
					return late
				}
				return serve
			}
		})
		cancel := make(chan struct{})
		res := make(chan error, 1)
		go func() {
			op := vfs.Op{Scope: gfp.For(nil), Cancel: cancel}
			var err error
			if rename {
				_, _, err = b.c.Rename(&op, vfs.RootID, "a", vfs.RootID, "b")
			} else {
				_, err = b.c.Remove(&op, vfs.RootID, "b")
			}
			res <- err
		}()
		eventually(t, "RENAME", func() bool { return f.counted(nfs3.ProcRename) == 1 })
		close(cancel)
		wantErrno(t, <-res, syscall.EINTR)
		f.set(func() { f.before = nil })
		f.sendLate()
		time.Sleep(100 * time.Millisecond)
		b.c.Close(n)
		f.set(func() {
			if h := f.hidden(); len(h) != 0 {
				t.Errorf("rename %v: after the last close there is %v", rename, f.files[0].names)
			}
		})
	}
}

// What others have written behind what is dirty here is not overwritten with zeros.
func TestTheyGrowWhatIsDirtyHere(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.AttrTimeout = time.Hour })
	x := f.theirs("log", []byte("zero\n"))
	e, err := b.c.Lookup(&b.op, vfs.RootID, "log")
	must(t, err)
	must(t, b.c.Open(&b.op, e.Node, true))
	b.write(e.Node, 0, []byte("ZERO"))
	f.set(func() {
		x.data = append(x.data, "one\n"...)
		x.stable = append(x.stable, "one\n"...)
		x.attr.Size = uint64(len(x.data))
		f.touch(x)
	})
	ino, _ := b.c.tab.get(e.Node)
	ino.expire()
	if size := b.attr(e.Node).Size; size != 9 {
		t.Errorf("the size is %d", size)
	}
	b.write(e.Node, 9, []byte("two\n"))
	must(t, b.c.Flush(&b.op, e.Node))
	b.checkStable(f, "log", []byte("ZERO\none\ntwo\n"))
	b.c.Close(e.Node)
}
