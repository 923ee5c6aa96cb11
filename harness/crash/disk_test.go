package crash

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	diskSize = 48 << 20
	// sector is what a disk writes whole, or not at all.
	sector = 4096
)

// disk is a file for a loop device: what is in it, and how that came there.
type disk struct {
	gofs.Inode

	mu     sync.Mutex
	data   []byte
	record []change
}

// change is one write, or a flush if data is nil.
type change struct {
	off  int64
	data []byte
}

// now returns the point in the record that has been reached.
func (d *disk) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.record)
}

func (d *disk) Open(context.Context, uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (d *disk) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(len(d.data))
	return 0
}

func (d *disk) Setattr(ctx context.Context, f gofs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return d.Getattr(ctx, f, out)
}

func (d *disk) Read(_ context.Context, _ gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fuse.ReadResultData(dest[:copy(dest, d.data[min(off, diskSize):])]), 0
}

func (d *disk) Write(_ context.Context, _ gofs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], data)
	d.record = append(d.record, change{off, append([]byte{}, data...)})
	return uint32(len(data)), 0
}

func (d *disk) Fsync(context.Context, gofs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.record = append(d.record, change{})
	return 0
}

// attach makes the disk a block device until the test ends, and returns its name. The
// file is never opened in this process, which serves it.
func (d *disk) attach(t *testing.T) string {
	dir := t.TempDir()
	root := &gofs.Inode{}
	server, err := gofs.Mount(dir, root, &gofs.Options{
		MountOptions: fuse.MountOptions{FsName: "crash", Name: "loopnfs-crash", DirectMount: true, MaxWrite: 1 << 20},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, d, gofs.StableAttr{Mode: syscall.S_IFREG}), true)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return attachLoop(t, filepath.Join(dir, "disk"))
}

func attachLoop(t *testing.T, file string) string {
	dev := command(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() {
		command(t, "losetup", "--detach", dev)
		// A mount namespace that a test of another package has made meanwhile may use the
		// device, until it ends.
		for limit := time.Now().Add(2 * time.Minute); attached(dev); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("%s is in use long after it was detached", dev)
			}
		}
	})
	return dev
}

func attached(dev string) bool {
	_, err := os.Stat(filepath.Join("/sys/block", filepath.Base(dev), "loop/backing_file"))
	return err == nil
}

// command runs a program and returns what it says.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// wreck is a disk after a loss of power: crashes go forward in the record.
type wreck struct {
	record  []change
	data    []byte // what is certainly there
	flushed int    // of the record is in data
}

// cut writes the disk to f as it may be if power is lost at a point of the record.
func (w *wreck) cut(at int, r *rand.Rand, f *os.File) error {
	for i := w.flushed; i < at; i++ {
		if w.record[i].data == nil {
			for _, c := range w.record[w.flushed:i] {
				copy(w.data[c.off:], c.data)
			}
			w.flushed = i
		}
	}
	if _, err := f.WriteAt(w.data, 0); err != nil {
		return err
	}
	keep := r.Float64() // of what was not flushed; often nearly nothing, or nearly all
	for _, c := range w.record[w.flushed:at] {
		for off := int64(0); off < int64(len(c.data)); {
			n := min(sector-(c.off+off)%sector, int64(len(c.data))-off)
			if r.Float64() < keep {
				if _, err := f.WriteAt(c.data[off:off+n], c.off+off); err != nil {
					return err
				}
			}
			off += n
		}
	}
	return nil
}
