package nfsserver

import (
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// memFS is a file system in memory, with file data in pages of an arena: what
// the tests serve. It enforces little, but counts references and syncs, and has
// hooks to hold a call up.
type memFS struct {
	arena   *alloc.Arena
	ioMax   uint32
	verf    vfs.Verifier
	linkMax uint32

	// onRead, onWrite, onGetAttr, onLookup and onSync are called without a lock if they are
	// set; an error ends the call.
	onRead, onWrite, onGetAttr, onLookup, onSync hook

	how vfs.Stable // what the last Write was asked for; guarded by mu

	mu     sync.Mutex
	nodes  map[vfs.NodeID]*memNode
	last   vfs.NodeID
	clock  int64
	synced map[vfs.NodeID]int
}

// maxMemFile is the largest file, in bytes.
const maxMemFile = 6 << 20

// hook is a function that can be changed while calls are in progress.
type hook struct {
	p atomic.Pointer[func(*vfs.Op) error]
}

func (h *hook) set(f func(*vfs.Op) error) { h.p.Store(&f) }

func (h *hook) run(op *vfs.Op) error {
	if f := h.p.Load(); f != nil {
		return (*f)(op)
	}
	return nil
}

type memNode struct {
	id      vfs.NodeID
	attr    vfs.Attr
	pages   []*alloc.Folio
	target  string
	parent  *memNode
	entries []memEntry // of a directory, in order of creation
	cookie  uint64
	refs    int64
	verf    vfs.Verifier // of EXCLUSIVE create
}

type memEntry struct {
	name   string
	node   *memNode
	cookie uint64
}

func newMemFS(arena *alloc.Arena) *memFS {
	fs := &memFS{
		arena: arena, ioMax: 1 << 20, verf: vfs.Verifier{1, 2, 3},
		nodes: map[vfs.NodeID]*memNode{}, synced: map[vfs.NodeID]int{},
	}
	root := fs.make(vfs.TypeDirectory, 0o777, &vfs.Op{})
	root.parent = root
	return fs
}

// lock also makes time go on, so that every change has a time of its own.
func (fs *memFS) lock() *sync.Mutex {
	fs.mu.Lock()
	fs.clock++
	return &fs.mu
}

func (fs *memFS) now() vfs.Time { return vfs.Time{Sec: 1000 + fs.clock, Nsec: 7} }

func (fs *memFS) make(typ vfs.FileType, mode uint32, op *vfs.Op) *memNode {
	fs.last++
	n := &memNode{id: fs.last, cookie: 2}
	n.attr = vfs.Attr{
		Type: typ, Mode: mode, Nlink: 1, UID: op.Cred.UID, GID: op.Cred.GID, FSID: 9, Ino: uint64(n.id),
		Atime: fs.now(), Mtime: fs.now(), Ctime: fs.now(),
	}
	fs.nodes[n.id] = n
	return n
}

func (fs *memFS) node(id vfs.NodeID) (*memNode, error) {
	n := fs.nodes[id]
	if n == nil {
		return nil, vfs.ErrStale
	}
	return n, nil
}

func (fs *memFS) dir(id vfs.NodeID) (*memNode, error) {
	n, err := fs.node(id)
	if err == nil && n.attr.Type != vfs.TypeDirectory {
		return nil, syscall.ENOTDIR
	}
	return n, err
}

func (n *memNode) find(name string) int {
	return slices.IndexFunc(n.entries, func(e memEntry) bool { return e.name == name })
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case len(name) > 255:
		return syscall.ENAMETOOLONG
	}
	return nil
}

func (fs *memFS) Lookup(op *vfs.Op, dir vfs.NodeID, name string) (vfs.Entry, error) {
	if err := fs.onLookup.run(op); err != nil {
		return vfs.Entry{}, err
	}
	defer fs.lock().Unlock()
	d, err := fs.dir(dir)
	if err != nil {
		return vfs.Entry{}, err
	}
	if op.Cred.UID != 0 && d.attr.Mode&0o111 == 0 {
		return vfs.Entry{}, syscall.EACCES
	}
	if name == ".." {
		return d.parent.ref(), nil
	}
	if err := checkName(name); err != nil {
		return vfs.Entry{}, err
	}
	if i := d.find(name); i >= 0 {
		return d.entries[i].node.ref(), nil
	}
	return vfs.Entry{}, syscall.ENOENT
}

