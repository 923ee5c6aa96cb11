package billyfs

import (
	"math"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"loopnfs/internal/vfs"
)

const (
	maxName = 255  // bytes of a name
	maxPath = 4095 // bytes of a path, and of the target of a symbolic link
	// sweepEvery is how often the table may be searched for nodes that nobody
	// needs.
	sweepEvery = time.Second
)

// node is an object that a client knows. Except for io it is guarded by
// fileSystem.mu.
//
// Invariant: a node that is not gone is in byID, and in byName unless it is the
// root; one that is gone is in byID as long as it is referenced.
type node struct {
	// io is held by Write and SetAttr: what they tell of before and after is
	// theirs.
	io sync.Mutex

	id     vfs.NodeID
	parent *node // of the root: itself
	name   string
	typ    vfs.FileType
	own    uint64 // the file ID that the file system tells, 0 if none
	refs   uint64
	gone   bool
	handed bool // a handle was given away: the node stays as long as the object
	kept
	version uint64 // of a directory: grows when entries come or go
}

// kept is what is known of an object that its file system does not keep.
type kept struct {
	hasMode, hasOwner, hasVerf bool
	mode, uid, gid             uint32
	verf                       vfs.Verifier // of EXCLUSIVE create
	// What was told when the node was looked at last, if it was.
	looked     bool
	size, seen int64 // bytes, mtime
	// Nanoseconds since 1970, 0 for what the file system tells itself. mtime holds
	// until that tells another one than seen.
	atime, mtime, ctime int64
}

type nameKey struct {
	dir  vfs.NodeID
	name string
}

// table finds nodes.
type table struct {
	root   *node
	byID   map[vfs.NodeID]*node
	byName map[nameKey]*node
	lastID vfs.NodeID
	limit  int // nodes
	swept  time.Time
}

func (t *table) init(limit int) {
	t.root = &node{id: vfs.RootID, typ: vfs.TypeDirectory, refs: 1, handed: true}
	t.root.parent = t.root
	t.byID = map[vfs.NodeID]*node{vfs.RootID: t.root}
	t.byName = map[nameKey]*node{}
	t.lastID, t.limit = vfs.RootID, limit
}

// node returns a node that exists as far as is known.
func (t *table) node(id vfs.NodeID) (*node, error) {
	n := t.byID[id]
	if n == nil || n.isGone() {
		return nil, vfs.ErrStale
	}
	return n, nil
}

// isGone reports whether n or a directory above it is gone.
func (n *node) isGone() bool {
	for ; n != n.parent; n = n.parent {
		if n.gone {
			return true
		}
	}
	return false
}

// isBelow reports whether n is dir or below it.
func (n *node) isBelow(dir *node) bool {
	for n != dir && n != n.parent {
		n = n.parent
	}
	return n == dir
}

// find returns the node called name in dir, nil if there is none.
func (t *table) find(dir *node, name string) *node { return t.byName[nameKey{dir.id, name}] }

// hasRoom reports whether there is room for another node, and makes some if it can.
func (t *table) hasRoom() bool { return len(t.byID) < t.limit || t.sweep() }

// add makes a node for an object that none is known of. name is kept.
func (t *table) add(dir *node, name string, typ vfs.FileType, own uint64) (*node, error) {
	if !t.hasRoom() {
		return nil, vfs.ErrJukebox
	}
	t.lastID++
	n := &node{id: t.lastID, parent: dir, name: strings.Clone(name), typ: typ, own: own}
	t.byID[n.id] = n
	t.byName[nameKey{dir.id, n.name}] = n
	return n, nil
}

// drop makes n stale: its object is gone.
func (t *table) drop(n *node) {
	if n == nil || n.gone || n == t.root {
		return
	}
	n.gone = true
	delete(t.byName, nameKey{n.parent.id, n.name})
	if n.refs == 0 {
		delete(t.byID, n.id)
	}
}

// move gives n another name.
func (t *table) move(n, dir *node, name string) {
	delete(t.byName, nameKey{n.parent.id, n.name})
	n.parent, n.name = dir, strings.Clone(name)
	t.byName[nameKey{dir.id, n.name}] = n
}

// forget gives back references.
func (t *table) forget(id vfs.NodeID, count uint64) {
	n := t.byID[id]
	if n == nil || n == t.root {
		return
	}
	if n.refs < count {
		panic("billyfs: more references forgotten than there were")
	}
	n.refs -= count
	if n.gone && n.refs == 0 {
		delete(t.byID, id)
	}
}

// sweep drops nodes that no client can ask for, and reports whether there is
// room now.
func (t *table) sweep() bool {
	if time.Since(t.swept) < sweepEvery {
		return false
	}
	t.swept = time.Now()
	parents := map[*node]bool{}
	for _, n := range t.byID {
		if (n.handed || n.refs > 0) && !n.isGone() {
			for p := n.parent; !parents[p]; p = p.parent {
				parents[p] = true
			}
		}
	}
	for _, n := range t.byID {
		if n.refs == 0 && (n.isGone() || !n.handed && !parents[n]) {
			t.drop(n)
		}
	}
	return len(t.byID) < t.limit
}

// path returns the path of n as billy wants it.
func (fs *fileSystem) path(n *node) (string, error) {
	fs.elems = fs.elems[:0]
	for ; n != fs.root; n = n.parent {
		fs.elems = append(fs.elems, n.name)
	}
	slices.Reverse(fs.elems)
	return fs.join()
}

// childPath returns the path of name in dir.
func (fs *fileSystem) childPath(dir *node, name string) (string, error) {
	if _, err := fs.path(dir); err != nil {
		return "", err
	}
	fs.elems = append(fs.elems, name)
	return fs.join()
}

func (fs *fileSystem) join() (string, error) {
	p := fs.fs.Join(fs.elems...)
	if len(p) > maxPath {
		return "", syscall.ENAMETOOLONG
	}
	return p, nil
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case len(name) > maxName:
		return syscall.ENAMETOOLONG
	}
	return nil
}

// Forget implements vfs.FS.
func (fs *fileSystem) Forget(id vfs.NodeID, n uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.forget(id, n)
}

// give returns n to a caller, referenced.
func (n *node) give(a *vfs.Attr) vfs.Entry {
	n.refs++
	return vfs.Entry{Node: n.id, Attr: *a}
}

// defaultMaxObjects is the default of Config.MaxObjects.
const defaultMaxObjects = 1 << 20

// The limits of Config.MaxObjects, an int on every machine.
const (
	minObjects    = 16
	maxMaxObjects = math.MaxInt32
)
