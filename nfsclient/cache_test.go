package nfsclient

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
)

// What was written to a page while it was on its way is part of the next sync.
func TestSyncCoversPagesWrittenUnderWriteback(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	b.write(n, 0, []byte("old"))
	held := make(chan struct{})
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcWrite {
				f.before = nil
				f.mu.Unlock() // the data was received already
				<-held
				f.mu.Lock()
			}
			return serve
		}
	})
	_, err := b.c.startWrites(gfp.Scope{}, ino, 1<<62, 10, nil)
	must(t, err)
	eventually(t, "write-back", func() bool { return ino.m.Nr(pagecache.Writeback) == 1 })
	time.AfterFunc(50*time.Millisecond, func() { close(held) })
	b.write(n, 0, []byte("new")) // into the page under write-back
	b.sync(n)
	b.checkStable(f, "f", []byte("new"))
}

// O_CREAT|O_TRUNC of a file with data that was not written does not bring that
// data back.
func TestCreateTruncatesDirtyFile(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	b.write(n, 0, pattern(1, 50000))
	e, _, err := b.c.Create(&b.op, vfs.RootID, "f", vfs.Unchecked, &vfs.SetAttr{SetSize: true}, vfs.Verifier{})
	must(t, err)
	if e.Attr.Size != 0 || e.Node != n {
		t.Fatalf("node %d of %d bytes", e.Node, e.Attr.Size)
	}
	b.sync(n)
	b.checkStable(f, "f", nil)
}

func TestAttributesOfUnwrittenData(t *testing.T) {
	f, b := fakeBed(t, nil)
	now := time.Unix(5000, 0)
	b.c.cfg.Now = func() time.Time { return now }
	n := b.create("f")
	before := b.attr(n)
	f.set(func() {
		f.before = func(c *fakeCall) verdict { return map[bool]verdict{true: ignore}[c.proc == nfs3.ProcWrite] }
	})
	b.write(n, 100, []byte("x"))
	now = now.Add(time.Hour) // cached attributes are too old
	a := b.attr(n)
	if a.Size != 101 || a.Mtime.Sec != 5000 || a.Mtime == before.Mtime {
		t.Fatalf("size %d, mtime %v: the local ones count before write-back", a.Size, a.Mtime)
	}
	f.set(func() { f.before = nil })
	f.cutAll()
	b.sync(n)
	now = now.Add(time.Hour)
	if a := b.attr(n); a.Size != 101 || a.Mtime.Sec > 1000 {
		t.Fatalf("size %d, mtime %v: the server's count after it", a.Size, a.Mtime)
	}
}

// Own changes keep the cache, those of others drop it when the file is opened.
func TestWhoseChange(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	open := func() {
		must(t, b.c.Open(&b.op, n, true))
		b.c.Close(n)
	}
	reads := func() int {
		b.read(n, 0, 5000)
		return f.counted(nfs3.ProcRead)
	}
	for i := range 5 {
		b.write(n, i*1000, pattern(i, 1000))
		must(t, b.c.Flush(&b.op, n))
		open()
	}
	if got := reads(); got != 0 {
		t.Fatalf("%d READs of what was written here", got)
	}
	f.set(func() {
		x := f.files[1]
		copy(x.data, "theirs")
		f.touch(x)
	})
	open()
	if got := b.read(n, 0, 6); string(got) != "theirs" {
		t.Fatalf("read %q after somebody else changed it", got)
	}
	// Somebody changes it between two of our writes: the pre-op attributes of
	// the second one tell.
	b.read(n, 0, 5000)
	f.set(func() {
		x := f.files[1]
		copy(x.data, "again!")
		f.touch(x)
	})
	b.write(n, 8192, []byte("ours"))
	must(t, b.c.Flush(&b.op, n))
	open()
	if got := b.read(n, 0, 6); string(got) != "again!" {
		t.Fatalf("read %q: the change before our write was missed", got)
	}
	// Or between our write and its COMMIT.
	ino, _ := b.c.tab.get(n)
	b.write(n, 8192, []byte("more"))
	must(t, b.c.writeOut(&b.op, ino))
	f.set(func() {
		x := f.files[1]
		copy(x.data, "last!!")
		f.touch(x)
	})
	must(t, b.c.Flush(&b.op, n))
	open()
	if got := b.read(n, 0, 6); string(got) != "last!!" {
		t.Fatalf("read %q: the change before our COMMIT was missed", got)
	}
}