func (n *memNode) ref() vfs.Entry {
	n.refs++
	return vfs.Entry{Node: n.id, Attr: n.attr}
}

func (fs *memFS) Forget(id vfs.NodeID, n uint64) {
	defer fs.lock().Unlock()
	node := fs.nodes[id]
	if node == nil {
		return
	}
	node.refs -= int64(n)
	if node.refs < 0 {
		panic("memfs: more references forgotten than there were")
	}
}

// references returns how many references doors have.
func (fs *memFS) references() int64 {
	defer fs.lock().Unlock()
	var sum int64
	for _, n := range fs.nodes {
		sum += n.refs
	}
	return sum
}

func (fs *memFS) Handle(id vfs.NodeID, buf []byte) ([]byte, error) {
	return binary.BigEndian.AppendUint64(buf, uint64(id)), nil
}

func (fs *memFS) ByHandle(_ *vfs.Op, h []byte) (vfs.NodeID, error) {
	defer fs.lock().Unlock()
	if len(h) != 8 {
		return 0, vfs.ErrBadHandle
	}
	n, err := fs.node(vfs.NodeID(binary.BigEndian.Uint64(h)))
	if err != nil {
		return 0, err
	}
	return n.ref().Node, nil
}

func (fs *memFS) GetAttr(op *vfs.Op, id vfs.NodeID, attr *vfs.Attr) error {
	if err := fs.onGetAttr.run(op); err != nil {
		return err
	}
	defer fs.lock().Unlock()
	n, err := fs.node(id)
	if err != nil {
		return err
	}
	*attr = n.attr
	return nil
}

// change runs f on a node and returns its data before and after.
func (fs *memFS) change(n *memNode, f func()) vfs.WCC {
	w := vfs.WCC{Pre: n.attr.Pre(), HasPre: true}
	f()
	n.attr.Ctime = fs.now()
	w.Post, w.HasPost = n.attr, true
	return w
}

func (fs *memFS) SetAttr(_ *vfs.Op, id vfs.NodeID, set *vfs.SetAttr) (vfs.WCC, error) {
	defer fs.lock().Unlock()
	n, err := fs.node(id)
	if err != nil {
		return vfs.WCC{}, err
	}
	if set.Size > maxMemFile {
		return vfs.WCC{}, syscall.ENOSPC
	}
	if set.HasGuard && set.Guard != n.attr.Ctime {
		return vfs.WCC{}, vfs.ErrNotSync
	}
	return fs.change(n, func() { fs.apply(n, set) }), nil
}

func (fs *memFS) apply(n *memNode, set *vfs.SetAttr) {
	if set.SetMode {
		n.attr.Mode = set.Mode
	}
	if set.SetUID {
		n.attr.UID = set.UID
	}
	if set.SetGID {
		n.attr.GID = set.GID
	}
	if set.SetSize {
		fs.resize(n, set.Size)
	}
	switch set.SetMtime {
	case vfs.SetToClientTime:
		n.attr.Mtime = set.Mtime
	case vfs.SetToServerTime:
		n.attr.Mtime = fs.now()
	}
	if set.SetAtime == vfs.SetToClientTime {
		n.attr.Atime = set.Atime
	}
}

func (fs *memFS) resize(n *memNode, size uint64) {
	pages := alloc.Pages(int(size))
	for len(n.pages) < pages {
		f, err := fs.arena.Alloc(gfp.Scope{}, gfp.Kernel)
		if err != nil {
			panic(err)
		}
		clear(fs.arena.Bytes(f))
		n.pages = append(n.pages, f)
	}
	fs.arena.PutAll(n.pages[pages:])
	n.pages = n.pages[:pages]
	n.attr.Size = size
}

func (fs *memFS) Access(op *vfs.Op, id vfs.NodeID, want uint32) (uint32, error) {
	defer fs.lock().Unlock()
	n, err := fs.node(id)
	if err != nil {
		return 0, err
	}
	if op.Cred.UID == 0 || op.Cred.UID == n.attr.UID || n.attr.Mode&0o007 == 7 {
		return want, nil
	}
	return want & vfs.AccessRead, nil
}

func (fs *memFS) Readlink(_ *vfs.Op, id vfs.NodeID, buf []byte) ([]byte, error) {
	defer fs.lock().Unlock()
	n, err := fs.node(id)
	if err != nil {
		return nil, err
	}
	if n.attr.Type != vfs.TypeSymlink {
		return nil, syscall.EINVAL
	}
	return append(buf, n.target...), nil
}

