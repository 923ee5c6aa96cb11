package nfsserver

import (
	"bytes"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// What a WRITE is answered depends on who asks, for what, and when.
func TestStability(t *testing.T) {
	for _, x := range []struct {
		name        string
		locality    Locality
		off         bool
		asked       vfs.Stable
		short, calm vfs.Stable
	}{
		{"local", nil, false, vfs.Unstable, vfs.FileSync, vfs.Unstable},
		{"local, data only", nil, false, vfs.DataSync, vfs.FileSync, vfs.DataSync},
		{"local, stable anyway", nil, false, vfs.FileSync, vfs.FileSync, vfs.FileSync},
		{"remote", NeverLocal{}, false, vfs.Unstable, vfs.Unstable, vfs.Unstable},
		{"off", nil, true, vfs.Unstable, vfs.Unstable, vfs.Unstable},
	} {
		t.Run(x.name, func(t *testing.T) {
			var short atomic.Bool
			f := serve(t, func(c *Config) {
				c.Locality, c.Stability = x.locality, StableWhenShort(short.Load)
				if x.off {
					c.Stability = nil
				}
			})
			f.fs.put(t, rootNode, "file", nil)
			c := dial(t, f.addr)
			h := c.file("file")
			for _, now := range []bool{false, true, false} {
				short.Store(now)
				want := x.calm
				if now {
					want = x.short
				}
				res := c.write(nfs3.WriteArgs{Handle: h, Stable: x.asked}, pattern(10))
				how := f.fs.lastHow()
				if res.Status != nfs3.StatusOK || res.Committed != want || how != want {
					t.Errorf("short %t: %v, answered %d and carried out %d, want %d", now, res.Status, res.Committed, how, want)
				}
			}
			raised := uint64(0)
			if x.short > x.asked {
				raised = 1
			}
			if n := f.srv.Stats().StableReplies; n != raised {
				t.Errorf("%d stable replies counted, want %d", n, raised)
			}
		})
	}
}

// A stable reply is true: with it, and without a COMMIT, the data is in the
// backing file.
func TestStableReplyIsStable(t *testing.T) {
	dir, state := diskDirs(t)
	check(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o666))
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0", func(c *Config) {
		c.Stability = StableWhenShort(func() bool { return true })
	})
	c := dial(t, s.addr)
	h := c.file("file")
	const chunk = 64 << 10
	for i := range 16 {
		data := bytes.Repeat([]byte{byte(i + 1)}, chunk)
		res := c.write(nfs3.WriteArgs{Handle: h, Offset: uint64(i) * chunk}, data)
		if res.Status != nfs3.StatusOK || res.Committed != vfs.FileSync {
			t.Fatalf("WRITE: %+v", res)
		}
		got, err := os.ReadFile(filepath.Join(dir, "file"))
		if err != nil || len(got) != (i+1)*chunk || !bytes.Equal(got[i*chunk:], data) {
			t.Fatalf("after %d WRITEs the backing file has %d bytes, %v", i+1, len(got), err)
		}
	}
	if n := s.srv.Stats().StableReplies; n != 16 {
		t.Errorf("%d stable replies counted", n)
	}
}
