package nfsclient

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
)

func fakeBed(t *testing.T, change func(*Config)) (*fake, *bed) {
	f := startFake(t)
	return f, newBed(t, 8<<20, f.addr(), "/x", change)
}

func (b *bed) checkStable(f *fake, name string, want []byte) {
	b.t.Helper()
	if got := f.content(name); !bytes.Equal(got, want) {
		b.t.Fatalf("%s: %d stable bytes, want %d, first difference at %d", name, len(got), len(want), firstDiff(got, want))
	}
}

func firstDiff(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func TestNewVerifierInCommitMeansWriteAgain(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	data := pattern(3, 200<<10)
	b.write(n, 0, data)
	crashed := false
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcCommit && !crashed {
				crashed = true // between the WRITEs and their COMMIT
				f.verf[0]++
				for _, x := range f.files {
					x.data = append([]byte(nil), x.stable...)
				}
			}
			return serve
		}
	})
	b.sync(n)
	f.set(func() {
		if !crashed {
			t.Error("no COMMIT was sent")
		}
	})
	b.checkStable(f, "f", data)
}

func TestNewVerifierInWriteMeansWriteAgain(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.WSize = 8192 })
	n := b.create("f")
	data := pattern(4, 300<<10)
	writes := 0
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcWrite {
				if writes++; writes == 20 || writes == 55 {
					f.verf[0]++
					for _, x := range f.files {
						x.data = append([]byte(nil), x.stable...)
					}
				}
			}
			return serve
		}
	})
	b.write(n, 0, data)
	b.sync(n)
	b.checkStable(f, "f", data)
	f.set(func() {
		if writes <= 300/8+1 {
			t.Errorf("%d WRITEs: nothing was sent again", writes)
		}
	})
}

// A COMMIT vouches only for what was unstable when it was sent.
func TestCrashesAtRandom(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.WSize = 4096 })
	n := b.create("f")
	rng := rand.New(rand.NewPCG(1, 2))
	f.set(func() {
		rng := rand.New(rand.NewPCG(3, 4))
		f.before = func(c *fakeCall) verdict {
			if c.proc != nfs3.ProcWrite && c.proc != nfs3.ProcCommit || rng.IntN(40) > 0 {
				return serve
			}
			f.verf[0]++
			for _, x := range f.files {
				x.data = append([]byte(nil), x.stable...)
			}
			return []verdict{serve, cut, drop, cut}[rng.IntN(2)]
		}
	})
	data := make([]byte, 256<<10)
	for round := range 40 {
		off := rng.IntN(len(data) - 20000)
		chunk := pattern(round, 20000)
		copy(data[off:], chunk)
		b.write(n, off, chunk)
		if round%4 == 3 {
			b.sync(n)
			got := f.content("f")
			if !bytes.Equal(got, data[:len(got)]) {
				t.Fatalf("round %d: lost after sync, first at %d", round, firstDiff(got, data))
			}
		}
	}
}

// A server that restarts has a smaller file as long as what it lost was not
// written again; nobody here may see that, least of all what is written again.
func TestLostDataLeavesSizeAlone(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	data := pattern(7, 100<<10)
	b.write(n, 0, data)
	ino, _ := b.c.tab.get(n)
	_, err := b.c.startWrites(gfp.Scope{}, ino, 1<<62, 1000, nil)
	must(t, err)
	eventually(t, "all is unstable", func() bool { return b.c.Stats().Unstable == 25 })
	f.crash()
	ino.expire()
	if a := b.attr(n); a.Size != uint64(len(data)) {
		t.Fatalf("size %d after the crash", a.Size)
	}
	b.sync(n)
	b.checkStable(f, "f", data)
}

// Truncation is not overtaken by data that has to be written again.
func TestTruncateAfterLoss(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.WSize = 4096 })
	n := b.create("f")
	for round := range 20 {
		b.write(n, 0, pattern(round, 100<<10))
		ino, _ := b.c.tab.get(n)
		_, err := b.c.startWrites(gfp.Scope{}, ino, 1<<62, 1000, nil)
		must(t, err)
		f.crash()
		_, err = b.c.SetAttr(&b.op, n, &vfs.SetAttr{SetSize: true, Size: 5000})
		must(t, err)
		b.sync(n)
		b.checkStable(f, "f", pattern(round, 100<<10)[:5000])
	}
}