func (fs *memFS) Read(op *vfs.Op, id vfs.NodeID, off uint64, count uint32, v *vfs.Vec, attr *vfs.Attr) (bool, error) {
	if err := fs.onRead.run(op); err != nil {
		return false, err
	}
	defer fs.lock().Unlock()
	n, err := fs.node(id)
	if err != nil {
		return false, err
	}
	*attr = n.attr
	off = min(off, n.attr.Size)
	end := min(off+uint64(min(count, fs.ioMax)), n.attr.Size)
	v.Owner = fs.arena
	for pos := off; pos < end; {
		f, in := n.pages[pos/alloc.PageSize], pos%alloc.PageSize
		f.Get()
		b := fs.arena.Bytes(f)[in:min(alloc.PageSize, in+end-pos)]
		v.Bufs, v.Pins = append(v.Bufs, b), append(v.Pins, f.Num())
		pos += uint64(len(b))
	}
	return end == n.attr.Size, nil
}

// lastHow returns how durable the last WRITE was to be.
func (fs *memFS) lastHow() vfs.Stable {
	defer fs.lock().Unlock()
	return fs.how
}

func (fs *memFS) Write(op *vfs.Op, id vfs.NodeID, off uint64, v *vfs.Vec, how vfs.Stable, res *vfs.WriteResult) error {
	if err := fs.onWrite.run(op); err != nil {
		return err
	}
	defer fs.lock().Unlock()
	n, err := fs.node(id)
	if err != nil {
		return err
	}
	if n.attr.Type != vfs.TypeRegular {
		return syscall.EINVAL
	}
	fs.how = how
	// Spelled out, not with change: a closure would be an allocation.
	w := vfs.WCC{Pre: n.attr.Pre(), HasPre: true}
	end := off + uint64(v.Len())
	if end > maxMemFile {
		return syscall.ENOSPC
	}
	if end > n.attr.Size {
		fs.resize(n, end)
	}
	for _, b := range v.Bufs {
		for len(b) > 0 {
			k := copy(fs.arena.Bytes(n.pages[off/alloc.PageSize])[off%alloc.PageSize:], b)
			b, off = b[k:], off+uint64(k)
		}
	}
	n.attr.Mtime, n.attr.Ctime = fs.now(), fs.now()
	w.Post, w.HasPost = n.attr, true
	*res = vfs.WriteResult{Count: uint32(v.Len()), Stable: how, Verifier: fs.verf, WCC: w}
	return nil
}

func (fs *memFS) Commit(_ *vfs.Op, id vfs.NodeID, _ uint64, _ uint32) (vfs.Verifier, vfs.WCC, error) {
	defer fs.lock().Unlock()
	n, err := fs.node(id)
	if err != nil {
		return vfs.Verifier{}, vfs.WCC{}, err
	}
	return fs.verf, vfs.WCC{Pre: n.attr.Pre(), HasPre: true, Post: n.attr, HasPost: true}, nil
}

func (fs *memFS) Sync(op *vfs.Op, id vfs.NodeID) error {
	if err := fs.onSync.run(op); err != nil {
		return err
	}
	defer fs.lock().Unlock()
	fs.synced[id]++
	_, err := fs.node(id)
	return err
}

// takeSynced returns which nodes were synced since the last call.
func (fs *memFS) takeSynced() map[vfs.NodeID]int {
	defer fs.lock().Unlock()
	m := fs.synced
	fs.synced = map[vfs.NodeID]int{}
	return m
}

func (fs *memFS) Open(*vfs.Op, vfs.NodeID, bool) error { return nil }
func (fs *memFS) Flush(*vfs.Op, vfs.NodeID) error      { return nil }
func (fs *memFS) Close(vfs.NodeID)                     {}

