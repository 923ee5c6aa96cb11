package fusefs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
)

// appendOnly makes the file such that it cannot be truncated, not even by who has it open.
func (f *fixture) appendOnly(name string) (undo func()) {
	const flag = 0x20 // FS_APPEND_FL
	fd, err := unix.Open(filepath.Join(f.dir, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	f.ok(err)
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|flag)
	}
	if err != nil {
		unix.Close(fd)
		f.t.Skip("chattr +a: ", err)
	}
	return func() {
		f.ok(unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^flag))
		unix.Close(fd)
	}
}

// What was written stays if the file cannot be made shorter.
func TestTruncateIsRefused(t *testing.T) {
	f := newFixture(t, options{noStart: true, dir: diskDir(t)})
	node := f.create(vfs.RootID, "f", 0o644)
	want := pattern(100_000, 1)
	f.write(node, 0, want[:10], vfs.FileSync) // its descriptors are open now
	undo := f.appendOnly("f")
	f.write(node, 0, want, vfs.Unstable)
	_, err := f.SetAttr(f.op, node, &vfs.SetAttr{SetSize: true, Size: 50_000})
	undo()
	f.wants(err, unix.EPERM)
	if size := f.getattr(node).Size; size != 100_000 {
		t.Errorf("the size is %d now", size)
	}
	_, _, err = f.Commit(f.op, node, 0, 0)
	f.ok(err)
	if got := f.backing("f"); !bytes.Equal(got, want) {
		t.Errorf("%d bytes of 100000 are there, or others", len(got))
	}
}

// While a truncation that will be refused waits for the device, nobody takes the file for
// shorter, and nothing is written again after it.
func TestRefusedTruncateIsNotSeen(t *testing.T) {
	f := newFixture(t, options{noStart: true, dir: diskDir(t)})
	node := f.create(vfs.RootID, "f", 0o644)
	want := pattern(100_000, 1)
	verf := f.write(node, 0, want, vfs.FileSync).Verifier
	defer f.appendOnly("f")()
	f.write(node, 0, want[:4096], vfs.Unstable)
	in, err := f.inode(node)
	f.ok(err)
	fs := make([]*alloc.Folio, 4)
	n := in.m.BeginWriteback(fs, ^uint64(0)) // by a slow device
	refused := make(chan error, 1)
	go func() {
		_, err := f.SetAttr(f.mem.newOp("truncate"), node, &vfs.SetAttr{SetSize: true, Size: 50_000})
		refused <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if size := f.getattr(node).Size; size != 100_000 {
		t.Errorf("the size is %d meanwhile", size)
	}
	in.m.EndWriteback(fs[:n], pagecache.Clean)
	f.mem.arena.PutAll(fs[:n])
	f.wants(<-refused, unix.EPERM)
	if in.dirty() || f.Verifier() != verf {
		t.Errorf("%d pages are to be written again; the verifier is the same: %v", in.m.Nr(pagecache.Dirty), f.Verifier() == verf)
	}
}

// What is answered as stable while a truncation is refused is on the disk.
func TestStableWriteDuringRefusedTruncate(t *testing.T) {
	f := newFixture(t, options{noStart: true, dir: diskDir(t)})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(100_000, 1), vfs.FileSync)
	defer f.appendOnly("f")()
	var stop atomic.Bool
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			op := f.mem.newOp("truncate")
			for !stop.Load() {
				_, _ = f.SetAttr(op, node, &vfs.SetAttr{SetSize: true, Size: 50_000})
			}
		})
	}
	for n, end := uint64(1), time.Now().Add(time.Second); time.Now().Before(end); n++ {
		const at = 80_000
		record := binary.BigEndian.AppendUint64(nil, n)
		f.write(node, at, record, vfs.FileSync)
		if got := f.backing("f"); !bytes.Equal(got[at:at+8], record) {
			t.Errorf("record %d is not on the disk", n)
			break
		}
	}
	stop.Store(true)
	all.Wait()
}

// neverClean writes a page of in out and to it meanwhile, until stopped.
func (f *fixture) neverClean(in *inode) (stop func()) {
	var end atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		fs := make([]*alloc.Folio, 4)
		for !end.Load() {
			n := in.m.BeginWriteback(fs, ^uint64(0))
			in.m.MarkDirty(fs[:n]...)
			in.m.EndWriteback(fs[:n], pagecache.Clean)
			f.mem.arena.PutAll(fs[:n])
		}
	}()
	return func() {
		end.Store(true)
		<-done
	}
}

// An inode that has data to be written is never seen without, and is not evicted.
func TestDirtyInodeStays(t *testing.T) {
	f := newFixture(t, options{inodes: MinInodes, noStart: true})
	for i := range MinInodes {
		f.create(vfs.RootID, fmt.Sprint("held", i), 0o644)
	}
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, []byte("data"), vfs.Unstable)
	in, err := f.inode(node)
	f.ok(err)
	f.Forget(node, 1)
	stop := f.neverClean(in)
	for end := time.Now().Add(time.Second); time.Now().Before(end) && f.nodes.get(node) != nil; {
		f.evict()
		if !in.dirty() {
			t.Fatal("seen without its data")
		}
	}
	stop()
	if f.nodes.get(node) == nil {
		t.Error("evicted with data")
	}
}

// A file that somebody moves cannot be found until it is looked up again; a client has to
// send again what was to be written meanwhile.
func TestMovedFileLosesDataOpenly(t *testing.T) {
	f := newFixture(t, options{noStart: true, dir: overlayDir(t, nil)})
	node := f.create(vfs.RootID, "f", 0o644)
	before := f.write(node, 0, []byte("data"), vfs.Unstable).Verifier
	f.fds.closeIdle()
	f.ok(os.Rename(filepath.Join(f.dir, "f"), filepath.Join(f.dir, "g")))
	f.WritePages(f.op.Scope, 100)
	_, err := f.Lookup(f.op, vfs.RootID, "g")
	f.ok(err)
	after, _, err := f.Commit(f.op, node, 0, 0)
	if got := f.backing("g"); err == nil && after == before && string(got) != "data" {
		t.Errorf("committed, and on the disk is %q", got)
	}
}