// The server's own times after a write are those that the client was told with it: with others
// each COMMIT would empty the cache.
func TestCommitKeepsCache(t *testing.T) {
	s := testServer(t, 16<<20)
	b := newBed(t, 16<<20, s.addr, "/", nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	for i := range 20 {
		b.write(n, i*100000, pattern(i, 300000))
		if i%3 == 0 {
			time.Sleep(time.Duration(i) * time.Millisecond)
		}
		b.sync(n)
		ino.mu.Lock()
		stale, same := ino.stale, ino.base == ino.attr.Pre()
		ino.mu.Unlock()
		if stale || !same {
			t.Fatalf("sync %d: stale %t, attributes of the pages are those of the server %t", i, stale, same)
		}
	}
}

// A READ that was on its way when the cache was dropped brings old data.
func TestReadOvertakenByInvalidation(t *testing.T) {
	f, b := fakeBed(t, nil)
	f.set(func() {
		n := f.add(vfs.TypeRegular)
		f.files[0].names["f"] = n
		f.files[n].data = []byte("old data")
		f.files[n].attr.Size = 8
	})
	e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
	must(t, err)
	ino, _ := b.c.tab.get(e.Node)
	must(t, b.c.Open(&b.op, e.Node, false))
	dropped := false
	f.set(func() {
		f.after = func(c *fakeCall, r []byte) []byte {
			if c.proc == nfs3.ProcRead && !dropped {
				dropped = true
				copy(f.files[1].data, "new")
				ino.lockFor(&vfs.Op{})
				b.c.invalidate(ino)
				ino.unlock(gfp.Scope{})
			}
			return r
		}
	})
	if got := b.read(e.Node, 0, 8); string(got) != "new data" {
		t.Fatalf("read %q", got)
	}
}

func TestReadAheadPlan(t *testing.T) {
	var ra readAhead
	const step, limit = 16, 64
	asked := map[uint64]int{}
	next, most := uint64(0), uint64(0)
	for next < 1000 { // sequential: 8 pages at a time
		from, n := ra.plan(next, 8, step, limit)
		for p := from; p < from+uint64(n); p++ {
			asked[p]++
			most = max(most, p-next)
		}
		next += 8
	}
	for p := uint64(8); p < 1000; p++ {
		if asked[p] != 1 {
			t.Fatalf("page %d was asked for %d times", p, asked[p])
		}
	}
	if most >= limit+8 {
		t.Fatalf("%d pages ahead, limit %d", most, limit)
	}
	for _, first := range []uint64{500, 100, 900, 3} { // random
		if _, n := ra.plan(first, 8, step, limit); n != 0 {
			t.Fatalf("read-ahead of %d pages for a jump to %d", n, first)
		}
	}
}

func TestReadAheadIsBounded(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 4<<20, s.addr, "/data", nil)
	most := int64(0)
	stop, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-stop:
				return
			default:
				most = max(most, b.c.aheadPages.Load())
			}
		}
	}()
	var done []chan error
	for i := range 6 {
		name := fmt.Sprint("f", i)
		data := pattern(i, 2<<20)
		must(t, os.WriteFile(filepath.Join(s.dir, name), data, 0o644))
		e, err := b.c.Lookup(&b.op, vfs.RootID, name)
		must(t, err)
		ch := make(chan error)
		done = append(done, ch)
		go func() {
			op := rootOp(b.mem)
			got, err := readAt(b.c, &op, e.Node, 0, len(data))
			if err == nil && !bytes.Equal(got, data) {
				err = fmt.Errorf("%s: wrong data", name)
			}
			ch <- err
		}()
	}
	for _, ch := range done {
		must(t, <-ch)
	}
	close(stop)
	<-over
	if most == 0 || most > b.c.aheadLimit+int64(6*b.c.rpages) {
		t.Fatalf("%d pages were read ahead at once, limit %d", most, b.c.aheadLimit)
	}
	eventually(t, "read-ahead ends", func() bool { return b.c.aheadPages.Load() == 0 })
}

// Writers that are throttled because of unstable pages alone get on: somebody
// commits.
func TestThrottledWritersGetOn(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	thresh, _ := b.mem.dom.Thresholds()
	start := time.Now()
	data := pattern(1, 3*thresh*4096)
	b.write(n, 0, data)
	if d := time.Since(start); d > 5*time.Second {
		t.Fatalf("took %v: each time only the clock helped", d)
	}
	if f.counted(nfs3.ProcCommit) == 0 {
		t.Fatal("no COMMIT, but more data than may be unstable")
	}
	b.sync(n)
	b.checkStable(f, "f", data)
}

func TestUnmountRemovesHiddenFiles(t *testing.T) {
	f := startFake(t)
	mem := testMemory(t, 8<<20)
	b := &bed{t: t, c: mountFor(t, mem, f.addr(), "/x", nil), mem: mem}
	mem.rec.Start(mem.cache, mem.graph, b.c.BDI())
	n := b.create("f")
	must(t, b.c.Open(&b.op, n, true))
	_, err := b.c.Remove(&b.op, vfs.RootID, "f")
	must(t, err)
	hidden := func() (names []string) {
		f.set(func() {
			for name := range f.files[0].names {
				names = append(names, name)
			}
		})
		return names
	}
	if h := hidden(); len(h) != 1 || !strings.HasPrefix(h[0], ".nfs") {
		t.Fatalf("names %q", h)
	}
	b.unmount()
	mem.stop()
	if h := hidden(); len(h) != 0 {
		t.Fatalf("left: %q", h)
	}
}