// add makes a new node in dir under name.
func (fs *memFS) add(op *vfs.Op, dir vfs.NodeID, name string, typ vfs.FileType, set *vfs.SetAttr) (*memNode, vfs.WCC, error) {
	d, err := fs.dir(dir)
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		return nil, vfs.WCC{}, err
	}
	if d.find(name) >= 0 {
		return nil, vfs.WCC{}, syscall.EEXIST
	}
	if op.Cred.UID != 0 && op.Cred.UID != d.attr.UID && d.attr.Mode&0o002 == 0 {
		return nil, vfs.WCC{}, syscall.EACCES
	}
	if set.SetSize && typ != vfs.TypeRegular {
		return nil, vfs.WCC{}, syscall.EINVAL
	}
	n := fs.make(typ, 0o644, op)
	n.parent = d
	fs.apply(n, set)
	return n, fs.insert(d, name, n), nil
}

func (fs *memFS) insert(d *memNode, name string, n *memNode) vfs.WCC {
	return fs.change(d, func() {
		d.cookie++
		d.entries = append(d.entries, memEntry{name, n, d.cookie})
		d.attr.Mtime = fs.now()
	})
}

func (fs *memFS) Create(op *vfs.Op, dir vfs.NodeID, name string, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (vfs.Entry, vfs.WCC, error) {
	defer fs.lock().Unlock()
	if set.Size > maxMemFile {
		return vfs.Entry{}, vfs.WCC{}, syscall.ENOSPC
	}
	n, w, err := fs.add(op, dir, name, vfs.TypeRegular, set)
	if err == nil {
		n.verf = verf
		return n.ref(), w, nil
	}
	if err != syscall.EEXIST || how == vfs.Guarded {
		return vfs.Entry{}, w, err
	}
	d := fs.nodes[dir]
	n = d.entries[d.find(name)].node
	if how == vfs.Exclusive && n.verf != verf {
		return vfs.Entry{}, w, syscall.EEXIST
	}
	if how == vfs.Unchecked {
		fs.apply(n, set)
	}
	return n.ref(), w, nil
}

func (fs *memFS) Mkdir(op *vfs.Op, dir vfs.NodeID, name string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	defer fs.lock().Unlock()
	n, w, err := fs.add(op, dir, name, vfs.TypeDirectory, set)
	if err != nil {
		return vfs.Entry{}, w, err
	}
	return n.ref(), w, nil
}

func (fs *memFS) Symlink(op *vfs.Op, dir vfs.NodeID, name, target string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	defer fs.lock().Unlock()
	n, w, err := fs.add(op, dir, name, vfs.TypeSymlink, set)
	if err != nil {
		return vfs.Entry{}, w, err
	}
	n.target, n.attr.Size = target, uint64(len(target))
	return n.ref(), w, nil
}

func (fs *memFS) Mknod(op *vfs.Op, dir vfs.NodeID, name string, typ vfs.FileType, major, minor uint32, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	defer fs.lock().Unlock()
	n, w, err := fs.add(op, dir, name, typ, set)
	if err != nil {
		return vfs.Entry{}, w, err
	}
	n.attr.Major, n.attr.Minor = major, minor
	return n.ref(), w, nil
}

// take removes an entry; the node goes with its last name.
func (fs *memFS) take(dir vfs.NodeID, name string, isDir bool) (vfs.WCC, error) {
	d, err := fs.dir(dir)
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		return vfs.WCC{}, err
	}
	i := d.find(name)
	if i < 0 {
		return vfs.WCC{}, syscall.ENOENT
	}
	n := d.entries[i].node
	switch {
	case isDir && n.attr.Type != vfs.TypeDirectory:
		return vfs.WCC{}, syscall.ENOTDIR
	case !isDir && n.attr.Type == vfs.TypeDirectory:
		return vfs.WCC{}, syscall.EISDIR
	case len(n.entries) > 0:
		return vfs.WCC{}, syscall.ENOTEMPTY
	}
	w := fs.change(d, func() { d.entries = slices.Delete(d.entries, i, i+1); d.attr.Mtime = fs.now() })
	if n.attr.Nlink--; n.attr.Nlink == 0 {
		fs.resize(n, 0)
		delete(fs.nodes, n.id)
	}
	return w, nil
}

func (fs *memFS) Remove(_ *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	defer fs.lock().Unlock()
	return fs.take(dir, name, false)
}

func (fs *memFS) Rmdir(_ *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	defer fs.lock().Unlock()
	return fs.take(dir, name, true)
}

