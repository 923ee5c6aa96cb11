package fusefs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

func TestTimesDoNotJumpAtWriteOut(t *testing.T) {
	onBoth(t, options{noStart: true}, func(f *fixture) {
		node := f.create(vfs.RootID, "f", 0o644)
		var last vfs.Attr
		for i := range 20 {
			res := f.write(node, uint64(i*1000), pattern(3000, 1), vfs.Unstable)
			if res.WCC.Pre.Ctime == res.WCC.Post.Ctime {
				f.t.Error("a WRITE did not change the ctime")
			}
			if i > 0 && res.WCC.Pre != last.Pre() {
				f.t.Errorf("before the WRITE: %+v; last seen: %+v", res.WCC.Pre, last.Pre())
			}
			last = res.WCC.Post
			f.ok(f.Sync(f.op, node))
			if a := f.getattr(node); a.Pre() != last.Pre() {
				f.t.Errorf("write-out changed %+v to %+v", last.Pre(), a.Pre())
			}
		}
		var st unix.Stat_t
		f.ok(unix.Stat(filepath.Join(f.dir, "f"), &st))
		if timeOf(st.Mtim) != last.Mtime {
			f.t.Errorf("the backing mtime is %v, callers saw %v", timeOf(st.Mtim), last.Mtime)
		}
	})
}

func TestExplicitMtimeSurvivesWriteOut(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(10_000, 1), vfs.Unstable)
	want := vfs.Time{Sec: 1_000_000_000, Nsec: 123456789}
	_, err := f.SetAttr(f.op, node, &vfs.SetAttr{SetMtime: vfs.SetToClientTime, Mtime: want, SetAtime: vfs.SetToClientTime, Atime: want})
	f.ok(err)
	f.ok(f.Sync(f.op, node))
	if a := f.getattr(node); a.Mtime != want || a.Size != 10_000 {
		t.Errorf("mtime %v, size %d", a.Mtime, a.Size)
	}
	before := f.getattr(node)
	_, err = f.SetAttr(f.op, node, &vfs.SetAttr{SetMtime: vfs.SetToServerTime})
	f.ok(err)
	if a := f.getattr(node); a.Mtime.Sec < time.Now().Unix()-5 || a.Ctime == before.Ctime {
		t.Errorf("server time: %+v", a)
	}
	_, err = f.SetAttr(f.op, node, &vfs.SetAttr{SetMtime: vfs.SetToClientTime, Mtime: vfs.Time{Nsec: 1 << 30}})
	f.wants(err, unix.EINVAL)
}

func TestChangesOfOthersAreNoticed(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		node := f.create(vfs.RootID, "f", 0o644)
		f.write(node, 0, []byte("ours, and long"), vfs.FileSync)
		path := filepath.Join(f.dir, "f")
		f.ok(os.WriteFile(path, []byte("theirs"), 0))
		if a := f.getattr(node); a.Size != 6 {
			f.t.Errorf("size %d, want 6", a.Size)
		}
		if p, eof := f.read(node, 0, 100); string(p) != "theirs" || !eof {
			f.t.Errorf("read %q", p)
		}
		f.ok(os.Chmod(path, 0o600))
		if a := f.getattr(node); a.Mode != 0o600 || a.Size != 6 {
			f.t.Errorf("after chmod: %+v", a)
		}
		// Found by WRITE, which keeps what it does not write.
		f.ok(os.WriteFile(path, []byte("THEIRS AGAIN"), 0))
		f.write(node, 0, []byte("ours"), vfs.FileSync)
		if p := f.backing("f"); string(p) != "oursRS AGAIN" {
			f.t.Errorf("backing: %q", p)
		}
	})
}

// Calls that arrived together may be told the same of a file, those that came later not.
// What we did ourselves shows at once.
func TestOneLookForABatch(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		node := f.create(vfs.RootID, "f", 0o644)
		path := filepath.Join(f.dir, "f")
		tell := func(batch uint64) (mode uint32) {
			op, a := *f.op, vfs.Attr{}
			op.Batch = batch
			f.ok(f.GetAttr(&op, node, &a))
			return a.Mode
		}
		want := func(what string, batch uint64, mode uint32) {
			f.t.Helper()
			if m := tell(batch); m != mode {
				f.t.Errorf("%s: mode %o, want %o", what, m, mode)
			}
		}
		tell(5)
		f.ok(os.Chmod(path, 0o600))
		want("together", 5, 0o644)
		want("earlier", 4, 0o644)
		want("later", 6, 0o600)
		f.ok(os.Chmod(path, 0o604))
		want("unnumbered", 0, 0o604)
		tell(7)
		f.ok(os.Chmod(path, 0o640))
		f.nodes.get(node).bump() // as what we change ourselves does last
		want("own change", 7, 0o640)
	})
}

