package nfsserver

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

const rootNode = vfs.RootID

// wantSynced checks that exactly these nodes were synced since the last look.
func (f *fixture) wantSynced(what string, nodes ...vfs.NodeID) {
	f.Helper()
	got := f.fs.takeSynced()
	for _, n := range nodes {
		if got[n] == 0 {
			f.Errorf("%s: node %d was not put on stable storage", what, n)
		}
		delete(got, n)
	}
	if len(got) > 0 {
		f.Errorf("%s: synced needlessly: %v", what, got)
	}
}

func wantWCC(t *testing.T, what string, w *vfs.WCC) {
	t.Helper()
	if !w.HasPre || !w.HasPost {
		t.Errorf("%s: weak cache consistency data missing: %+v", what, w)
	}
}

func TestNull(t *testing.T) {
	c := dial(t, serve(t, nil).addr)
	c.cred = sunrpcNone()
	if d := c.call(nfs3.ProcNull, nil, nil); d.Remaining() != 0 {
		t.Errorf("NULL has %d bytes of results", d.Remaining())
	}
}

func TestCreateWriteReadCommit(t *testing.T) {
	f := serve(t, nil)
	c := dial(t, f.addr)
	root := c.root()
	var made nfs3.CreateResult
	args := nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: root, Name: []byte("file")}, How: vfs.Guarded,
		Set: vfs.SetAttr{SetMode: true, Mode: 0o640}}
	c.call(nfs3.ProcCreate, &args, &made)
	if made.Status != nfs3.StatusOK || !made.Handle.Has || !made.Attr.Has || made.Attr.Attr.Mode != 0o640 {
		t.Fatalf("CREATE: %+v", made)
	}
	wantWCC(t, "CREATE", &made.DirWCC)
	f.wantSynced("CREATE", rootNode, 2)
	h := made.Handle.Handle

	data := pattern(100_001)
	for off := 0; off < len(data); off += 30_001 {
		part := data[off:min(off+30_001, len(data))]
		res := c.write(nfs3.WriteArgs{Handle: h, Offset: uint64(off), Stable: vfs.Unstable}, part)
		if res.Status != nfs3.StatusOK || int(res.Count) != len(part) || res.Committed != vfs.Unstable || res.Verf != f.fs.verf {
			t.Fatalf("WRITE: %+v", res)
		}
		wantWCC(t, "WRITE", &res.WCC)
	}
	f.wantSynced("unstable WRITE")
	if res := c.write(nfs3.WriteArgs{Handle: h, Offset: 5, Stable: vfs.FileSync}, data[5:6]); res.Committed != vfs.FileSync {
		t.Errorf("WRITE FILE_SYNC: %+v", res)
	}
	var com nfs3.CommitResult
	c.call(nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, &com)
	if com.Status != nfs3.StatusOK || com.Verf != f.fs.verf {
		t.Errorf("COMMIT: %+v", com)
	}
	wantWCC(t, "COMMIT", &com.WCC)

	res, got := c.read(h, 0, 1<<20)
	if res.Status != nfs3.StatusOK || !res.EOF || !res.Attr.Has || !bytes.Equal(got, data) {
		t.Errorf("READ of all: %v, eof %v, %d bytes", res.Status, res.EOF, len(got))
	}
	res, got = c.read(h, 4095, 3)
	if res.EOF || !bytes.Equal(got, data[4095:4098]) {
		t.Errorf("READ across pages: eof %v, %d bytes", res.EOF, len(got))
	}
	if res, got = c.read(h, 1<<40, 10); !res.EOF || len(got) != 0 {
		t.Errorf("READ past the end: %+v", res)
	}
	if res, _ = c.read(h, 1<<63, 10); res.Status != nfs3.StatusInval {
		t.Errorf("READ past every end: %v", res.Status)
	}
	if res := c.write(nfs3.WriteArgs{Handle: h, Offset: 1<<63 - 2}, []byte("abc")); res.Status != nfs3.StatusFBig {
		t.Errorf("WRITE past every end: %v", res.Status)
	}
}