func (fs *memFS) Rename(_ *vfs.Op, dir vfs.NodeID, name string, newDir vfs.NodeID, newName string) (from, to vfs.WCC, err error) {
	defer fs.lock().Unlock()
	d, err := fs.dir(dir)
	if err != nil {
		return from, to, err
	}
	nd, err := fs.dir(newDir)
	if err != nil {
		return from, to, err
	}
	i := d.find(name)
	if i < 0 {
		return from, to, syscall.ENOENT
	}
	n := d.entries[i].node
	if j := nd.find(newName); j >= 0 && nd.entries[j].node == n {
		return from, to, nil
	} else if j >= 0 {
		if _, err := fs.take(newDir, newName, n.attr.Type == vfs.TypeDirectory); err != nil {
			return from, to, err
		}
		i = d.find(name)
	}
	from = fs.change(d, func() { d.entries = slices.Delete(d.entries, i, i+1) })
	to = fs.insert(nd, newName, n)
	n.parent = nd
	return from, to, nil
}

func (fs *memFS) Link(_ *vfs.Op, id, dir vfs.NodeID, name string) (vfs.Attr, vfs.WCC, error) {
	defer fs.lock().Unlock()
	n, err := fs.node(id)
	if err != nil {
		return vfs.Attr{}, vfs.WCC{}, err
	}
	d, err := fs.dir(dir)
	if err != nil {
		return vfs.Attr{}, vfs.WCC{}, err
	}
	if d.find(name) >= 0 {
		return vfs.Attr{}, vfs.WCC{}, syscall.EEXIST
	}
	n.attr.Nlink++
	return n.attr, fs.insert(d, name, n), nil
}

func (fs *memFS) ReadDir(_ *vfs.Op, dir vfs.NodeID, cookie uint64, verf vfs.Verifier, sink vfs.DirSink) (vfs.Verifier, bool, error) {
	defer fs.lock().Unlock()
	d, err := fs.dir(dir)
	if err != nil {
		return vfs.Verifier{}, false, err
	}
	if cookie != 0 && verf != fs.verf {
		return vfs.Verifier{}, false, vfs.ErrBadCookie
	}
	all := append([]memEntry{{".", d, 1}, {"..", d.parent, 2}}, d.entries...)
	for _, e := range all {
		if e.cookie <= cookie {
			continue
		}
		if !sink.Entry(&vfs.DirEntry{Ino: e.node.attr.Ino, Name: []byte(e.name), Cookie: e.cookie, Type: e.node.attr.Type}) {
			return fs.verf, false, nil
		}
	}
	return fs.verf, true, nil
}

func (fs *memFS) StatFS(*vfs.Op, vfs.NodeID) (vfs.StatFS, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return vfs.StatFS{TotalBytes: 1 << 30, FreeBytes: 1 << 29, AvailBytes: 1 << 28,
		TotalFiles: 1000, FreeFiles: 900, AvailFiles: 800, BlockSize: 4096, NameMax: 255, LinkMax: fs.linkMax}, nil
}

func (fs *memFS) MaxIO() uint32 { return fs.ioMax }

// pages returns how many pages the files have.
func (fs *memFS) pages() int {
	defer fs.lock().Unlock()
	sum := 0
	for _, n := range fs.nodes {
		sum += len(n.pages)
	}
	return sum
}

// put makes a file with content below dir, for tests.
func (fs *memFS) put(t testing.TB, dir vfs.NodeID, name string, content []byte) vfs.NodeID {
	t.Helper()
	op := &vfs.Op{}
	e, _, err := fs.Create(op, dir, name, vfs.Guarded, &vfs.SetAttr{}, vfs.Verifier{})
	if err != nil {
		t.Fatal(err)
	}
	var res vfs.WriteResult
	if err := fs.Write(op, e.Node, 0, &vfs.Vec{Bufs: [][]byte{content}}, vfs.FileSync, &res); err != nil {
		t.Fatal(err)
	}
	fs.Forget(e.Node, 1)
	return e.Node
}

// noReclaim is the reclaimer of an arena in which nothing can be freed.
type noReclaim struct{}

func (noReclaim) DirectReclaim(gfp.Scope, gfp.Flags, int) int { return 0 }
func (noReclaim) WakeKswapd(int)                              {}

func newArena(t testing.TB, bytes int64) *alloc.Arena {
	t.Helper()
	a, err := alloc.New(alloc.Config{Bytes: bytes, Policy: alloc.DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	a.SetReclaimer(noReclaim{})
	t.Cleanup(a.Close)
	return a
}

// eventually waits until cond is true; it fails the test after some seconds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}
