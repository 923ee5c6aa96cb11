package pagecache

import "loopnfs/alloc"

// slot returns the chain for page index of mapping id.
func (c *Cache) slot(id uint32, index uint64) uint64 {
	h := (index ^ uint64(id)<<40 ^ uint64(id)) * 0x9e3779b97f4a7c15
	return (h ^ h>>32) & c.mask
}

// find returns the folio of page index of mapping id, or nil. The lock of the
// mapping is held, so the folio stays.
func (c *Cache) find(id uint32, index uint64) *alloc.Folio {
	s := c.slot(id, index)
	sh := &c.shards[s%numShards]
	sh.Lock()
	defer sh.Unlock()
	for n := c.heads[s]; n != alloc.None; {
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
	sh := &c.shards[s%numShards]
	sh.Lock()
	f.Hash, c.heads[s] = c.heads[s], f.Num()
	sh.Unlock()
}

func (c *Cache) unhash(f *alloc.Folio) {
	s := c.slot(f.Owner(), f.Index)
	sh := &c.shards[s%numShards]
	sh.Lock()
	defer sh.Unlock()
	at := &c.heads[s]
	for *at != f.Num() {
		at = &c.arena.Folio(*at).Hash
	}
	*at, f.Hash = f.Hash, alloc.None
}
