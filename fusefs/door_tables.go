package fusefs

import (
	"sync"

	"loopnfs/internal/vfs"
)

// nodeTable counts the references that the kernel has to each node, and those
// that we have taken from the file system for them. They are not the same: the
// reply to LINK is a reference for the kernel. It is also what is given back
// when the mount ends, for the kernel forgets nothing then.
type nodeTable struct {
	full chan struct{} // gets a token when there are more nodes than trigger

	mu        sync.Mutex
	nodes     map[vfs.NodeID]nodeRefs
	trigger   int
	forgotten int // nodes, ever
}

type nodeRefs struct {
	kernel, fs uint64
	recent     bool // it was looked up since oldest has seen it
}

func (t *nodeTable) init(trigger int) {
	t.full, t.trigger = make(chan struct{}, 1), trigger
	t.nodes = map[vfs.NodeID]nodeRefs{}
}

// add counts references of the kernel and ours.
func (t *nodeTable) add(node vfs.NodeID, kernel, fs uint64) {
	t.mu.Lock()
	r := t.nodes[node]
	t.nodes[node] = nodeRefs{r.kernel + kernel, r.fs + fs, true}
	full := len(t.nodes) > t.trigger
	t.mu.Unlock()
	if full {
		select {
		case t.full <- struct{}{}:
		default:
		}
	}
}

// wakeAt has full get a token when there are more than n nodes.
func (t *nodeTable) wakeAt(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trigger = n
	select {
	case <-t.full: // it is from before
	default:
	}
}

// size returns the number of nodes, and how many were forgotten so far.
func (t *nodeTable) size() (n, forgotten int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.nodes), t.forgotten
}

func (t *nodeTable) len() int {
	n, _ := t.size()
	return n
}

// oldest returns n nodes, or all there are: first those that were not looked up since it
// was called last, in no order. A working set that is a little too large so keeps a part of
// itself, of which the order of use would leave nothing.
func (t *nodeTable) oldest(n int) []vfs.NodeID {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := make([]vfs.NodeID, 0, min(n, len(t.nodes)))
	var recent []vfs.NodeID
	for id, r := range t.nodes {
		switch {
		case len(ids) == cap(ids):
			return ids
		case !r.recent:
			ids = append(ids, id)
			continue
		case len(recent) < cap(ids):
			recent = append(recent, id)
		}
		r.recent = false
		t.nodes[id] = r
	}
	return append(ids, recent[:min(cap(ids)-len(ids), len(recent))]...)
}

// forget takes back n references of the kernel and returns how many of ours go
// with them.
func (t *nodeTable) forget(node vfs.NodeID, n uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.nodes[node]
	if !ok {
		return 0
	}
	if n < r.kernel {
		r.kernel -= n
		t.nodes[node] = r
		return 0
	}
	delete(t.nodes, node)
	t.forgotten++
	return r.fs
}

// drain empties the table.
func (t *nodeTable) drain() map[vfs.NodeID]nodeRefs {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.nodes
	t.nodes = map[vfs.NodeID]nodeRefs{}
	return all
}

// openFile is an open file or directory.
type openFile struct {
	node  vfs.NodeID
	cred  vfs.Cred // who opened it
	write bool
	adds  bool // it appends (O_APPEND)
	dir   bool
	file  vfs.File

	mu   sync.Mutex
	verf vfs.Verifier // of a directory, guarded by mu
}

// handleTable gives open files their numbers, the fh of the protocol.
type handleTable struct {
	mu    sync.RWMutex
	files []*openFile // fh is the index plus one
	free  []uint32
}

func (t *handleTable) add(o *openFile) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.free); n > 0 {
		i := t.free[n-1]
		t.free = t.free[:n-1]
		t.files[i] = o
		return uint64(i) + 1
	}
	t.files = append(t.files, o)
	return uint64(len(t.files))
}

// get returns nil for a number that is not in use.
func (t *handleTable) get(fh uint64) *openFile {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if fh == 0 || fh > uint64(len(t.files)) {
		return nil
	}
	return t.files[fh-1]
}

func (t *handleTable) remove(fh uint64) *openFile {
	t.mu.Lock()
	defer t.mu.Unlock()
	if fh == 0 || fh > uint64(len(t.files)) || t.files[fh-1] == nil {
		return nil
	}
	o := t.files[fh-1]
	t.files[fh-1] = nil
	t.free = append(t.free, uint32(fh-1))
	return o
}

// drain empties the table.
func (t *handleTable) drain() []*openFile {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.files
	t.files, t.free = nil, nil
	return all
}