// What is allowed, and what a WRITE leaves of a page, goes by what is there, whatever was
// looked at for a call that arrived together with this one: it can be long ago.
func TestBatchIsNotAllowed(t *testing.T) {
	f := newFixture(t, options{})
	f.ok(os.Chmod(f.dir, 0o755))
	dir, _, err := f.Mkdir(f.op, vfs.RootID, "d", &vfs.SetAttr{SetMode: true, Mode: 0o755})
	f.ok(err)
	node := f.create(dir.Node, "f", 0o644)
	f.write(node, 0, []byte("public"), vfs.FileSync)
	f.read(node, 0, 100)
	root, user := *f.op, vfs.Op{Scope: f.op.Scope, Cred: vfs.Cred{UID: 1000, GID: 1000}, Batch: 5}
	root.Batch = 5
	look := func() {
		var a vfs.Attr
		f.ok(f.GetAttr(&root, dir.Node, &a))
		f.ok(f.GetAttr(&root, node, &a))
	}
	look()
	f.ok(os.Chmod(filepath.Join(f.dir, "d/f"), 0o600))
	var v vfs.Vec
	_, err = f.Read(&user, node, 0, 100, &v, nil)
	f.wants(err, unix.EACCES)
	look()
	f.ok(os.Chmod(filepath.Join(f.dir, "d"), 0o700))
	_, err = f.Lookup(&user, dir.Node, "f")
	f.wants(err, unix.EACCES)
	look()
	f.ok(os.WriteFile(filepath.Join(f.dir, "d/f"), []byte("theirs, and more"), 0))
	var res vfs.WriteResult
	f.ok(f.Write(&root, node, 0, &vfs.Vec{Bufs: [][]byte{[]byte("OURS")}}, vfs.FileSync, &res))
	if got := f.backing("d/f"); string(got) != "OURSrs, and more" {
		t.Errorf("what is left: %q", got)
	}
}

func TestMetadataChangesOfOthersKeepDirtyData(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(10_000, 1), vfs.Unstable)
	f.ok(os.Link(filepath.Join(f.dir, "f"), filepath.Join(f.dir, "g")))
	if a := f.getattr(node); a.Size != 10_000 || a.Nlink != 2 {
		t.Errorf("%+v", a)
	}
	f.ok(f.Sync(f.op, node))
	if got := f.backing("g"); string(got) != string(pattern(10_000, 1)) {
		t.Error("data lost")
	}
}

func TestGuard(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	old := f.getattr(node)
	f.write(node, 0, []byte("x"), vfs.Unstable)
	w, err := f.SetAttr(f.op, node, &vfs.SetAttr{SetMode: true, Mode: 0o600, HasGuard: true, Guard: old.Ctime})
	f.wants(err, vfs.ErrNotSync)
	if !w.HasPost || f.getattr(node).Mode != 0o644 {
		t.Error("a guarded change was made, or not reported")
	}
	_, err = f.SetAttr(f.op, node, &vfs.SetAttr{SetMode: true, Mode: 0o600, HasGuard: true, Guard: f.getattr(node).Ctime})
	f.ok(err)
}

func TestEveryChangeShowsInTheCtime(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	last := f.getattr(node).Ctime
	for i := range 200 {
		if i%2 == 0 {
			f.write(node, 0, []byte{byte(i)}, vfs.Unstable)
		} else {
			_, err := f.SetAttr(f.op, node, mode(uint32(0o600+i%8)))
			f.ok(err)
		}
		now := f.getattr(node).Ctime
		if later(last, now) != now {
			t.Fatalf("change %d: ctime %v after %v", i, now, last)
		}
		last = now
	}
}

func TestUsedCountsWhatWaits(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	res := f.write(node, 0, pattern(10_000, 1), vfs.Unstable)
	if res.WCC.Post.Used < 10_000 {
		t.Errorf("a file of 10000 bytes uses %d: it looks like a hole", res.WCC.Post.Used)
	}
}

func TestTruncate(t *testing.T) {
	onBoth(t, options{}, func(f *fixture) {
		node := f.create(vfs.RootID, "f", 0o644)
		f.write(node, 0, pattern(20_000, 1), vfs.Unstable)
		p := pattern(20_000, 1)
		grown := append(bytes.Clone(p[:5000]), make([]byte, 4000)...)
		after := [][]byte{p[:15_000], p[:8192], p[:5000], grown, {}, make([]byte, 100), make([]byte, 30_000)}
		for i, size := range []uint64{15_000, 8192, 5000, 9000, 0, 100, 30_000} {
			before := f.getattr(node)
			w, err := f.SetAttr(f.op, node, &vfs.SetAttr{SetSize: true, Size: size})
			f.ok(err)
			if w.Pre != before.Pre() || w.Post.Size != size || w.Post.Ctime == before.Ctime {
				f.t.Errorf("size %d: %+v", size, w)
			}
			p, _ := f.read(node, 0, 40_000)
			f.ok(f.Sync(f.op, node))
			if uint64(len(p)) != size || string(f.backing("f")) != string(p) {
				f.t.Errorf("size %d: read %d, backing %d", size, len(p), len(f.backing("f")))
			}
			if want := after[i]; string(p) != string(want) {
				f.t.Errorf("size %d: the content is wrong", size)
			}
		}
		_, err := f.SetAttr(f.op, vfs.RootID, &vfs.SetAttr{SetSize: true})
		f.wants(err, unix.EISDIR)
	})
}

func TestStatFS(t *testing.T) {
	f := newFixture(t, options{})
	got, err := f.StatFS(f.op, vfs.RootID)
	f.ok(err)
	if got.TotalBytes == 0 || got.FreeBytes > got.TotalBytes || got.NameMax != 255 || got.BlockSize == 0 {
		t.Errorf("%+v", got)
	}
}
