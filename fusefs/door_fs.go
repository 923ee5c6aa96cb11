package fusefs

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// doorFS turns requests of the kernel into calls of a vfs.FS.
type doorFS struct {
	fs           vfs.FS
	heedsNoWait  bool // it is a vfs.NoWaiter
	maxWrite     uint32
	attrTimeout  time.Duration
	entryTimeout time.Duration
	logger       *slog.Logger
	dead         func() bool
	graph        *waitfor.Graph
	conn         *doorConn // set before the first request

	walked  atomic.Pointer[walkedDir] // the last that was asked about
	groups  groupCache
	nodes   nodeTable
	handles handleTable
	count   doorCounts
}

func newDoorFS(cfg *DoorConfig, dead func() bool) *doorFS {
	_, heeds := cfg.FS.(vfs.NoWaiter)
	f := &doorFS{
		fs:           cfg.FS,
		heedsNoWait:  heeds,
		maxWrite:     uint32(cfg.MaxWrite),
		attrTimeout:  cfg.AttrTimeout,
		entryTimeout: cfg.EntryTimeout,
		logger:       cfg.Logger,
		dead:         dead,
		graph:        cfg.Graph,
		groups:       groupCache{entries: map[groupKey]groupEntry{}},
	}
	f.nodes.init(cfg.MaxNodes)
	return f
}

// forgetAll gives back what the kernel has not when the mount ended.
func (f *doorFS) forgetAll() {
	for _, o := range f.handles.drain() {
		if o != nil && !o.dir {
			f.fs.Close(o.node)
		}
	}
	for node, r := range f.nodes.drain() {
		if r.fs > 0 {
			f.fs.Forget(node, r.fs)
		}
	}
}

func (f *doorFS) counts() map[string]uint64 {
	m := make(map[string]uint64, numDoorOps)
	for op, name := range doorOpNames {
		m[name] = f.count[op].Load()
	}
	return m
}

// Forget gives back references to a node.
func (f *doorFS) Forget(node, n uint64) {
	f.count[opForget].Add(1)
	if refs := f.nodes.forget(vfs.NodeID(node), n); refs > 0 {
		f.fs.Forget(vfs.NodeID(node), refs)
	}
}

// enter tells the kernel of a node that the file system gave us a reference to.
func (f *doorFS) enter(e *vfs.Entry, cache bool, out *fuse.EntryOut) {
	f.nodes.add(e.Node, 1, 1)
	f.fillEntry(e.Node, &e.Attr, cache, out)
}

func (f *doorFS) fillEntry(node vfs.NodeID, attr *vfs.Attr, cache bool, out *fuse.EntryOut) {
	out.NodeId = uint64(node)
	f.fillAttr(attr, &out.Attr)
	out.SetAttrTimeout(f.attrTimeout)
	if cache {
		out.SetEntryTimeout(f.entryTimeout)
	}
}

// mayCache reports whether names of dir may be believed without asking: if
// anybody may search it. Otherwise the file system has to see who walks there.
func (f *doorFS) mayCache(s *doorSlot, dir vfs.NodeID) bool {
	if f.entryTimeout == 0 {
		return false
	}
	now := time.Now()
	if known := f.walked.Load(); known != nil && known.dir == dir && now.Before(known.until) {
		return true
	}
	if s.soon(func() error { return f.fs.GetAttr(&s.op, dir, &s.attr) }) != fuse.OK || !searchable(&s.attr) {
		return false
	}
	f.walked.Store(&walkedDir{dir, now.Add(walkedValid)})
	return true
}

// walkedDir is a directory that everybody may search.
type walkedDir struct {
	dir   vfs.NodeID
	until time.Time
}

// walkedValid is how much longer than the timeout of entries names are believed when a
// directory is walked.
const walkedValid = 20 * time.Millisecond

// mayCacheIn is mayCache for a directory that was just changed.
func (f *doorFS) mayCacheIn(wcc *vfs.WCC) bool {
	return wcc.HasPost && searchable(&wcc.Post)
}

func searchable(dir *vfs.Attr) bool { return dir.Mode&0o111 == 0o111 }
