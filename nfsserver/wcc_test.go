package nfsserver

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
)

func sysCred(uid, gid uint32) sunrpc.Cred {
	return sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: sunrpc.AuthSysCred{Machine: []byte("here"), UID: uid, GID: gid}}
}

// What others wrote while a COMMIT syncs must not be between its pre- and post-attributes.
func TestCommitWCC(t *testing.T) {
	dir, state := diskDirs(t)
	check(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o666))
	s := serveStore(t, dir, state, 64<<20, "127.0.0.1:0")
	a, b := dial(t, s.addr), dial(t, s.addr)
	h := a.file("file")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			b.write(nfs3.WriteArgs{Handle: h, Offset: i % 1000 * 4096}, pattern(4096))
			time.Sleep(100 * time.Microsecond)
		}
	})
	bad, n := 0, 0
	var example nfs3.CommitResult
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end) && n < 300; n++ {
		var com nfs3.CommitResult
		a.call(nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, &com)
		w := &com.WCC
		if com.Status == nfs3.StatusOK && w.HasPre && w.HasPost && (w.Pre.Mtime != w.Post.Mtime || w.Pre.Ctime != w.Post.Ctime || w.Pre.Size != w.Post.Size) {
			bad, example = bad+1, com
		}
	}
	close(stop)
	wg.Wait()
	if bad > 0 {
		t.Errorf("%d of %d COMMITs hide somebody else's WRITE: pre %+v, post mtime %+v size %d", bad, n, example.WCC.Pre, example.WCC.Post.Mtime, example.WCC.Post.Size)
	}
}

// The same for a WRITE that is refused.
func TestRefusedWriteWCC(t *testing.T) {
	dir, state := diskDirs(t)
	check(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	s := serveStore(t, dir, state, 64<<20, "127.0.0.1:0")
	a, b := dial(t, s.addr), dial(t, s.addr)
	h := a.file("file")
	a.cred = sysCred(1000, 1000)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			b.write(nfs3.WriteArgs{Handle: h, Offset: i % 1000 * 4096}, pattern(4096))
		}
	})
	bad, n := 0, 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end) && bad == 0; n++ {
		res := a.write(nfs3.WriteArgs{Handle: h}, pattern(10))
		if res.Status != nfs3.StatusAcces {
			t.Fatal(res.Status)
		}
		w := &res.WCC
		if w.HasPre && w.HasPost && (w.Pre.Mtime != w.Post.Mtime || w.Pre.Size != w.Post.Size) {
			bad++
		}
	}
	close(stop)
	wg.Wait()
	if bad > 0 {
		t.Errorf("%d of %d refused WRITEs hide somebody else's", bad, n)
	}
}

func (x *storeServer) mkdirAs(t *testing.T, uid uint32, dir nfs3.FileHandle, name string, set vfs.SetAttr) nfs3.CreateResult {
	c := dial(t, x.addr)
	c.cred = sysCred(uid, uid)
	var res nfs3.CreateResult
	c.call(nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: nfs3.DirOpArgs{Dir: dir, Name: []byte(name)}, Set: set}, &res)
	return res
}

// A user makes a directory that he may not list himself, with the sticky bit.
func TestMkdirStickyUnreadable(t *testing.T) {
	dir, state := diskDirs(t)
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0")
	root := dial(t, s.addr).root()
	res := s.mkdirAs(t, 1000, root, "d", vfs.SetAttr{SetMode: true, Mode: 0o1333})
	_, err := os.Lstat(filepath.Join(dir, "d"))
	if res.Status != nfs3.StatusOK || err != nil {
		t.Errorf("MKDIR 01333: %v; on disk: %v", res.Status, err)
	}
}

// The sticky bit does not take away the set-gid bit that a directory inherits.
func TestMkdirInheritsSetGID(t *testing.T) {
	dir, state := diskDirs(t)
	check(t, os.Mkdir(filepath.Join(dir, "shared"), 0o777))
	check(t, os.Chown(filepath.Join(dir, "shared"), 0, 4321))
	check(t, syscall.Chmod(filepath.Join(dir, "shared"), 0o2777))
	old := syscall.Umask(0)
	check(t, syscall.Mkdir(filepath.Join(dir, "shared/local"), 0o1777))
	syscall.Umask(old)
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0")
	c := dial(t, s.addr)
	shared := c.file("shared")
	var st, want syscall.Stat_t
	check(t, syscall.Stat(filepath.Join(dir, "shared/local"), &want))
	for name, uid := range map[string]uint32{"root": 0, "user": 1000} {
		if res := s.mkdirAs(t, uid, shared, name, vfs.SetAttr{SetMode: true, Mode: 0o1777}); res.Status != nfs3.StatusOK {
			t.Fatal(res.Status)
		}
		check(t, syscall.Stat(filepath.Join(dir, "shared", name), &st))
		if st.Mode != want.Mode || st.Gid != want.Gid {
			t.Errorf("%s: made over NFS: %o gid %d, mkdir(2) makes %o gid %d", name, st.Mode, st.Gid, want.Mode, want.Gid)
		}
	}
}

// What open(2) with O_TRUNC sends for a user who may write, but does not own the file:
// a size, and the server's time for mtime.
func TestTruncateByWriter(t *testing.T) {
	dir, state := diskDirs(t)
	for name, set := range map[string]vfs.SetAttr{
		"size and mtime":  {SetSize: true, SetMtime: vfs.SetToServerTime},
		"mtime":           {SetMtime: vfs.SetToServerTime},
		"atime":           {SetAtime: vfs.SetToServerTime},
		"atime and mtime": {SetAtime: vfs.SetToServerTime, SetMtime: vfs.SetToServerTime},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "f")
			check(t, os.WriteFile(path, []byte("content"), 0o666))
			check(t, os.Chmod(path, 0o666))
			check(t, os.Chown(path, 1000, 1000))
			s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0")
			defer s.stop()
			c := dial(t, s.addr)
			h := c.file("f")
			c.cred = sysCred(1001, 1001)
			var res nfs3.SetAttrResult
			c.call(nfs3.ProcSetAttr, &nfs3.SetAttrArgs{Handle: h, Set: set}, &res)
			b, _ := os.ReadFile(path)
			if res.Status != nfs3.StatusOK {
				t.Errorf("%v; the file has %q", res.Status, b)
			}
			c.close()
		})
	}
}
