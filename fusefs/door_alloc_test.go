package fusefs

import (
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// doorOver returns the door's file system over a new store, without a mount, an
// open file of it and its node.
func doorOver(t testing.TB) (f *doorFS, fh, node uint64) {
	s := newTestStore(t)
	cfg := DoorConfig{FS: s, Mountpoint: "/", Graph: waitfor.New()}
	cfg.setDefaults()
	f = newDoorFS(&cfg, func() bool { return false })
	var out fuse.CreateOut
	in := &fuse.CreateIn{InHeader: rootHeader(), Flags: uint32(os.O_RDWR), Mode: 0o644}
	if st := f.Create(nil, in, "f", &out); st != fuse.OK {
		t.Fatal(st)
	}
	t.Cleanup(f.forgetAll)
	return f, out.Fh, out.NodeId
}

func rootHeader() fuse.InHeader {
	return fuse.InHeader{NodeId: uint64(vfs.RootID), Caller: fuse.Caller{Pid: uint32(os.Getpid())}}
}

// doorCalls are the calls of the data path. Each returns whether it worked.
func doorCalls(f *doorFS, fh, node uint64) map[string]func() bool {
	cancel := make(chan struct{})
	head := rootHeader()
	data := [][]byte{make([]byte, 64<<10)}
	write := &fuse.WriteIn{InHeader: head, Fh: fh}
	read := &fuse.ReadIn{InHeader: head, Fh: fh, Size: uint32(len(data[0]))}
	attr := &fuse.GetAttrIn{InHeader: head}
	attr.NodeId = node
	var attrOut fuse.AttrOut
	var entryOut fuse.EntryOut
	return map[string]func() bool{
		"write": func() bool {
			n, st := f.Writev(cancel, write, data)
			return st == fuse.OK && int(n) == len(data[0])
		},
		"read": func() bool {
			res, st := f.Read(cancel, read, nil)
			if st != fuse.OK || res.Size() != len(data[0]) {
				return false
			}
			bufs, st := res.(*readResult).Slices()
			res.Done()
			return st == fuse.OK && len(bufs) > 0
		},
		"getattr": func() bool { return f.GetAttr(cancel, attr, &attrOut) == fuse.OK },
		"lookup": func() bool {
			if f.Lookup(cancel, &head, "f", &entryOut) != fuse.OK {
				return false
			}
			f.Forget(entryOut.NodeId, 1)
			return true
		},
	}
}

func TestDoorDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	f, fh, node := doorOver(t)
	calls := doorCalls(f, fh, node)
	for _, name := range []string{"write", "read", "getattr", "lookup"} {
		call := calls[name]
		// A run now and then reads the caller's groups again, or meets the
		// flusher; the average says nothing below one.
		n := testing.AllocsPerRun(200, func() {
			if !call() {
				t.Fatalf("%s failed", name)
			}
		})
		if n >= 1 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkDoor(b *testing.B) {
	f, fh, node := doorOver(b)
	calls := doorCalls(f, fh, node)
	for _, name := range []string{"write", "read", "getattr", "lookup"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !calls[name]() {
					b.Fatal("failed")
				}
			}
		})
	}
}