// The last close may come while the file is being renamed, which can take as long as a
// server is away.
func TestCloseWhileHiding(t *testing.T) {
	f := startFake(t)
	b := newBed(t, 8<<20, f.addr(), "/x", nil)
	n := b.create("f")
	must(t, b.c.Open(&b.op, n, true))
	f.set(func() {
		f.before = func(c *fakeCall) verdict { return map[bool]verdict{true: late}[c.proc == nfs3.ProcRename] }
	})
	removed := make(chan error, 1)
	go func() {
		_, err := b.c.Remove(&b.op, vfs.RootID, "f")
		removed <- err
	}()
	eventually(t, "the file is renamed", func() bool { return f.counted(nfs3.ProcRename) == 1 })
	b.c.Close(n)
	f.sendLate()
	must(t, <-removed)
	f.set(func() {
		if names := f.files[0].names; len(names) != 0 {
			t.Fatalf("left: %v", names)
		}
	})
}

// Two files of one rename: the one that is replaced while it is open lives on.
func TestRenameOverOpenFile(t *testing.T) {
	s := testServer(t, 32<<20)
	b := newBed(t, 8<<20, s.addr, "/data", nil)
	old, repl := b.create("old"), b.create("new")
	must(t, b.c.Open(&b.op, old, true))
	b.write(old, 0, []byte("replaced"))
	b.write(repl, 0, []byte("current"))
	must(t, b.c.Flush(&b.op, old))
	_, _, err := b.c.Rename(&b.op, vfs.RootID, "new", vfs.RootID, "old")
	must(t, err)
	ino, _ := b.c.tab.get(old)
	ino.m.InvalidateClean()
	if got := b.read(old, 0, 100); string(got) != "replaced" {
		t.Fatalf("read %q from the open file", got)
	}
	e, err := b.c.Lookup(&b.op, vfs.RootID, "old")
	must(t, err)
	if e.Node != repl {
		t.Fatal("the name leads to the replaced file")
	}
	b.c.Close(old)
	if left, _ := os.ReadDir(s.dir); len(left) != 1 {
		t.Fatalf("%d files left", len(left))
	}
}

// Reserved slots: calls that free memory are made though others have taken all
// the rest.
func TestWriteBackHasSlots(t *testing.T) {
	f, b := fakeBed(t, func(c *Config) { c.Slots = 8 })
	n := b.create("f")
	b.write(n, 0, []byte("x"))
	f.set(func() {
		f.before = func(c *fakeCall) verdict { return map[bool]verdict{true: ignore}[c.proc == nfs3.ProcLookup] }
	})
	cancel := make(chan struct{})
	over := make(chan struct{})
	for range 20 {
		go func() {
			op := vfs.Op{Cancel: cancel}
			b.c.Lookup(&op, vfs.RootID, "f")
			over <- struct{}{}
		}()
	}
	eventually(t, "no slot is left", func() bool { return b.c.t.tryAcquire(gfp.Scope{}) == nil })
	b.c.BDI().WakeFlusher()
	eventually(t, "write-back and COMMIT", func() bool { return b.c.BDI().Pages() == 0 })
	close(cancel)
	for range 20 {
		<-over
	}
	f.set(func() { f.before = nil })
	f.cutAll()
}

// A COMMIT vouches for what was unstable when it was sent, and for nothing that
// was written since, whatever the order of the replies.
func TestCommitVouchesForThePast(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	unstable := func(pages int) {
		t.Helper()
		_, err := b.c.startWrites(gfp.Scope{}, ino, 1<<62, 10, nil)
		must(t, err)
		eventually(t, "pages unstable", func() bool { return ino.m.Nr(pagecache.Unstable) == pages })
	}
	b.write(n, 0, []byte("first"))
	unstable(1)
	f.set(func() {
		f.before = func(c *fakeCall) verdict { return map[bool]verdict{true: late}[c.proc == nfs3.ProcCommit] }
	})
	must(t, b.c.startCommit(gfp.Scope{}, ino, nil))
	eventually(t, "COMMIT", func() bool { return f.counted(nfs3.ProcCommit) == 1 })
	b.write(n, 4096, []byte("second"))
	unstable(2)
	f.set(func() { f.before = nil })
	f.sendLate()
	eventually(t, "the COMMIT ends", func() bool { return ino.m.Nr(pagecache.Unstable) < 2 })
	f.crash()
	b.sync(n)
	b.checkStable(f, "f", append(append([]byte("first"), make([]byte, 4091)...), "second"...))
}