func TestCreateModes(t *testing.T) {
	f := serve(t, nil)
	c := dial(t, f.addr)
	root := c.root()
	create := func(name string, how vfs.CreateMode, verf byte) nfs3.Status {
		var res nfs3.CreateResult
		c.call(nfs3.ProcCreate, &nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: root, Name: []byte(name)},
			How: how, Verf: vfs.Verifier{verf}}, &res)
		return res.Status
	}
	for i, step := range []struct {
		name string
		how  vfs.CreateMode
		verf byte
		want nfs3.Status
	}{
		{"a", vfs.Guarded, 0, nfs3.StatusOK},
		{"a", vfs.Guarded, 0, nfs3.StatusExist},
		{"a", vfs.Unchecked, 0, nfs3.StatusOK},
		{"b", vfs.Exclusive, 5, nfs3.StatusOK},
		{"b", vfs.Exclusive, 5, nfs3.StatusOK}, // sent again
		{"b", vfs.Exclusive, 6, nfs3.StatusExist},
		{"", vfs.Guarded, 0, nfs3.StatusInval},
		{"..", vfs.Guarded, 0, nfs3.StatusInval},
		{"x/y", vfs.Guarded, 0, nfs3.StatusInval},
		{strings.Repeat("n", 256), vfs.Guarded, 0, nfs3.StatusNameTooLong},
	} {
		if got := create(step.name, step.how, step.verf); got != step.want {
			t.Errorf("step %d, %q: %v, want %v", i, step.name, got, step.want)
		}
	}
}