func TestStableWritesNeedNoCommit(t *testing.T) {
	for _, how := range []vfs.Stable{vfs.DataSync, vfs.FileSync} {
		f, b := fakeBed(t, nil)
		f.set(func() { f.committed = how })
		n := b.create("f")
		data := pattern(5, 100<<10)
		b.write(n, 0, data)
		b.sync(n)
		b.checkStable(f, "f", data)
		if f.counted(nfs3.ProcCommit) != 0 {
			t.Fatal("a COMMIT of what was stable")
		}
	}
}

func TestShortWritesAndReads(t *testing.T) {
	f, b := fakeBed(t, nil)
	f.set(func() { f.maxWrite, f.maxRead = 5000, 3000 })
	n := b.create("f")
	data := pattern(6, 150<<10)
	b.write(n, 0, data)
	b.sync(n)
	b.checkStable(f, "f", data)
	ino, _ := b.c.tab.get(n)
	ino.m.InvalidateClean()
	if got := b.read(n, 0, len(data)); !bytes.Equal(got, data) {
		t.Fatalf("short READs were put together wrong at %d", firstDiff(got, data))
	}
}

func TestJukeboxIsTriedAgain(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	left := map[uint32]int{nfs3.ProcWrite: 2, nfs3.ProcCommit: 1, nfs3.ProcRead: 2, nfs3.ProcLookup: 2}
	seen := map[uint32]bool{}
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if seen[c.xid] {
				t.Errorf("%s was tried again with the same xid", nfs3.ProcName(c.proc))
			}
			seen[c.xid] = true
			if left[c.proc] > 0 {
				left[c.proc]--
				return jukebox
			}
			return serve
		}
	})
	b.write(n, 0, []byte("later"))
	b.sync(n)
	b.checkStable(f, "f", []byte("later"))
	ino, _ := b.c.tab.get(n)
	ino.m.InvalidateClean()
	if got := b.read(n, 0, 10); string(got) != "later" {
		t.Fatalf("read %q", got)
	}
	_, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
}

func TestWriteErrorIsReportedOnce(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	b.write(n, 0, []byte("good"))
	b.sync(n)
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcWrite {
				return noSpace
			}
			return serve
		}
	})
	b.write(n, 0, []byte("lost"))
	wantErrno(t, b.c.Sync(&b.op, n), syscall.ENOSPC)
	must(t, b.c.Sync(&b.op, n))
	f.set(func() { f.before = nil })
	if got := b.read(n, 0, 10); string(got) != "good" {
		t.Fatalf("read %q: what could not be written is still cached", got)
	}
	if b.c.BDI().Pages() != 0 {
		t.Fatal("pages stay dirty after an error")
	}
}

func TestGarbageRepliesAreAskedForAgain(t *testing.T) {
	damage := map[string]func([]byte) []byte{
		"cut short":         func(r []byte) []byte { return setMark(r[:len(r)-8]) },
		"not a reply":       func(r []byte) []byte { r[11] = 7; return r },
		"bad boolean":       func(r []byte) []byte { r[4+24+4+3] = 99; return r },
		"three bytes":       func(r []byte) []byte { return setMark(r[:7]) },
		"huge record":       func(r []byte) []byte { r[0] = 0xff; return r },
		"empty record":      func(r []byte) []byte { return setMark(r[:4]) },
		"rest of it random": func(r []byte) []byte { copy(r[12:], bytes.Repeat([]byte{0xa5}, 500)); return r },
	}
	for name, hurt := range damage {
		for _, proc := range []uint32{nfs3.ProcLookup, nfs3.ProcRead, nfs3.ProcWrite, nfs3.ProcCommit} {
			t.Run(name+" "+nfs3.ProcName(proc), func(t *testing.T) {
				f, b := fakeBed(t, nil)
				n := b.create("f")
				left := 2
				f.set(func() {
					f.after = func(c *fakeCall, r []byte) []byte {
						if c.proc == proc && left > 0 {
							left--
							return hurt(r)
						}
						return r
					}
				})
				data := pattern(1, 10000)
				b.write(n, 0, data)
				b.sync(n)
				b.checkStable(f, "f", data)
				ino, _ := b.c.tab.get(n)
				ino.m.InvalidateClean()
				if got := b.read(n, 0, len(data)); !bytes.Equal(got, data) {
					t.Fatal("wrong data")
				}
				_, err := b.c.Lookup(&b.op, vfs.RootID, "f")
				must(t, err)
				f.mu.Lock()
				defer f.mu.Unlock()
				if left != 0 {
					t.Fatal("nothing was damaged")
				}
			})
		}
	}
}

func setMark(r []byte) []byte {
	binary.BigEndian.PutUint32(r, 1<<31|uint32(len(r)-4))
	return r
}