// Attributes that were read before a truncation and arrive after it are old.
func TestLateAttributesAfterTruncation(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	b.write(n, 0, pattern(1, 10000))
	b.sync(n)
	ino, _ := b.c.tab.get(n)
	ino.expire()
	f.set(func() {
		f.before = func(c *fakeCall) verdict { return map[bool]verdict{true: late}[c.proc == nfs3.ProcGetAttr] }
	})
	got := make(chan error)
	go func() {
		op := rootOp(b.mem)
		var a vfs.Attr
		got <- b.c.GetAttr(&op, n, &a)
	}()
	eventually(t, "GETATTR", func() bool { return f.counted(nfs3.ProcGetAttr) == 2 })
	f.set(func() { f.before, f.clock = nil, f.clock-100 }) // a clock that jumps back, too
	_, err := b.c.SetAttr(&b.op, n, &vfs.SetAttr{SetSize: true, Size: 10})
	must(t, err)
	f.sendLate()
	must(t, <-got)
	if size := b.c.sizeOf(ino); size != 10 {
		t.Fatalf("size %d after truncation to 10", size)
	}
}

// While a truncation is on its way, nothing is sent that reaches behind the new
// end: not even when the server turns out to have lost data.
func TestNothingOvertakesTruncation(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	b.write(n, 0, pattern(1, 40000))
	_, err := b.c.startWrites(gfp.Scope{}, ino, 1<<62, 10, nil)
	must(t, err)
	eventually(t, "pages unstable", func() bool { return ino.m.Nr(pagecache.Unstable) == 10 })
	f.set(func() {
		f.before = func(c *fakeCall) verdict { return map[bool]verdict{true: late}[c.proc == nfs3.ProcSetAttr] }
	})
	over := make(chan error)
	go func() {
		op := rootOp(b.mem)
		_, err := b.c.SetAttr(&op, n, &vfs.SetAttr{SetSize: true, Size: 5000})
		over <- err
	}()
	eventually(t, "SETATTR", func() bool { return f.counted(nfs3.ProcSetAttr) == 1 })
	f.set(func() {
		f.verf[0]++
		for _, x := range f.files {
			x.data = append([]byte(nil), x.stable...)
		}
	})
	b.c.commitAll()
	b.c.BDI().WakeFlusher()
	eventually(t, "what is unstable is written again", func() bool { return b.c.BDI().Pages() == 0 })
	f.set(func() { f.before = nil })
	f.sendLate()
	must(t, <-over)
	b.sync(n)
	b.checkStable(f, "f", pattern(1, 40000)[:5000])
}

func TestSizeOfWriteInProgress(t *testing.T) {
	_, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	ino.grow(5000, vfs.Time{}, identity{}) // its pages are not dirty yet
	a := b.attr(n)
	a.Size, a.Ctime.Sec = 0, 1<<40
	b.c.update(ino, &a, b.c.seq.Add(1))
	if size := b.c.sizeOf(ino); size != 5000 {
		t.Fatalf("size %d", size)
	}
	ino.settle()
}

// Of two overlapping writes in one tick of the server's clock the later one says
// how large the file is, whichever reply comes first.
func TestRepliesOfOneTick(t *testing.T) {
	_, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	w := vfs.WCC{HasPost: true, Post: b.attr(n)}
	w.Post.Ctime.Sec++
	for _, size := range []uint64{200, 100} {
		w.Post.Size = size
		b.c.updateWCC(ino, &w, b.c.seq.Add(1), false)
	}
	if a := b.attr(n); a.Size != 200 {
		t.Fatalf("size %d", a.Size)
	}
}

// The parts of one WRITE that the server carried out in two lives of its own.
func TestShortWriteAcrossRestart(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	writes := 0
	f.set(func() {
		f.maxWrite = 3000
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcWrite {
				if writes++; writes == 2 {
					f.verf[0]++
					f.files[1].data = nil
				}
			}
			return serve
		}
	})
	b.write(n, 0, pattern(2, 4096))
	b.sync(n)
	b.checkStable(f, "f", pattern(2, 4096))
}

func TestOpenKeepsNode(t *testing.T) {
	_, b := fakeBed(t, nil)
	n := b.create("f")
	must(t, b.c.Open(&b.op, n, true))
	b.write(n, 0, []byte("x"))
	b.sync(n)
	b.c.Forget(n, 1)
	if got := b.read(n, 0, 1); string(got) != "x" {
		t.Fatalf("read %q", got)
	}
	b.c.Close(n)
	var a vfs.Attr
	wantErrno(t, b.c.GetAttr(&b.op, n, &a), vfs.ErrStale)
}