func TestNameSpace(t *testing.T) {
	f := serve(t, nil)
	c := dial(t, f.addr)
	root := c.root()
	at := func(dir nfs3.FileHandle, name string) nfs3.DirOpArgs {
		return nfs3.DirOpArgs{Dir: dir, Name: []byte(name)}
	}
	var made nfs3.CreateResult
	c.call(nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: at(root, "dir"), Set: vfs.SetAttr{SetMode: true, Mode: 0o777}}, &made)
	if made.Status != nfs3.StatusOK || made.Attr.Attr.Type != vfs.TypeDirectory {
		t.Fatalf("MKDIR: %+v", made)
	}
	f.wantSynced("MKDIR", rootNode, 2)
	dir := made.Handle.Handle

	target := strings.Repeat("t", 4095)
	c.call(nfs3.ProcSymlink, &nfs3.SymlinkArgs{Where: at(dir, "sym"), Target: []byte(target)}, &made)
	if made.Status != nfs3.StatusOK || made.Attr.Attr.Type != vfs.TypeSymlink {
		t.Fatalf("SYMLINK: %+v", made)
	}
	f.wantSynced("SYMLINK", 3, 2)
	var rl nfs3.ReadlinkResult
	c.call(nfs3.ProcReadlink, &nfs3.HandleArgs{Handle: made.Handle.Handle}, &rl)
	if rl.Status != nfs3.StatusOK || string(rl.Target) != target || !rl.Attr.Has {
		t.Errorf("READLINK: %v, %d bytes", rl.Status, len(rl.Target))
	}
	c.call(nfs3.ProcReadlink, &nfs3.HandleArgs{Handle: dir}, &rl)
	if rl.Status != nfs3.StatusInval {
		t.Errorf("READLINK of a directory: %v", rl.Status)
	}

	c.call(nfs3.ProcMknod, &nfs3.MknodArgs{Where: at(dir, "dev"), Type: vfs.TypeChar, Major: 4, Minor: 7}, &made)
	if made.Status != nfs3.StatusOK || made.Attr.Attr.Major != 4 || made.Attr.Attr.Minor != 7 {
		t.Errorf("MKNOD: %+v", made)
	}
	f.wantSynced("MKNOD", 4, 2)
	c.call(nfs3.ProcMknod, &nfs3.MknodArgs{Where: at(dir, "bad"), Type: vfs.TypeRegular}, &made)
	if made.Status != nfs3.StatusBadType {
		t.Errorf("MKNOD of a file: %v", made.Status)
	}
	for _, d := range [][2]uint32{{1<<12 + 1, 3}, {1, 1<<20 + 3}} { // cut, they were 1:3
		c.call(nfs3.ProcMknod, &nfs3.MknodArgs{Where: at(dir, "cut"), Type: vfs.TypeChar, Major: d[0], Minor: d[1]}, &made)
		if made.Status != nfs3.StatusInval {
			t.Errorf("MKNOD of device %d:%d: %v", d[0], d[1], made.Status)
		}
	}
	wantPost(t, "failed MKNOD", &made.DirWCC)

	f.fs.put(t, rootNode, "file", pattern(10))
	var ln nfs3.LinkResult
	c.call(nfs3.ProcLink, &nfs3.LinkArgs{Handle: c.file("file"), To: at(dir, "hard")}, &ln)
	if ln.Status != nfs3.StatusOK || ln.Attr.Attr.Nlink != 2 {
		t.Errorf("LINK: %+v", ln)
	}
	wantWCC(t, "LINK", &ln.DirWCC)
	f.wantSynced("LINK", 2)

	var mv nfs3.RenameResult
	c.call(nfs3.ProcRename, &nfs3.RenameArgs{From: at(root, "file"), To: at(dir, "moved")}, &mv)
	if mv.Status != nfs3.StatusOK {
		t.Errorf("RENAME: %v", mv.Status)
	}
	wantWCC(t, "RENAME from", &mv.From)
	wantWCC(t, "RENAME to", &mv.To)
	f.wantSynced("RENAME", rootNode, 2)
	c.call(nfs3.ProcRename, &nfs3.RenameArgs{From: at(root, "file"), To: at(dir, "moved")}, &mv)
	if mv.Status != nfs3.StatusNoEnt {
		t.Errorf("RENAME of nothing: %v", mv.Status)
	}
	wantPost(t, "failed RENAME", &mv.From)
	wantPost(t, "failed RENAME", &mv.To)

	var rm nfs3.WCCResult
	c.call(nfs3.ProcRmdir, &nfs3.RmdirArgs{Dir: root, Name: []byte("dir")}, &rm)
	if rm.Status != nfs3.StatusNotEmpty {
		t.Errorf("RMDIR of a full directory: %v", rm.Status)
	}
	f.wantSynced("failed RMDIR")
	for _, name := range []string{"sym", "dev", "hard", "moved"} {
		c.call(nfs3.ProcRemove, &nfs3.RemoveArgs{Dir: dir, Name: []byte(name)}, &rm)
		if rm.Status != nfs3.StatusOK {
			t.Errorf("REMOVE %s: %v", name, rm.Status)
		}
		wantWCC(t, "REMOVE", &rm.WCC)
	}
	f.wantSynced("REMOVE", 2)
	c.call(nfs3.ProcRmdir, &nfs3.RmdirArgs{Dir: root, Name: []byte("dir")}, &rm)
	if rm.Status != nfs3.StatusOK {
		t.Errorf("RMDIR: %v", rm.Status)
	}
	f.wantSynced("RMDIR", rootNode)
	if res := c.getattr(dir); res.Status != nfs3.StatusStale {
		t.Errorf("GETATTR of what is gone: %v", res.Status)
	}
}

func wantPost(t *testing.T, what string, w *vfs.WCC) {
	t.Helper()
	if !w.HasPost {
		t.Errorf("%s: no attributes after the operation", what)
	}
}

func TestSetAttr(t *testing.T) {
	f := serve(t, nil)
	node := f.fs.put(t, rootNode, "file", pattern(10_000))
	c := dial(t, f.addr)
	h := c.file("file")
	before := c.getattr(h)
	var res nfs3.SetAttrResult
	set := func(s vfs.SetAttr) nfs3.Status {
		c.call(nfs3.ProcSetAttr, &nfs3.SetAttrArgs{Handle: h, Set: s}, &res)
		return res.Status
	}
	if st := set(vfs.SetAttr{SetSize: true, Size: 5000, HasGuard: true, Guard: before.Attr.Ctime}); st != nfs3.StatusOK {
		t.Errorf("guarded: %v", st)
	}
	wantWCC(t, "SETATTR", &res.WCC)
	f.wantSynced("SETATTR", node)
	if st := set(vfs.SetAttr{SetSize: true, Size: 1, HasGuard: true, Guard: before.Attr.Ctime}); st != nfs3.StatusNotSync {
		t.Errorf("with an old guard: %v", st)
	}
	f.wantSynced("refused SETATTR")
	wantPost(t, "refused SETATTR", &res.WCC)
	if st := set(vfs.SetAttr{SetSize: true, Size: 1 << 63}); st != nfs3.StatusFBig {
		t.Errorf("too large: %v", st)
	}
	mtime := vfs.Time{Sec: 77, Nsec: 123456789}
	if st := set(vfs.SetAttr{SetMtime: vfs.SetToClientTime, Mtime: mtime, SetMode: true, Mode: 0o600}); st != nfs3.StatusOK {
		t.Errorf("time and mode: %v", st)
	}
	if a := c.getattr(h).Attr; a.Size != 5000 || a.Mtime != mtime || a.Mode != 0o600 {
		t.Errorf("afterwards: %+v", a)
	}
}

