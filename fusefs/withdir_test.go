package fusefs

import (
	"testing"

	"loopnfs/internal/fslog"
	"loopnfs/internal/vfs"
)

// What is new needs no sync of its own only where the journal has all of it with its name.
func TestWithDir(t *testing.T) {
	f := newFixture(t, options{})
	plain := vfs.SetAttr{SetMode: true, Mode: 0o644}
	for log, want := range map[fslog.Log]bool{fslog.Ext4: true, fslog.XFS: false, fslog.None: false} {
		f.fsLog = log
		for _, c := range []struct {
			what string
			how  vfs.CreateMode
			set  vfs.SetAttr
			want bool
		}{
			{"unchecked", vfs.Unchecked, plain, want},
			{"guarded", vfs.Guarded, plain, want},
			{"exclusive", vfs.Exclusive, vfs.SetAttr{}, want},
			{"with a size", vfs.Unchecked, vfs.SetAttr{SetSize: true, Size: 1}, false},
			{"with a time", vfs.Guarded, vfs.SetAttr{SetMtime: vfs.SetToClientTime}, false},
			{"setuid", vfs.Guarded, vfs.SetAttr{SetMode: true, Mode: 0o4755}, false},
			{"of an owner", vfs.Guarded, vfs.SetAttr{SetUID: true, UID: 7}, false},
		} {
			create := func() vfs.Entry {
				e, _, err := f.Create(f.op, vfs.RootID, "f", c.how, &c.set, vfs.Verifier{1})
				if err != nil {
					t.Fatalf("log %d, %s: %v", log, c.what, err)
				}
				return e
			}
			e := create()
			if e.WithDir != c.want {
				t.Errorf("log %d, %s: %v, want %v", log, c.what, e.WithDir, c.want)
			}
			if c.how != vfs.Guarded {
				if again := create(); again.WithDir {
					t.Errorf("log %d, %s: a file that was there is taken for new", log, c.what)
				} else {
					f.Forget(again.Node, 1)
				}
			}
			f.Forget(e.Node, 1)
			if _, err := f.Remove(f.op, vfs.RootID, "f"); err != nil {
				t.Fatal(err)
			}
		}
		d, _, err := f.Mkdir(f.op, vfs.RootID, "d", &plain)
		if err != nil || d.WithDir != want {
			t.Errorf("log %d, a directory: %v, want %v (%v)", log, d.WithDir, want, err)
		}
		f.Forget(d.Node, 1)
		if _, err := f.Rmdir(f.op, vfs.RootID, "d"); err != nil {
			t.Fatal(err)
		}
	}
}
