package nfsclient

import (
	"sync"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// table holds the inodes by number and by handle. It is as large as what the
// door references, and what is still being written.
type table struct {
	mu   sync.RWMutex
	byID map[vfs.NodeID]*inode
	byFH map[nfs3.FileHandle]*inode
	last vfs.NodeID
	open int // files that are open
}

func newTable() *table {
	return &table{byID: map[vfs.NodeID]*inode{}, byFH: map[nfs3.FileHandle]*inode{}}
}

// get returns the inode of id, which the caller references, or ErrStale.
func (t *table) get(id vfs.NodeID) (*inode, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if ino := t.byID[id]; ino != nil {
		return ino, nil
	}
	return nil, vfs.ErrStale
}

// node returns the inode of fh with one more reference; it is made from attr if
// it is not known.
func (c *Client) node(fh *nfs3.FileHandle, attr *vfs.Attr) *inode {
	t := c.tab
	t.mu.Lock()
	defer t.mu.Unlock()
	ino := t.byFH[*fh]
	if ino != nil && ino.typ == attr.Type {
		ino.refs++
		return ino
	}
	// A handle that now is of another type is of another file: the old inode
	// keeps its number only.
	t.last++
	ino = c.newInode(t.last, fh, attr)
	ino.refs = 1
	t.byID[ino.id], t.byFH[*fh] = ino, ino
	return ino
}

func (c *Client) newInode(id vfs.NodeID, fh *nfs3.FileHandle, attr *vfs.Attr) *inode {
	ino := &inode{id: id, fh: *fh, ino: attr.Ino, key: c.id ^ attr.Ino, typ: attr.Type, size: attr.Size, sem: make(chan struct{}, 1)}
	if attr.Type == vfs.TypeRegular {
		ino.m = c.back.NewMapping(attr.Ino, ino)
	}
	return ino
}

// Forget gives back n references to node.
func (c *Client) Forget(node vfs.NodeID, n uint64) {
	if node == vfs.RootID {
		return
	}
	t := c.tab
	t.mu.Lock()
	ino := t.byID[node]
	if ino != nil {
		ino.refs -= min(n, ino.refs)
	}
	t.mu.Unlock()
	if ino != nil {
		c.evict(ino)
	}
}

// evict forgets ino if nobody uses it and nothing has to be written
// (evict_inode). What is still under way evicts it when it ends; it never
// blocks.
func (c *Client) evict(ino *inode) {
	if !c.forget(ino) || ino.m == nil {
		return
	}
	// No call is in flight, so no folio is locked or under write-back.
	ino.m.Truncate(0)
	ino.m.Close()
}

// forget takes ino out of the table if nothing needs it and reports whether it
// did.
func (c *Client) forget(ino *inode) bool {
	t := c.tab
	t.mu.Lock()
	defer t.mu.Unlock()
	if ino.refs > 0 || ino.opens > 0 || ino.ios.Load() > 0 || t.byID[ino.id] != ino || ino.unwritten() {
		return false
	}
	delete(t.byID, ino.id)
	if t.byFH[ino.fh] == ino {
		delete(t.byFH, ino.fh)
	}
	return true
}

// endIO is the last thing that the completion of an asynchronous call does with
// its inode.
func (c *Client) endIO(ino *inode) {
	if ino.ios.Add(-1) > 0 {
		return
	}
	c.tab.mu.RLock()
	unused := ino.refs == 0 && ino.opens == 0
	c.tab.mu.RUnlock()
	if unused {
		c.evict(ino)
	}
}
