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
	slot := f.newSlot()
	defer slot.close()
	st := f.Create(slot, in, "f", &out)
	slot.end()
	if st != fuse.OK {
		t.Fatal(st)
	}
	t.Cleanup(f.forgetAll)
	return f, out.Fh, out.NodeId
}

func rootHeader() fuse.InHeader {
	return fuse.InHeader{NodeId: uint64(vfs.RootID), Caller: fuse.Caller{Pid: uint32(os.Getpid())}}
}

// dataPath are the calls of the data path. Each returns whether it worked.
func dataPath(t testing.TB, f *doorFS, fh, node uint64) map[string]func() bool {
	s := f.newSlot()
	t.Cleanup(s.close)
	head := rootHeader()
	data := make([]byte, 64<<10)
	write := &fuse.WriteIn{InHeader: head, Fh: fh}
	read := &fuse.ReadIn{InHeader: head, Fh: fh, Size: uint32(len(data))}
	attr := &fuse.GetAttrIn{InHeader: head}
	attr.NodeId = node
	var attrOut fuse.AttrOut
	var entryOut fuse.EntryOut
	return map[string]func() bool{
		"write": func() bool {
			n, st := f.Write(s, write, data)
			s.end()
			return st == fuse.OK && int(n) == len(data)
		},
		"read": func() bool {
			st, n := f.Read(s, read), 0
			for _, b := range s.read.slices() {
				n += len(b)
			}
			s.end()
			return st == fuse.OK && n == len(data)
		},
		"getattr": func() bool {
			st := f.GetAttr(s, attr, &attrOut)
			s.end()
			return st == fuse.OK
		},
		"lookup": func() bool {
			st := f.Lookup(s, &head, "f", &entryOut)
			s.end()
			if st != fuse.OK {
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
	calls := dataPath(t, f, fh, node)
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
	calls := dataPath(b, f, fh, node)
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