func TestLookup(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	root := c.root()
	ok := c.lookup(root, "file")
	if ok.Status != nfs3.StatusOK || !ok.Attr.Has || !ok.DirAttr.Has || ok.Attr.Attr.Ino != 2 {
		t.Errorf("file: %+v", ok)
	}
	for _, name := range []string{".", ".."} {
		if res := c.lookup(root, name); res.Status != nfs3.StatusOK || res.Handle != root {
			t.Errorf("%s: %v, want the root itself", name, res.Status)
		}
	}
	if res := c.lookup(root, "none"); res.Status != nfs3.StatusNoEnt || !res.DirAttr.Has {
		t.Errorf("none: %+v", res)
	}
	if res := c.lookup(ok.Handle, "x"); res.Status != nfs3.StatusNotDir {
		t.Errorf("in a file: %v", res.Status)
	}
	if res := c.lookup(root, strings.Repeat("x", 300)); res.Status != nfs3.StatusNameTooLong {
		t.Errorf("long name: %v", res.Status)
	}
}

func TestInformation(t *testing.T) {
	f := serve(t, nil)
	c := dial(t, f.addr)
	args := nfs3.HandleArgs{Handle: c.root()}
	var info nfs3.FSInfoResult
	c.call(nfs3.ProcFSInfo, &args, &info)
	i := info.Info
	if info.Status != nfs3.StatusOK || !info.Attr.Has || i.RTMax != 1<<20 || i.WTMax != 1<<20 ||
		i.TimeDelta != (vfs.Time{Nsec: 1}) || i.Properties != 0x1b || i.MaxFileSize != 1<<63-1 {
		t.Errorf("FSINFO: %+v", info)
	}
	var st nfs3.FSStatResult
	c.call(nfs3.ProcFSStat, &args, &st)
	if st.Status != nfs3.StatusOK || st.Stat.AvailBytes != 1<<28 || st.Stat.FreeFiles != 900 || !st.Attr.Has {
		t.Errorf("FSSTAT: %+v", st)
	}
	var pc nfs3.PathConfResult
	c.call(nfs3.ProcPathConf, &args, &pc)
	if pc.Status != nfs3.StatusOK || pc.Conf.NameMax != 255 || !pc.Conf.NoTrunc || !pc.Conf.CasePreserving {
		t.Errorf("PATHCONF: %+v", pc)
	}
	f.fs.mu.Lock()
	f.fs.linkMax = 1
	f.fs.mu.Unlock()
	c.call(nfs3.ProcFSInfo, &args, &info)
	c.call(nfs3.ProcPathConf, &args, &pc)
	if info.Info.Properties&nfs3.FSFLink != 0 || pc.Conf.LinkMax != 1 {
		t.Errorf("without hard links: FSINFO %+v, PATHCONF %+v", info, pc)
	}
	var ac nfs3.AccessResult
	c.call(nfs3.ProcAccess, &nfs3.AccessArgs{Handle: args.Handle, Access: 0xffffffff}, &ac)
	if ac.Status != nfs3.StatusOK || ac.Access != 0x3f || !ac.Attr.Has {
		t.Errorf("ACCESS: %+v", ac)
	}
}

