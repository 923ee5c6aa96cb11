package nfsserver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
)

func TestValidate(t *testing.T) {
	arena := newArena(t, 8<<20)
	fs := newMemFS(arena)
	for want, change := range map[string]func(*Config){
		"no arena":               func(c *Config) { c.Arena = nil },
		"workers":                func(c *Config) { c.Workers = -1 },
		"request slots":          func(c *Config) { c.Slots = 3 },
		"connections":            func(c *Config) { c.MaxConns = -1 },
		"negative":               func(c *Config) { c.SendTimeout = -1 },
		"0 exports":              func(c *Config) { c.Exports = nil },
		"no file system":         func(c *Config) { c.Exports[0].FS = nil },
		"absolute path":          func(c *Config) { c.Exports[0].Name = "data" },
		"trailing":               func(c *Config) { c.Exports[0].Name = "/data/" },
		"\"..\"":                 func(c *Config) { c.Exports[0].Name = "/../data" },
		"longer than":            func(c *Config) { c.Exports[0].Name = "/" + strings.Repeat("x", 1024) },
		"there twice":            func(c *Config) { c.Exports = append(c.Exports, c.Exports[0]) },
		"the same ID 5":          func(c *Config) { c.Exports = []Export{{Name: "/a", FS: fs, ID: 5}, {Name: "/b", FS: fs, ID: 5}} },
		"over the limit":         func(c *Config) { c.Exports[0].ID = 1 << 24 },
		"not a way to squash":    func(c *Config) { c.Exports[0].Squash = 9 },
		"network is not valid":   func(c *Config) { c.Exports[0].Allow = []netip.Prefix{{}} },
		"networks are allowed":   func(c *Config) { c.Exports[0].Allow = make([]netip.Prefix, 300) },
		"can move no data":       func(c *Config) { c.Exports[0].FS = &memFS{} },
		"handles of 61 bytes":    func(c *Config) { c.Exports[0].FS = longHandles{fs} },
		"1025 exports: want 1 t": func(c *Config) { c.Exports = make([]Export, 1025) },
	} {
		cfg := Config{Arena: arena, Exports: []Export{{Name: "/data", FS: fs}}}
		change(&cfg)
		s, err := New(cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

type longHandles struct{ *memFS }

func (longHandles) Handle(_ vfs.NodeID, b []byte) ([]byte, error) {
	return append(b, make([]byte, 61)...), nil
}

func TestExportID(t *testing.T) {
	seen := map[uint32]string{}
	for i := range 1000 {
		name := fmt.Sprintf("/export/%d", i)
		id := ExportID(name)
		if id == 0 || id > MaxExportID || id != ExportID(name) {
			t.Fatalf("%s: ID %d", name, id)
		}
		seen[id] = name
	}
	if len(seen) < 990 {
		t.Errorf("only %d different IDs of 1000", len(seen))
	}
	if got := ExportID("/data"); got != 0xf653b7 {
		t.Errorf("the ID of /data became %#x: handles of older servers are lost", got)
	}
}

func TestHandles(t *testing.T) {
	f := serve(t, nil)
	c := dial(t, f.addr)
	root := c.root()
	with := func(change func([]byte) []byte) nfs3.FileHandle {
		h, ok := nfs3.MakeHandle(change(slices.Clone(root.Bytes())))
		if !ok {
			t.Fatal("too long")
		}
		return h
	}
	for _, x := range []struct {
		name string
		h    nfs3.FileHandle
		want nfs3.Status
	}{
		{"the root", root, nfs3.StatusOK},
		{"another version", with(func(b []byte) []byte { b[0]++; return b }), nfs3.StatusBadHandle},
		{"another export", with(func(b []byte) []byte { b[3]++; return b }), nfs3.StatusBadHandle},
		{"empty", with(func([]byte) []byte { return nil }), nfs3.StatusBadHandle},
		{"short", with(func(b []byte) []byte { return b[:3] }), nfs3.StatusBadHandle},
		{"of another file system", with(func(b []byte) []byte { return append(b, 0) }), nfs3.StatusBadHandle},
		{"of no file", with(func(b []byte) []byte { b[len(b)-1] = 99; return b }), nfs3.StatusStale},
	} {
		if got := c.getattr(x.h); got.Status != x.want {
			t.Errorf("%s: %v, want %v", x.name, got.Status, x.want)
		}
	}
	// A handle that is too long cannot be encoded by nfs3.
	d, err := c.wait(c.start(nfs3.Program, nfs3.ProcGetAttr, &nfs3.MntArgs{Path: make([]byte, 65)}, nil))
	if err != nil || nfs3.Status(d.Uint32()) != nfs3.StatusBadHandle {
		t.Errorf("a handle of 65 bytes: %v", err)
	}
}

// Two exports on one server: each its own, none reaches into the other.
func TestTwoExports(t *testing.T) {
	var other *memFS
	f := serve(t, func(c *Config) {
		other = newMemFS(c.Arena)
		c.Exports = append(c.Exports, Export{Name: "/data/other", FS: other})
	})
	file := f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	one, _ := c.mount("/data")
	two, st := c.mount("/data/other")
	if st != nfs3.MountOK || one == two {
		t.Fatalf("MNT /data/other: %v", st)
	}
	if res := c.lookup(two, "file"); res.Status != nfs3.StatusNoEnt {
		t.Errorf("LOOKUP in the other: %v", res.Status)
	}
	if _, st := c.mount("/"); st != nfs3.MountNoEnt {
		t.Errorf("MNT / with two exports: %v", st)
	}
	var mv nfs3.RenameResult
	c.call(nfs3.ProcRename, &nfs3.RenameArgs{
		From: nfs3.DirOpArgs{Dir: one, Name: []byte("file")}, To: nfs3.DirOpArgs{Dir: two, Name: []byte("x")},
	}, &mv)
	if mv.Status != nfs3.StatusXDev {
		t.Errorf("RENAME: %v", mv.Status)
	}
	var ln nfs3.LinkResult
	c.call(nfs3.ProcLink, &nfs3.LinkArgs{Handle: c.file("file"), To: nfs3.DirOpArgs{Dir: two, Name: []byte("x")}}, &ln)
	if ln.Status != nfs3.StatusXDev {
		t.Errorf("LINK: %v", ln.Status)
	}
	_ = file
	if n := other.references(); n != 0 {
		t.Errorf("%d nodes of the other are still referenced", n)
	}
}

func TestSquash(t *testing.T) {
	const anon = 4242
	user := sunrpc.AuthSysCred{UID: 7, GID: 8, GIDs: [16]uint32{0, 9}, NGIDs: 2}
	root := sunrpc.AuthSysCred{GIDs: [16]uint32{0, 9}, NGIDs: 2}
	for _, x := range []struct {
		squash   Squash
		cred     sunrpc.Cred
		uid, gid uint32
		groups   []uint32
	}{
		{SquashRoot, sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: user}, 7, 8, []uint32{anon, 9}},
		{SquashRoot, sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: root}, anon, anon, []uint32{anon, 9}},
		{SquashRoot, sunrpc.Cred{}, anon, anon, nil},
		{SquashAll, sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: user}, anon, anon, nil},
		{SquashNone, sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: root}, 0, 0, []uint32{0, 9}},
		{SquashNone, sunrpc.Cred{}, anon, anon, nil},
	} {
		t.Run(fmt.Sprint(x.squash, x.cred.Flavor, x.cred.Sys.UID), func(t *testing.T) {
			f := serve(t, func(c *Config) {
				c.Exports[0].Squash, c.Exports[0].AnonUID, c.Exports[0].AnonGID = x.squash, anon, anon
			})
			seen := make(chan vfs.Cred, 1)
			c := dial(t, f.addr)
			h := c.root()
			f.fs.onGetAttr.set(func(op *vfs.Op) error {
				seen <- vfs.Cred{UID: op.Cred.UID, GID: op.Cred.GID, Groups: slices.Clone(op.Cred.Groups)}
				return nil
			})
			c.cred = x.cred
			c.getattr(h)
			got := <-seen
			if got.UID != x.uid || got.GID != x.gid || !slices.Equal(got.Groups, x.groups) {
				t.Errorf("the file system saw %+v", got)
			}
		})
	}
	for _, name := range []string{"root", "all", "none"} {
		if s, err := ParseSquash(name); err != nil || s.String() != name {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if _, err := ParseSquash("some"); err == nil {
		t.Error("some is no way to squash")
	}
}

func TestAllow(t *testing.T) {
	f := serve(t, func(c *Config) {
		c.Exports[0].Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.2/32")}
	})
	good := newRPCClient(t, dialFrom(t, "127.0.0.2", f.addr))
	root := good.root()
	bad := dial(t, f.addr)
	if _, st := bad.mount("/data"); st != nfs3.MountAcces {
		t.Errorf("MNT: %v", st)
	}
	if res := bad.getattr(root); res.Status != nfs3.StatusAcces {
		t.Errorf("GETATTR with a handle from somebody else: %v", res.Status)
	}
	if res := good.getattr(root); res.Status != nfs3.StatusOK {
		t.Errorf("GETATTR: %v", res.Status)
	}
}

func TestSecure(t *testing.T) {
	f := serve(t, func(c *Config) { c.Exports[0].Secure = true })
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.1"), Port: 987}}
	nc, err := d.Dial("tcp", f.addr)
	if err != nil {
		t.Skip("no port below 1024 to be had:", err)
	}
	good := newRPCClient(t, nc)
	root := good.root()
	if res := good.getattr(root); res.Status != nfs3.StatusOK {
		t.Errorf("GETATTR: %v", res.Status)
	}
	bad := dial(t, f.addr)
	if _, st := bad.mount("/data"); st != nfs3.MountAcces {
		t.Errorf("MNT: %v", st)
	}
	if res := bad.getattr(root); res.Status != nfs3.StatusAcces {
		t.Errorf("GETATTR: %v", res.Status)
	}
}

func TestReadOnly(t *testing.T) {
	f := serve(t, func(c *Config) { c.Exports[0].ReadOnly = true })
	f.fs.put(t, rootNode, "file", pattern(10))
	c := dial(t, f.addr)
	root, h := c.root(), c.file("file")
	where := nfs3.DirOpArgs{Dir: root, Name: []byte("new")}
	old := nfs3.DirOpArgs{Dir: root, Name: []byte("file")}
	for proc, args := range map[uint32]encoder{
		nfs3.ProcSetAttr: &nfs3.SetAttrArgs{Handle: h},
		nfs3.ProcWrite:   &nfs3.WriteArgs{Handle: h},
		nfs3.ProcCreate:  &nfs3.CreateArgs{Where: where},
		nfs3.ProcMkdir:   &nfs3.MkdirArgs{Where: where},
		nfs3.ProcSymlink: &nfs3.SymlinkArgs{Where: where, Target: []byte("x")},
		nfs3.ProcMknod:   &nfs3.MknodArgs{Where: where, Type: vfs.TypeFIFO},
		nfs3.ProcRemove:  &old,
		nfs3.ProcRmdir:   &old,
		nfs3.ProcRename:  &nfs3.RenameArgs{From: old, To: where},
		nfs3.ProcLink:    &nfs3.LinkArgs{Handle: h, To: where},
		nfs3.ProcCommit:  &nfs3.CommitArgs{Handle: h},
	} {
		d := c.call(proc, args, nil)
		if st := nfs3.Status(d.Uint32()); st != nfs3.StatusROFS {
			t.Errorf("%s: %v", nfs3.ProcName(proc), st)
		}
	}
	var ac nfs3.AccessResult
	c.call(nfs3.ProcAccess, &nfs3.AccessArgs{Handle: root, Access: 0x3f}, &ac)
	if ac.Access != vfs.AccessRead|vfs.AccessLookup|vfs.AccessExecute {
		t.Errorf("ACCESS: %#x", ac.Access)
	}
	if _, got := c.read(h, 0, 10); len(got) != 10 {
		t.Errorf("READ: %d bytes", len(got))
	}
}

func TestMount(t *testing.T) {
	f := serve(t, nil)
	dir, _, err := f.fs.Mkdir(&vfs.Op{}, rootNode, "dir", &vfs.SetAttr{SetMode: true, Mode: 0o755})
	if err != nil {
		t.Fatal(err)
	}
	sub, _, err := f.fs.Mkdir(&vfs.Op{}, dir.Node, "sub", &vfs.SetAttr{SetMode: true, Mode: 0o755})
	if err != nil {
		t.Fatal(err)
	}
	link, _, err := f.fs.Symlink(&vfs.Op{}, rootNode, "link", "dir", &vfs.SetAttr{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []vfs.Entry{dir, sub, link} {
		f.fs.Forget(e.Node, 1)
	}
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	root := c.root()
	for path, want := range map[string]struct {
		st   nfs3.MountStatus
		node vfs.NodeID
	}{
		"/data":              {nfs3.MountOK, rootNode},
		"/":                  {nfs3.MountOK, rootNode},
		"/data/":             {nfs3.MountOK, rootNode},
		"/data/dir":          {nfs3.MountOK, dir.Node},
		"/data//dir/./sub/":  {nfs3.MountOK, sub.Node},
		"/data/dir/../dir":   {nfs3.MountAcces, 0},
		"/data/..":           {nfs3.MountAcces, 0},
		"/data/link":         {nfs3.MountNotDir, 0},
		"/data/link/sub":     {nfs3.MountNotDir, 0},
		"/data/file":         {nfs3.MountNotDir, 0},
		"/data/none":         {nfs3.MountNoEnt, 0},
		"/database":          {nfs3.MountNoEnt, 0},
		"/dat":               {nfs3.MountNoEnt, 0},
		"data":               {nfs3.MountNoEnt, 0},
		"":                   {nfs3.MountNoEnt, 0},
		"/data/\x00":         {nfs3.MountNoEnt, 0},
		long("/data/", 300):  {nfs3.MountNameTooLong, 0},
		long("/data/", 1200): {nfs3.MountNameTooLong, 0},
	} {
		h, st := c.mount(path)
		if st != want.st {
			t.Errorf("MNT %.40q: %v, want %v", path, st, want.st)
		}
		if st == nfs3.MountOK && binary.BigEndian.Uint64(h.Bytes()[4:]) != uint64(want.node) {
			t.Errorf("MNT %q: the handle of something else", path)
		}
	}
	if h, _ := c.mount("/data"); h != root {
		t.Error("the handle of the root changes")
	}
}

func long(prefix string, n int) string { return prefix + strings.Repeat("x", n-len(prefix)) }

func (c *rpcClient) mounts() (list []string) {
	c.t.Helper()
	d := c.must(c.start(nfs3.MountProgram, nfs3.MountProcDump, nil, nil))
	var e nfs3.MountEntry
	for nfs3.NextMount(d, &e) {
		list = append(list, string(e.Host)+":"+string(e.Dir))
	}
	if d.Err() != nil || d.Remaining() != 0 {
		c.t.Errorf("DUMP: %v, %d bytes left", d.Err(), d.Remaining())
	}
	return list
}

func TestMountList(t *testing.T) {
	f := serve(t, nil)
	dir, _, err := f.fs.Mkdir(&vfs.Op{}, rootNode, "dir", &vfs.SetAttr{SetMode: true, Mode: 0o755})
	if err != nil {
		t.Fatal(err)
	}
	f.fs.Forget(dir.Node, 1)
	a, b := dial(t, f.addr), newRPCClient(t, dialFrom(t, "127.0.0.2", f.addr))
	umnt := func(c *rpcClient, proc uint32, args encoder) {
		c.must(c.start(nfs3.MountProgram, proc, args, nil))
	}
	expect := func(want ...string) {
		t.Helper()
		if got := a.mounts(); !slices.Equal(got, want) {
			t.Errorf("DUMP: %q, want %q", got, want)
		}
	}
	expect()
	a.mount("/data")
	a.mount("/data/")
	a.mount("/data/dir")
	a.mount("/none")
	b.mount("/data")
	expect("127.0.0.1:/data", "127.0.0.1:/data/dir", "127.0.0.2:/data")
	umnt(b, nfs3.MountProcUmnt, &nfs3.MntArgs{Path: []byte("/data/dir")})
	umnt(a, nfs3.MountProcUmnt, &nfs3.MntArgs{Path: []byte("/data")})
	expect("127.0.0.1:/data/dir", "127.0.0.2:/data")
	umnt(a, nfs3.MountProcUmntAll, nil)
	expect("127.0.0.2:/data")
}

func TestMountListIsBounded(t *testing.T) {
	var l mountList
	for i := range 3 * maxMounts {
		l.add(netip.MustParseAddr("10.0.0.1"), fmt.Sprint("/", i))
	}
	all := l.all()
	if len(all) != maxMounts || all[maxMounts-1].dir != fmt.Sprint("/", 3*maxMounts-1) {
		t.Errorf("%d entries, the last is %v", len(all), all[len(all)-1])
	}
}

func TestListExports(t *testing.T) {
	f := serve(t, func(c *Config) {
		c.Exports = append(c.Exports, Export{Name: "/b", FS: c.Exports[0].FS})
		for i := range 200 {
			c.Exports[1].Allow = append(c.Exports[1].Allow, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16))
		}
	})
	c := dial(t, f.addr)
	d := c.must(c.start(nfs3.MountProgram, nfs3.MountProcExport, nil, nil))
	var x nfs3.Export
	var names []string
	groups := 0
	for nfs3.NextExport(d, &x) {
		names = append(names, string(x.Dir))
		groups += len(x.Groups)
		if len(x.Groups) > 0 && string(x.Groups[0]) != "10.0.0.0/16" {
			t.Errorf("group %q", x.Groups[0])
		}
	}
	if d.Err() != nil || !slices.Equal(names, []string{"/data", "/b"}) || groups < 50 {
		t.Errorf("EXPORT: %v, %q, %d groups", d.Err(), names, groups)
	}
}

// Exports come, go and change while clients are there.
func TestSetExports(t *testing.T) {
	f := serve(t, nil)
	c := dial(t, f.addr)
	root := c.root()
	data, other := Export{Name: "/data", FS: f.fs, Squash: SquashNone}, Export{Name: "/other", FS: f.fs}
	set := func(list ...Export) {
		t.Helper()
		if err := f.srv.SetExports(list); err != nil {
			t.Fatal(err)
		}
	}
	set(other)
	if res := c.getattr(root); res.Status != nfs3.StatusStale {
		t.Errorf("of an export that went: %v", res.Status)
	}
	if _, st := c.mount("/data"); st != nfs3.MountStatus(nfs3.StatusNoEnt) {
		t.Errorf("its mount: %v", st)
	}
	if _, st := c.mount("/other"); st != nfs3.MountOK {
		t.Errorf("another one: %v", st)
	}
	data.ReadOnly = true
	set(other, data)
	if res := c.getattr(root); res.Status != nfs3.StatusOK {
		t.Errorf("back again: %v", res.Status)
	}
	var made nfs3.CreateResult
	c.call(nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: nfs3.DirOpArgs{Dir: root, Name: []byte("d")}}, &made)
	if made.Status != nfs3.StatusROFS {
		t.Errorf("and read-only: %v", made.Status)
	}
	for what, list := range map[string][]Export{"none": nil, "twice": {data, data}, "nothing in it": {{Name: "/x"}}} {
		if f.srv.SetExports(list) == nil {
			t.Errorf("%s is no error", what)
		}
	}
	if res := c.getattr(root); res.Status != nfs3.StatusOK {
		t.Errorf("what could not be used changed something: %v", res.Status)
	}
}

// reloadFS has the exports set when it is asked for a handle.
type reloadFS struct {
	*memFS
	set atomic.Pointer[func()]
}

func (f *reloadFS) ByHandle(op *vfs.Op, h []byte) (vfs.NodeID, error) {
	if set := f.set.Load(); set != nil {
		(*set)()
	}
	return f.memFS.ByHandle(op, h)
}

// Two handles of one export are of one export, whatever happens between them.
func TestSetExportsWithinRename(t *testing.T) {
	var fs *reloadFS
	f := serve(t, func(c *Config) {
		fs = &reloadFS{memFS: c.Exports[0].FS.(*memFS)}
		c.Exports[0].FS = fs
	})
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	root := c.root()
	for _, mv := range [][3]string{{"/data", "file", "a"}, {"/other", "a", "b"}} {
		set := func() { check(t, f.srv.SetExports([]Export{{Name: mv[0], FS: fs, Squash: SquashNone}})) }
		fs.set.Store(&set)
		var res nfs3.RenameResult
		c.call(nfs3.ProcRename, &nfs3.RenameArgs{
			From: nfs3.DirOpArgs{Dir: root, Name: []byte(mv[1])}, To: nfs3.DirOpArgs{Dir: root, Name: []byte(mv[2])},
		}, &res)
		if res.Status != nfs3.StatusOK {
			t.Errorf("RENAME while %s is exported: %v", mv[0], res.Status)
		}
	}
}

// Clients by IPv6, and those by IPv4 of a server that listens for both.
func TestIPv6(t *testing.T) {
	for _, x := range []struct {
		listen, dial, allow string
		want                nfs3.MountStatus
	}{
		{"[::1]:0", "[::1]", "::1/128", nfs3.MountOK},
		{"[::1]:0", "[::1]", "2001:db8::/32", nfs3.MountAcces},
		{"[::]:0", "127.0.0.1", "127.0.0.0/8", nfs3.MountOK},
		{"[::]:0", "127.0.0.1", "::1/128", nfs3.MountAcces},
		{"[::]:0", "[::1]", "::1/128", nfs3.MountOK},
	} {
		if l, err := net.Listen("tcp", x.listen); err != nil {
			t.Skipf("no IPv6 here: %v", err)
		} else {
			l.Close()
		}
		arena := newArena(t, 16<<20)
		fs := newMemFS(arena)
		fs.put(t, rootNode, "file", pattern(10))
		srv, addr := startOn(t, Config{Arena: arena, Exports: []Export{{
			Name: "/data", FS: fs, Squash: SquashNone, Allow: []netip.Prefix{netip.MustParsePrefix(x.allow)},
		}}}, x.listen)
		_, port, err := net.SplitHostPort(addr)
		check(t, err)
		c := dial(t, x.dial+":"+port)
		if _, got := c.mount("/data"); got != x.want {
			t.Errorf("%s, listening on %s, allowed %s: MNT: %v, want %v", x.dial, x.listen, x.allow, got, x.want)
		}
		if x.want != nfs3.MountOK {
			continue
		}
		if _, data := c.read(c.file("file"), 0, 10); !bytes.Equal(data, pattern(10)) {
			t.Errorf("%s: %q", x.dial, data)
		}
		srv.mu.Lock()
		for conn := range srv.conns {
			if !conn.isLocal() {
				t.Errorf("%v is not seen to be on this host", conn.peer)
			}
		}
		srv.mu.Unlock()
	}
}
