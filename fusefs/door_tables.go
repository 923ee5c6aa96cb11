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
	mu    sync.Mutex
	nodes map[vfs.NodeID]nodeRefs
}

type nodeRefs struct{ kernel, fs uint64 }

// add counts references of the kernel and ours.
func (t *nodeTable) add(node vfs.NodeID, kernel, fs uint64) {
	t.mu.Lock()
	r := t.nodes[node]
	t.nodes[node] = nodeRefs{r.kernel + kernel, r.fs + fs}
	t.mu.Unlock()
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
	dir   bool

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
