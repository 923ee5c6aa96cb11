package fusefs

import (
	"sync"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// rawKey is what the kernel knows a file by, as a map key.
type rawKey struct {
	typ uint8
	n   uint8
	b   [maxKernel]byte
}

func keyOfRaw(raw *rawHandle) (k rawKey) {
	if raw.bytes <= maxKernel && raw.typ >= 0 && raw.typ <= 255 {
		k.typ, k.n = uint8(raw.typ), uint8(copy(k.b[:], raw.data[:raw.bytes]))
	}
	return k
}

func (h *handle) rawKey() (k rawKey) {
	k.typ = h.b[1]
	k.n = uint8(copy(k.b[:], h.b[2:int(h.n)-macSize]))
	return k
}

// table holds the inodes in memory. Unreferenced ones stay, in the order in
// which they were given up, until the limit is reached.
type table struct {
	limit int

	mu         sync.RWMutex
	last       vfs.NodeID
	byID       map[vfs.NodeID]*inode
	byRaw      map[rawKey]*inode
	head, tail *inode // unreferenced, given up last and first
}

func (t *table) init(limit int) {
	t.limit = limit
	t.byID, t.byRaw = map[vfs.NodeID]*inode{}, map[rawKey]*inode{}
}

func (t *table) setLimit(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limit = n
}

// hasRoom reports whether another inode can come without one that goes.
func (t *table) hasRoom() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID) < t.limit
}

// hasSlack reports whether another can come for now: one of those that come later makes
// the others go, if any can.
func (t *table) hasSlack() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID) < t.limit+min(t.limit, maxEvict) || t.tail == nil
}

func (t *table) get(id vfs.NodeID) *inode {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

// findRaw returns the inode that the kernel knows by raw, without a reference:
// good only for what never changes in it.
func (t *table) findRaw(raw *rawHandle) *inode {
	k := keyOfRaw(raw)
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byRaw[k]
}

// ref returns the inode of a handle, with another reference, or nil. A handle
// that differs from ours in its check finds nothing.
func (t *table) ref(h *handle) *inode {
	k := h.rawKey()
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.byRaw[k]
	if in == nil || in.key != *h {
		return nil
	}
	t.take(in)
	return in
}

// take adds a reference. mu is held.
func (t *table) take(in *inode) {
	if in.listed {
		t.unlist(in)
	}
	in.refs++
}

// insert adds in with one reference, or returns the inode that was there first
// with another reference.
func (t *table) insert(in *inode) (*inode, error) {
	k := in.key.rawKey()
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byRaw[k]; old != nil {
		t.take(old)
		return old, nil
	}
	if t.isFull() {
		return nil, unix.ENOMEM // nobody should wait for what may never come
	}
	t.last++ // never used again: RootID comes first
	in.id, in.refs = t.last, 1
	t.byID[in.id], t.byRaw[k] = in, in
	return in, nil
}

// isFull reports whether there is no room for another inode. mu is held.
func (t *table) isFull() bool { return len(t.byID) >= min(t.limit*referencedShare, MaxReferenced) }

// noRoom is isFull for now.
func (t *table) noRoom() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.isFull()
}

// forget gives back n references. It returns the inode if it left the table
// with the last one: the caller discards it.
func (t *table) forget(id vfs.NodeID, n uint64) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.byID[id]
	if in == nil || id == vfs.RootID {
		return nil
	}
	in.refs -= min(n, in.refs)
	switch {
	case in.refs > 0 || in.listed:
		return nil
	case in.gone:
		t.remove(in)
		return in
	case !in.dead.Load(): // else it is being reaped
		t.list(in)
	}
	return nil
}

// unkey makes sure that nobody finds in by its handle any more, and that it is
// not evicted.
func (t *table) unkey(in *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := in.key.rawKey(); t.byRaw[k] == in {
		delete(t.byRaw, k)
	}
	if in.listed {
		t.unlist(in)
	}
}

// bury ends reaping. It returns true if nobody has a reference: the caller
// discards the inode.
func (t *table) bury(in *inode) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	in.gone = true
	if in.refs > 0 || t.byID[in.id] != in {
		return false
	}
	t.remove(in)
	return true
}

// remove takes in out of the table. mu is held.
func (t *table) remove(in *inode) {
	if in.listed {
		t.unlist(in)
	}
	if k := in.key.rawKey(); t.byRaw[k] == in {
		delete(t.byRaw, k)
	}
	delete(t.byID, in.id)
}

func (t *table) list(in *inode) {
	in.listed, in.next, in.prev = true, t.head, nil
	if t.head != nil {
		t.head.prev = in
	} else {
		t.tail = in
	}
	t.head = in
}

func (t *table) unlist(in *inode) {
	if in.prev != nil {
		in.prev.next = in.next
	} else {
		t.head = in.next
	}
	if in.next != nil {
		in.next.prev = in.prev
	} else {
		t.tail = in.prev
	}
	in.listed, in.prev, in.next = false, nil, nil
}

// victim takes out of the table the inode that was given up first and can go,
// if the table is over its limit. It looks at a few only.
func (t *table) victim(busy func(*inode) bool) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	for try := 0; try < 8 && len(t.byID) > t.limit && t.tail != nil; try++ {
		in := t.tail
		if !busy(in) {
			t.remove(in)
			return in
		}
		t.unlist(in)
		t.list(in) // dirty or in use: to be looked at again later
	}
	return nil
}

// all returns every inode.
func (t *table) all() []*inode {
	t.mu.RLock()
	defer t.mu.RUnlock()
	ins := make([]*inode, 0, len(t.byID))
	for _, in := range t.byID {
		ins = append(ins, in)
	}
	return ins
}