func TestOnlyGarbageIsAnError(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	b.write(n, 0, []byte("x"))
	f.set(func() {
		f.after = func(c *fakeCall, r []byte) []byte { return setMark(r[:len(r)-4]) }
	})
	_, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	wantErrno(t, err, syscall.EIO)
	wantErrno(t, b.c.Sync(&b.op, n), syscall.EIO)
	f.set(func() { f.after = nil })
}

// onFirst has do called, with f.mu held, before the first call to proc, whose reply is lost.
func (f *fake) onFirst(proc uint32, do func()) {
	f.set(func() {
		hit := false
		f.before = func(call *fakeCall) verdict {
			if call.proc != proc || hit {
				return serve
			}
			hit = true
			do()
			return cut
		}
	})
}

// hidden returns the names of files that were removed while they were open. f.mu is held.
func (f *fake) hidden() (names []string) {
	for name := range f.files[0].names {
		if strings.HasPrefix(name, ".nfs") {
			names = append(names, name)
		}
	}
	return names
}

// A server that has forgotten what it did finds a call that is sent again to fail. Only
// an EXCLUSIVE create is known to be the same; the others may as well be a neighbour's.
func TestReplayedCalls(t *testing.T) {
	f, b := fakeBed(t, nil)
	c, op := b.c, &b.op
	once := func(proc uint32) { f.onFirst(proc, func() {}) }
	set := &vfs.SetAttr{SetMode: true, Mode: 0o644}
	once(nfs3.ProcCreate)
	e, _, err := c.Create(op, vfs.RootID, "f", vfs.Exclusive, set, vfs.Verifier{})
	must(t, err)
	for name, how := range map[string]vfs.CreateMode{"g": vfs.Guarded, "x": vfs.Exclusive} {
		f.onFirst(nfs3.ProcCreate, func() { f.files[0].names[name] = f.add(vfs.TypeRegular) }) // by a neighbour
		_, _, err = c.Create(op, vfs.RootID, name, how, set, vfs.Verifier{})
		wantErrno(t, err, syscall.EEXIST)
	}
	once(nfs3.ProcMkdir)
	_, _, err = c.Mkdir(op, vfs.RootID, "d", set)
	wantErrno(t, err, syscall.EEXIST)
	d, err := c.Lookup(op, vfs.RootID, "d")
	must(t, err)
	once(nfs3.ProcSymlink)
	_, _, err = c.Symlink(op, vfs.RootID, "s", "f", set)
	wantErrno(t, err, syscall.EEXIST)
	once(nfs3.ProcLink)
	_, _, err = c.Link(op, e.Node, d.Node, "l")
	wantErrno(t, err, syscall.EEXIST)
	once(nfs3.ProcRename)
	_, _, err = c.Rename(op, d.Node, "l", d.Node, "m")
	wantErrno(t, err, syscall.ENOENT)
	once(nfs3.ProcRemove)
	_, err = c.Remove(op, d.Node, "m")
	wantErrno(t, err, syscall.ENOENT)
	once(nfs3.ProcRmdir)
	_, err = c.Rmdir(op, vfs.RootID, "d")
	wantErrno(t, err, syscall.ENOENT)
	// The name that a file gets that is removed while it is open is the client's own.
	must(t, c.Open(op, e.Node, false))
	once(nfs3.ProcRename)
	_, err = c.Remove(op, vfs.RootID, "f")
	must(t, err)
	f.set(func() {
		if n := len(f.hidden()); n != 1 {
			t.Errorf("%d hidden files, want 1", n)
		}
	})
	once(nfs3.ProcRemove)
	c.Close(e.Node)
	f.set(func() {
		if h := f.hidden(); len(h) != 0 {
			t.Errorf("%q stays", h)
		}
	})
	if st := c.Stats(); st.Resent < 11 {
		t.Fatalf("%d calls were sent twice, want 11", st.Resent)
	}
}

func TestResentCallsKeepXIDAndPort(t *testing.T) {
	for range 20 { // some other program may have been faster to take the port
		if resentFromOnePort(t) {
			return
		}
	}
	t.Error("another port each time")
}

func resentFromOnePort(t *testing.T) (same bool) {
	f, b := fakeBed(t, nil)
	hit := 0
	var first fakeCall
	f.set(func() {
		f.before = func(c *fakeCall) verdict { // called with f.mu held
			if c.proc != nfs3.ProcCreate {
				return serve
			}
			if hit++; hit == 1 {
				first = *c
				return cut
			}
			if c.xid != first.xid {
				t.Errorf("sent again with xid %x, was %x", c.xid, first.xid)
			}
			same = c.port == first.port
			return serve
		}
	})
	_, _, err := b.c.Create(&b.op, vfs.RootID, "f", vfs.Exclusive, &vfs.SetAttr{}, vfs.Verifier{})
	must(t, err)
	f.set(func() {
		if hit != 2 {
			t.Errorf("sent %d times", hit)
		}
	})
	return same
}