// list reads a directory with READDIR and returns the names.
func (c *rpcClient) list(dir nfs3.FileHandle, count uint32) (names []string, calls int, st nfs3.Status) {
	c.t.Helper()
	a := nfs3.ReaddirArgs{Handle: dir, Count: count}
	for {
		calls++
		var res nfs3.ReaddirResult
		d := c.call(nfs3.ProcReaddir, &a, &res)
		if res.Status != nfs3.StatusOK {
			return names, calls, res.Status
		}
		if d.Remaining()+8+res.DirAttr.Len() > int(count) {
			c.t.Errorf("READDIR: more than the %d bytes asked for", count)
		}
		var e vfs.DirEntry
		for nfs3.NextEntry(d, &e) {
			names = append(names, string(e.Name))
			a.Cookie = e.Cookie
		}
		eof, err := nfs3.ListEOF(d)
		if err != nil || d.Remaining() != 0 {
			c.t.Fatalf("READDIR: %v, %d bytes left", err, d.Remaining())
		}
		if eof {
			return names, calls, res.Status
		}
		a.Verf = res.Verf
	}
}

// listPlus is list with READDIRPLUS.
func (c *rpcClient) listPlus(dir nfs3.FileHandle, dirCount, maxCount uint32) (names []string, calls int, st nfs3.Status) {
	c.t.Helper()
	a := nfs3.ReaddirplusArgs{Handle: dir, DirCount: dirCount, MaxCount: maxCount}
	for {
		calls++
		var res nfs3.ReaddirplusResult
		d := c.call(nfs3.ProcReaddirplus, &a, &res)
		if res.Status != nfs3.StatusOK {
			return names, calls, res.Status
		}
		if d.Remaining()+8+res.DirAttr.Len() > int(maxCount) {
			c.t.Errorf("READDIRPLUS: more than the %d bytes asked for", maxCount)
		}
		var e nfs3.EntryPlus
		for nfs3.NextEntryPlus(d, &e) {
			names = append(names, string(e.Name))
			a.Cookie = e.Cookie
			if !e.Attr.Has || !e.Handle.Has || e.Attr.Attr.Ino != e.Ino {
				c.t.Errorf("READDIRPLUS: entry %s: %+v", e.Name, e)
			}
		}
		eof, err := nfs3.ListEOF(d)
		if err != nil || d.Remaining() != 0 {
			c.t.Fatalf("READDIRPLUS: %v, %d bytes left", err, d.Remaining())
		}
		if eof {
			return names, calls, res.Status
		}
		a.Verf = res.Verf
	}
}

func TestReaddir(t *testing.T) {
	f := serve(t, nil)
	want := []string{".", ".."}
	for i := range 1000 {
		name := strings.Repeat("n", i%200+1) + string(rune('a'+i%26)) + string(rune('0'+i/26%10)) + string(rune('A'+i/260))
		f.fs.put(t, rootNode, name, nil)
		want = append(want, name)
	}
	c := dial(t, f.addr)
	root := c.root()
	for _, count := range []uint32{512, 4096, 8192, 65536, 1 << 20} {
		if got, calls, st := c.list(root, count); st != nfs3.StatusOK || !slices.Equal(got, want) {
			t.Errorf("READDIR of %d bytes: %v, %d names in %d calls", count, st, len(got), calls)
		}
	}
	for _, count := range []uint32{700, 4096, 65536, 1 << 20} {
		for _, dirCount := range []uint32{0, 300, 1 << 20} {
			if got, calls, st := c.listPlus(root, dirCount, count); st != nfs3.StatusOK || !slices.Equal(got, want) {
				t.Errorf("READDIRPLUS of %d and %d bytes: %v, %d names in %d calls", dirCount, count, st, len(got), calls)
			}
		}
	}
	if _, few, _ := c.listPlus(root, 1<<20, 1<<20); few > 8 {
		t.Errorf("READDIRPLUS of all takes %d calls", few)
	}
	for _, count := range []uint32{0, 50, 110, 120} {
		if _, _, st := c.list(root, count); st != nfs3.StatusTooSmall {
			t.Errorf("READDIR of %d bytes: %v", count, st)
		}
		if _, _, st := c.listPlus(root, 100, count); st != nfs3.StatusTooSmall {
			t.Errorf("READDIRPLUS of %d bytes: %v", count, st)
		}
	}
	var res nfs3.ReaddirResult
	c.call(nfs3.ProcReaddir, &nfs3.ReaddirArgs{Handle: root, Cookie: 5, Verf: vfs.Verifier{9}, Count: 4096}, &res)
	if res.Status != nfs3.StatusBadCookie || !res.DirAttr.Has {
		t.Errorf("READDIR with another verifier: %+v", res)
	}
	c.call(nfs3.ProcReaddir, &nfs3.ReaddirArgs{Handle: c.file(want[2]), Count: 4096}, &res)
	if res.Status != nfs3.StatusNotDir {
		t.Errorf("READDIR of a file: %v", res.Status)
	}
}

