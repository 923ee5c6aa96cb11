package reclaim

import "loopnfs/alloc"

// Add puts f at the head of the LRU list (folio_add_lru).
func (r *Reclaimer) Add(f *alloc.Folio) {
	r.mu.Lock()
	r.push(f)
	r.mu.Unlock()
}

// Remove takes f off the LRU list, if it is on it.
func (r *Reclaimer) Remove(f *alloc.Folio) {
	r.mu.Lock()
	if f.Has(alloc.OnLRU) {
		r.unlink(f)
	}
	r.mu.Unlock()
}

// isolate takes up to len(dst) folios off the tail of the list, with a
// reference each, and returns how many (isolate_lru_folios).
func (r *Reclaimer) isolate(dst []*alloc.Folio) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(dst) && r.tail != alloc.None {
		f := r.arena.Folio(r.tail)
		r.unlink(f)
		f.Get() // the mapping's reference cannot go: it takes the folio off the list first
		dst[n] = f
		n++
	}
	return n
}

// putBack returns isolated folios that were not freed to the head of the list
// (move_folios_to_lru) and gives up their references.
func (r *Reclaimer) putBack(fs []*alloc.Folio) {
	r.mu.Lock()
	for _, f := range fs {
		// A folio that left its mapping while isolated must not return.
		if f.Owner() != 0 && !f.Has(alloc.OnLRU) {
			r.push(f)
		}
	}
	r.mu.Unlock()
	r.arena.PutAll(fs)
}

func (r *Reclaimer) push(f *alloc.Folio) {
	f.LRU = alloc.Link{Next: r.head}
	if r.head != alloc.None {
		r.arena.Folio(r.head).LRU.Prev = f.Num()
	} else {
		r.tail = f.Num()
	}
	r.head = f.Num()
	r.size++
	f.Set(alloc.OnLRU)
}

func (r *Reclaimer) unlink(f *alloc.Folio) {
	if f.LRU.Prev != alloc.None {
		r.arena.Folio(f.LRU.Prev).LRU.Next = f.LRU.Next
	} else {
		r.head = f.LRU.Next
	}
	if f.LRU.Next != alloc.None {
		r.arena.Folio(f.LRU.Next).LRU.Prev = f.LRU.Prev
	} else {
		r.tail = f.LRU.Prev
	}
	r.size--
	f.LRU = alloc.Link{}
	f.Clear(alloc.OnLRU)
}