func TestScopeCrossesTheWire(t *testing.T) {
	for _, propagate := range []bool{true, false} {
		f, b := fakeBed(t, func(c *Config) {
			if !propagate {
				c.WireScope = NoWireScope
			}
		})
		n := b.create("f")
		op := vfs.Op{Scope: gfp.For(nil).NoIO().Memalloc(), Cred: vfs.Cred{UID: 7, GID: 8, Groups: []uint32{9, 10}}}
		_, err := b.c.Lookup(&op, vfs.RootID, "f")
		must(t, err)
		last := func(proc uint32) fakeCall {
			f.mu.Lock()
			defer f.mu.Unlock()
			for i := len(f.calls) - 1; i >= 0; i-- {
				if f.calls[i].proc == proc {
					return f.calls[i]
				}
			}
			t.Fatalf("no %s", nfs3.ProcName(proc))
			return fakeCall{}
		}
		check := func(proc uint32, sc gfp.Scope) {
			t.Helper()
			want := sc.Wire()
			if !propagate {
				want = 0
			}
			if got := last(proc).stamp; got != sunrpc.StampScope(want) {
				t.Errorf("propagate %v: %s carries stamp %x, want %x", propagate, nfs3.ProcName(proc), got, sunrpc.StampScope(want))
			}
		}
		check(nfs3.ProcLookup, op.Scope)
		if c := last(nfs3.ProcLookup).cred; c.UID != 7 || c.GID != 8 || len(c.Groups()) != 2 || c.GIDs[1] != 10 {
			t.Errorf("credential %+v", c)
		}
		b.write(n, 0, []byte("x"))
		b.sync(n) // in the caller's scope
		check(nfs3.ProcWrite, gfp.Scope{})
		check(nfs3.ProcCommit, gfp.Scope{})
		b.write(n, 0, []byte("y"))
		commits := f.counted(nfs3.ProcCommit)
		b.c.BDI().WakeFlusher() // and in that of the workers
		eventually(t, "commit by the worker", func() bool { return f.counted(nfs3.ProcCommit) > commits })
		worker := gfp.For(nil).Memalloc().Reclaim()
		check(nfs3.ProcWrite, worker)
		check(nfs3.ProcCommit, worker)
	}
}

func TestCallsCanBeGivenUp(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.Slots = 4 })
	n := b.create("f")
	f.set(func() { f.before = func(*fakeCall) verdict { return ignore } })
	for range 3 { // more than there are ordinary slots
		cancel := make(chan struct{})
		op := vfs.Op{Cancel: cancel}
		res := make(chan error)
		go func() {
			_, err := b.c.Lookup(&op, vfs.RootID, "f")
			res <- err
		}()
		time.Sleep(20 * time.Millisecond)
		close(cancel)
		wantErrno(t, <-res, syscall.EINTR)
	}
	f.set(func() { f.before = nil })
	f.cutAll() // ends the quarantine of the slots
	b.write(n, 0, []byte("x"))
	b.sync(n)
	eventually(t, "all slots are back", func() bool { return len(b.c.t.free)+len(b.c.t.reserve) == 4 })
}

// A server that does not read holds up nobody who wants to give up, and the
// calls that went out in part are whole when it reads again.
func TestServerThatDoesNotRead(t *testing.T) {
	f := startFake(t)
	b := newBed(t, 64<<20, f.addr(), "/x", func(c *Config) { c.AttrTimeout = time.Hour })
	n := b.create("f")
	b.write(n, 0, []byte("x"))
	hold := make(chan struct{})
	f.set(func() { f.hold = hold })
	data := pattern(1, 10<<20) // more than the socket takes
	b.write(n, 0, data)
	ino, _ := b.c.tab.get(n)
	go b.c.startWrites(gfp.Scope{}, ino, 1<<62, 1<<20, nil)
	eventually(t, "a call is sent in part, or the sender waits", func() bool {
		if !b.c.t.sendMu.TryLock() {
			return true
		}
		defer b.c.t.sendMu.Unlock()
		return b.c.t.partial.slot != nil
	})
	for range 5 {
		cancel := make(chan struct{})
		op := vfs.Op{Cancel: cancel}
		time.AfterFunc(10*time.Millisecond, func() { close(cancel) })
		_, err := b.c.Lookup(&op, vfs.RootID, "f")
		wantErrno(t, err, syscall.EINTR)
	}
	f.set(func() { f.hold = nil })
	close(hold)
	b.sync(n)
	b.checkStable(f, "f", data)
	if st := b.c.Stats(); st.Reconnects != 0 {
		t.Fatalf("%d reconnects", st.Reconnects)
	}
}