// WRITE of more than wtmax is cut short, not refused.
func TestLongWrite(t *testing.T) {
	f := serve(t, func(c *Config) { c.Exports[0].FS.(*memFS).ioMax = 64 << 10 })
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	data := pattern(100 << 10)
	res := c.write(nfs3.WriteArgs{Handle: h}, data)
	if res.Status != nfs3.StatusOK || res.Count != 64<<10 {
		t.Errorf("WRITE: %v, %d bytes", res.Status, res.Count)
	}
	rd, got := c.read(h, 0, 1<<20)
	if !rd.EOF || !bytes.Equal(got, data[:64<<10]) {
		t.Errorf("READ: eof %v, %d bytes", rd.EOF, len(got))
	}
	if res := c.write(nfs3.WriteArgs{Handle: h}, nil); res.Status != nfs3.StatusOK || res.Count != 0 {
		t.Errorf("WRITE of nothing: %+v", res)
	}
}

func TestJukebox(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", nil)
	f.fs.onWrite.set(func(*vfs.Op) error { return vfs.ErrJukebox })
	c := dial(t, f.addr)
	res := c.write(nfs3.WriteArgs{Handle: c.file("file")}, pattern(10))
	if res.Status != nfs3.StatusJukebox {
		t.Errorf("WRITE: %v", res.Status)
	}
	wantPost(t, "WRITE", &res.WCC)
}

// With asynchronous metadata nothing is synced but what WRITE and COMMIT ask for.
func TestAsyncMetadata(t *testing.T) {
	dir := t.TempDir()
	f := serve(t, func(c *Config) { c.AsyncMetadata, c.StateDir = true, dir })
	c := dial(t, f.addr)
	root := c.root()
	where := nfs3.DirOpArgs{Dir: root, Name: []byte("file")}
	var made nfs3.CreateResult
	c.call(nfs3.ProcCreate, &nfs3.CreateArgs{Where: where}, &made)
	var renamed nfs3.RenameResult
	c.call(nfs3.ProcRename, &nfs3.RenameArgs{From: where, To: nfs3.DirOpArgs{Dir: root, Name: []byte("other")}}, &renamed)
	if made.Status != nfs3.StatusOK || renamed.Status != nfs3.StatusOK {
		t.Fatal(made.Status, renamed.Status)
	}
	f.wantSynced("CREATE and RENAME")
	if res := c.write(nfs3.WriteArgs{Handle: made.Handle.Handle, Count: 3, Stable: vfs.FileSync}, []byte("abc")); res.Committed != vfs.FileSync {
		t.Errorf("WRITE: %v", res.Committed)
	}
}

// What was made is made, also if somebody removes it before it is synced.
func TestRemovedBeforeItIsSynced(t *testing.T) {
	f := serve(t, nil)
	c := dial(t, f.addr)
	root := c.root()
	where := nfs3.DirOpArgs{Dir: root, Name: []byte("a")}
	f.fs.onSync.set(func(op *vfs.Op) error {
		f.fs.Remove(op, rootNode, "a")
		return nil
	})
	for proc, args := range map[uint32]encoder{
		nfs3.ProcCreate:  &nfs3.CreateArgs{Where: where, How: vfs.Guarded},
		nfs3.ProcSymlink: &nfs3.SymlinkArgs{Where: where, Target: []byte("target")},
	} {
		var res nfs3.CreateResult
		c.call(proc, args, &res)
		if res.Status != nfs3.StatusOK || !res.Handle.Has {
			t.Errorf("%s: %v", nfs3.ProcName(proc), res.Status)
		}
		if st := c.lookup(root, "a").Status; st != nfs3.StatusNoEnt {
			t.Errorf("it was not removed: %v", st)
		}
	}
}
