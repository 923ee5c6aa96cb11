package nfsclient

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// A page that is written to again after its WRITE was answered is dirty, and what was in it
// is unstable still.
func TestCommitOfWhatIsDirtyAgain(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	b.write(n, 0, []byte("first"))
	must(t, b.c.writeOut(&b.op, ino))
	b.write(n, 100, []byte("other"))
	must(t, b.c.commitWait(b.op.Scope, "", ino, nil))
	if got := f.content("f"); !bytes.HasPrefix(got, []byte("first")) {
		t.Errorf("on stable storage: %q", got)
	}
}

// A server that restarts between the two has lost what nothing but a dirty page still has.
func TestRestartLosesWhatIsDirtyAgain(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	b.write(n, 0, []byte("first"))
	must(t, b.c.writeOut(&b.op, ino))
	b.write(n, 100, []byte("other"))
	f.crash()
	must(t, b.c.makeStable(&b.op, ino))
	if got := f.content("f"); !bytes.HasPrefix(got, []byte("first")) || !bytes.HasSuffix(got, []byte("other")) {
		t.Errorf("on stable storage: %q", got)
	}
}

// One thread syncs records while another writes to the same page: a log.
func TestSyncOfSharedPage(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	b.write(n, 0, make([]byte, 4096))
	b.sync(n)
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		op := rootOp(b.mem)
		for i := uint64(0); !stop.Load(); i++ {
			_ = writeAt(b.c, &op, n, 2048, binary.BigEndian.AppendUint64(nil, i))
			time.Sleep(20 * time.Microsecond)
		}
	}()
	for i := range 500 {
		record := binary.BigEndian.AppendUint64(nil, uint64(i+1))
		b.write(n, 0, record)
		b.sync(n)
		if got := f.content("f"); !bytes.HasPrefix(got, record) {
			t.Fatalf("record %d is synced; on stable storage: %x", i+1, got[:8])
		}
	}
	stop.Store(true)
	<-done
}

// Four write records to one page; three of them sync each, with fsync or close. The server loses
// what was not committed every few milliseconds, with its connections, and now and then it asks
// for patience, takes less than it was sent, or has it stable at once.
func TestSyncWhileServerCrashes(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	b.write(n, 0, make([]byte, 4096))
	b.sync(n)
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc != nfs3.ProcWrite && c.proc != nfs3.ProcCommit {
				return serve
			}
			f.maxWrite, f.committed = 1<<20, vfs.Unstable
			switch rand.IntN(40) {
			case 0, 1, 2:
				return cut
			case 3:
				return jukebox
			case 4, 5:
				f.maxWrite = uint32(1 + rand.IntN(4096))
			case 6, 7:
				f.committed = vfs.FileSync
			}
			return serve
		}
	})
	var stop atomic.Bool
	var all sync.WaitGroup
	writer := func(at int, settle func(*vfs.Op, vfs.NodeID) error) {
		op := rootOp(b.mem)
		for i := uint64(1); !stop.Load() && !t.Failed(); i++ {
			if err := writeAt(b.c, &op, n, at, binary.BigEndian.AppendUint64(nil, i)); err != nil {
				t.Error(err)
			}
			if settle == nil {
				time.Sleep(50 * time.Microsecond)
				continue
			}
			if err := settle(&op, n); err != nil {
				t.Error(err)
			}
			if got := binary.BigEndian.Uint64(f.content("f")[at:]); got < i {
				t.Errorf("record %d at %d is synced; on stable storage is %d", i, at, got)
			}
		}
	}
	for k, settle := range []func(*vfs.Op, vfs.NodeID) error{b.c.Sync, b.c.Flush, b.c.Sync, nil} {
		all.Go(func() { writer(k*1000, settle) })
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end) && !t.Failed(); {
		time.Sleep(rand.N(60 * time.Millisecond))
		f.crash()
	}
	stop.Store(true)
	all.Wait()
}

// Everybody who has the file open is told of data that is lost: who closes may be a child that
// has inherited it and does not look, and who syncs one that only reads.
func TestWhoIsToldOfErrors(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	open := func() *vfs.Op {
		op := rootOp(b.mem)
		op.File = &vfs.File{}
		must(t, b.c.Open(&op, n, true))
		return &op
	}
	writer, child, reader := open(), open(), open()
	child.File = writer.File
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcWrite {
				return noSpace
			}
			return serve
		}
	})
	must(t, writeAt(b.c, writer, n, 0, []byte("lost")))
	eventually(t, "the flusher has failed", func() bool { return !ino.unwritten() })
	f.set(func() { f.before = nil })
	wantErrno(t, b.c.Sync(reader, n), syscall.ENOSPC)
	wantErrno(t, b.c.Flush(child, n), syscall.ENOSPC)
	b.c.Close(n)
	wantErrno(t, writeAt(b.c, writer, n, 100, []byte("is refused")), syscall.ENOSPC)
	must(t, writeAt(b.c, writer, n, 100, []byte("there is room again")))
	wantErrno(t, b.c.Sync(writer, n), syscall.ENOSPC)
	must(t, b.c.Sync(writer, n))
	must(t, b.c.Sync(reader, n))
	must(t, b.c.Sync(open(), n))
}

// A COMMIT that waits for a slot must not keep the commit worker, which has some, from sending
// one: the others may be waiting for the memory.
func TestCommitWorkerOvertakesSync(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	ino, _ := b.c.tab.get(n)
	b.write(n, 0, []byte("data"))
	f.set(func() {
		f.before = func(c *fakeCall) verdict {
			if c.proc == nfs3.ProcAccess {
				return late
			}
			return serve
		}
	})
	must(t, b.c.writeOut(&b.op, ino))
	ends := make(chan error)
	busy := len(b.c.t.free)
	for range busy {
		go func() {
			op := rootOp(b.mem)
			_, err := b.c.fetchAccess(&op, ino)
			ends <- err
		}()
	}
	eventually(t, "no slot is free", func() bool { return len(b.c.t.free) == 0 })
	go func() {
		op := rootOp(b.mem)
		ends <- b.c.commitWait(op.Scope, "", ino, nil)
	}()
	time.Sleep(10 * time.Millisecond)
	b.c.commitAll()
	eventually(t, "the commit worker has committed", func() bool { return !ino.unwritten() })
	f.set(func() { f.before = nil })
	f.sendLate()
	for range busy + 1 {
		must(t, <-ends)
	}
}