// Replies in any order find their calls.
func TestManyCallsOneConnection(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 8<<20, s.addr, "/data", nil)
	names := []string{"a", "b", "c", "d", "e", "f", "g"}
	ids := map[string]vfs.NodeID{}
	for i, name := range names {
		ids[name] = b.create(name)
		b.write(ids[name], 0, pattern(i, 30000))
		b.sync(ids[name])
	}
	errs := make(chan error)
	for g := range 32 {
		go func() {
			op := rootOp(b.mem)
			for i := range 50 {
				name := names[(g+i)%len(names)]
				e, err := b.c.Lookup(&op, vfs.RootID, name)
				if err == nil && e.Node != ids[name] {
					t.Errorf("%s is node %d, want %d", name, e.Node, ids[name])
				}
				if err != nil {
					errs <- err
					return
				}
				got, err := readAt(b.c, &op, e.Node, 0, 30000)
				if err != nil || !bytes.Equal(got, pattern((g+i)%len(names), 30000)) {
					t.Errorf("%s: wrong data, %v", name, err)
				}
				b.c.Forget(e.Node, 1)
				if i%10 == 0 {
					ino, _ := b.c.tab.get(ids[name])
					ino.m.InvalidateClean()
				}
			}
			errs <- nil
		}()
	}
	for range 32 {
		must(t, <-errs)
	}
}

func TestUnmountLeavesNothing(t *testing.T) {
	f := startFake(t)
	before := runtime.NumGoroutine()
	mem := testMemory(t, 8<<20)
	c := mountFor(t, mem, f.addr(), "/x", nil)
	mem.rec.Start(mem.cache, mem.graph, c.BDI())
	b := &bed{t: t, c: c, mem: mem}
	n := b.create("f")
	b.write(n, 0, pattern(1, 100000))
	b.unmount()
	mem.stop()
	b.checkStable(f, "f", pattern(1, 100000))
	eventually(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	if mem.arena.Free() != mem.arena.Total() {
		t.Fatalf("%d pages leaked", mem.arena.Total()-mem.arena.Free())
	}
}

// Who makes a file knows its attributes and may use it: neither is asked for. Who opens it
// later asks.
func TestCreatingAsksNothing(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.AttrTimeout = time.Hour })
	op := rootOp(b.mem)
	e, _, err := b.c.Create(&op, vfs.RootID, "new", vfs.Guarded, &vfs.SetAttr{SetMode: true, Mode: 0o444}, vfs.Verifier{})
	must(t, err)
	must(t, b.c.Open(&op, e.Node, true))
	b.write(e.Node, 0, []byte("content"))
	b.sync(e.Node)
	b.c.Close(e.Node)
	if n, m := f.counted(nfs3.ProcAccess), f.counted(nfs3.ProcGetAttr); n != 0 || m > 1 {
		t.Errorf("%d ACCESS, %d GETATTR", n, m)
	}
	must(t, b.c.Open(&op, e.Node, false))
	if n := f.counted(nfs3.ProcAccess); n != 1 {
		t.Errorf("%d ACCESS for the second open", n)
	}
	b.c.Close(e.Node)
}

// A server that forgot the connection without a word is found out soon.
func TestForgottenConnection(t *testing.T) {
	skipWithoutRepair(t)
	f, b := fakeBed(t, nil)
	hit := make(chan struct{})
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcCreate && f.count[c.proc] == 1 {
				close(hit)
				return drop
			}
			return serve
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.create("f")
	}()
	<-hit
	time.Sleep(100 * time.Millisecond) // the call is acknowledged
	f.mu.Lock()
	for c := range f.conns {
		vanish(c.(*net.TCPConn))
	}
	f.mu.Unlock()
	start := time.Now()
	<-done
	if d := time.Since(start); d > 3*keepAlive {
		t.Errorf("it took %v", d)
	}
}

// vanish closes c and tells the peer nothing.
func vanish(c *net.TCPConn) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
	}
	c.Close()
}

func skipWithoutRepair(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
		t.Skip("a connection cannot be ended silently (TCP_REPAIR): ", err)
	}
}
