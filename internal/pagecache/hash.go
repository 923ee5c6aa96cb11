package pagecache

import "loopnfs/alloc"

// slot returns the chain for page index of mapping id. Neighbours in the file are
// neighbours here: lineSlots of them share a cache line, and a lock.
func (c *Cache) slot(id uint32, index uint64) uint64 {
	h := (index/lineSlots ^ uint64(id)<<40 ^ uint64(id)) * 0x9e3779b97f4a7c15
	// Most files are small: their first pages must not all be first in a line.
	return ((h^h>>32)*lineSlots | (index^uint64(id))%lineSlots) & c.mask
}

// shardOf returns the lock of a slot.
func (c *Cache) shardOf(slot uint64) *shard { return &c.shards[slot/lineSlots%numShards] }

// find returns the folio of page index of mapping id, or nil. The lock of the
// mapping is held, so the folio stays.
func (c *Cache) find(id uint32, index uint64) *alloc.Folio {
	var f [1]*alloc.Folio
	c.findRange(id, index, f[:])
	return f[0]
}

// findRange is find for as many pages as dst has room for.
func (c *Cache) findRange(id uint32, index uint64, dst []*alloc.Folio) {
	for len(dst) > 0 {
		n := min(len(dst), int(lineSlots-index%lineSlots))
		sh := c.shardOf(c.slot(id, index))
		sh.Lock()
		for i := range n {
			dst[i] = c.walk(c.heads[c.slot(id, index+uint64(i))], id, index+uint64(i))
		}
		sh.Unlock()
		dst, index = dst[n:], index+uint64(n)
	}
}

// walk is find for those from n on in one slot. The lock of its shard is held.
func (c *Cache) walk(n, id uint32, index uint64) *alloc.Folio {
	for n != alloc.None {
		f := c.arena.Folio(n)
		if f.Index == index && f.Owner() == id {
			return f
		}
		n = f.Hash
	}
	return nil
}

func (c *Cache) hash(f *alloc.Folio) {
	s := c.slot(f.Owner(), f.Index)
	sh := c.shardOf(s)
	sh.Lock()
	f.Hash, c.heads[s] = c.heads[s], f.Num()
	sh.Unlock()
}

func (c *Cache) unhash(f *alloc.Folio) {
	s := c.slot(f.Owner(), f.Index)
	sh := c.shardOf(s)
	sh.Lock()
	defer sh.Unlock()
	at := c.linkTo(s, f)
	*at, f.Hash = f.Hash, alloc.None
}

// rehash puts f, which has the same owner and index, where old is.
func (c *Cache) rehash(old, f *alloc.Folio) {
	s := c.slot(f.Owner(), f.Index)
	sh := c.shardOf(s)
	sh.Lock()
	defer sh.Unlock()
	at := c.linkTo(s, old)
	*at, f.Hash, old.Hash = f.Num(), old.Hash, alloc.None
}

// linkTo returns what leads to f in a slot. The lock of its shard is held.
func (c *Cache) linkTo(slot uint64, f *alloc.Folio) *uint32 {
	at := &c.heads[slot]
	for *at != f.Num() {
		at = &c.arena.Folio(*at).Hash
	}
	return at
}
