package pagecache

import (
	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/waitfor"
)

// BeginWriteback takes the folio that has been dirty longest, with those of its
// neighbours in the file that are dirty too, up to len(dst), and puts them
// under write-back. It returns how many, in file order, each with a reference
// for the caller, who ends the write-back with EndWriteback and then puts the
// folios; the rest of dst has no meaning. With upTo it takes nothing that became dirty
// after that Seq.
func (m *Mapping) BeginWriteback(dst []*alloc.Folio, upTo uint64) int {
	m.mu.Lock()
	defer m.unlock()
	first := m.lists[Dirty].head
	if first == alloc.None {
		return 0
	}
	f := m.back.cache.arena.Folio(first)
	if f.Seq > upTo {
		return 0
	}
	index := f.Index
	for room := len(dst) - 1; room > 0 && index > 0 && m.isDirty(index-1, upTo); room-- {
		index--
	}
	n := 0
	for n < len(dst) {
		some := dst[n:min(n+lineSlots, len(dst))]
		m.back.cache.findRange(m.id, index+uint64(n), some)
		for _, f := range some {
			if f == nil || State(f.State) != Dirty || f.Seq > upTo {
				return n
			}
			f.Get()
			m.move(f, Writeback)
			n++
		}
	}
	return n
}

// BeginFolio puts f under write-back if it is dirty, with a reference for the
// caller as from BeginWriteback, and reports whether it did.
func (m *Mapping) BeginFolio(f *alloc.Folio) bool {
	m.mu.Lock()
	defer m.unlock()
	if f.Owner() != m.id || State(f.State) != Dirty {
		return false
	}
	f.Get()
	m.move(f, Writeback)
	return true
}

// WritebackResource is what tasks wait for in WaitWriteback. Those that write
// pages of m hold it meanwhile.
func (m *Mapping) WritebackResource() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Writeback, ID: uint64(m.id)}
}

// isDirty reports whether page index has been dirty since upTo or before. m.mu is held.
func (m *Mapping) isDirty(index, upTo uint64) bool {
	f := m.back.cache.find(m.id, index)
	return f != nil && State(f.State) == Dirty && f.Seq <= upTo
}

// EndWriteback ends the write-back of folios from BeginWriteback, which are now
// in state to: Clean, Unstable, or Dirty after an error. Those written to
// meanwhile are Dirty whatever to says. The references stay the caller's. It
// never blocks.
func (m *Mapping) EndWriteback(fs []*alloc.Folio, to State) {
	m.mu.Lock()
	for _, f := range fs {
		if f.Owner() != m.id {
			continue
		}
		if f.Has(redirty) {
			f.Clear(redirty)
			m.move(f, Dirty)
		} else {
			m.move(f, to)
		}
	}
	m.unlock()
	m.wq.Wake()
	m.back.cache.arena.Reclaimable()
}

// EndUnstable brings every folio that has been unstable since upTo or before to
// state to: Clean after a COMMIT, Dirty if the server lost the data. It returns
// how many there were, and never blocks.
func (m *Mapping) EndUnstable(upTo uint64, to State) int {
	m.mu.Lock()
	n := 0
	for {
		num := m.lists[Unstable].head
		if num == alloc.None {
			break
		}
		f := m.back.cache.arena.Folio(num)
		if f.Seq > upTo {
			break
		}
		m.move(f, to)
		n++
	}
	m.unlock()
	m.wq.Wake()
	m.back.cache.arena.Reclaimable()
	return n
}

// WaitWriteback waits until no folio is under write-back that was when upTo was
// the latest Seq. It returns false when cancel is closed (filemap_fdatawait).
func (m *Mapping) WaitWriteback(sc gfp.Scope, upTo uint64, cancel <-chan struct{}) bool {
	if !m.Any(Writeback, upTo) {
		return true
	}
	task := sc.Task()
	task.Wait("", "write-back of inode", m.Ino, m.WritebackResource())
	defer task.Done()
	w := m.wq.Prepare()
	defer m.wq.Finish(w)
	for m.Any(Writeback, upTo) {
		if !w.Wait(cancel) {
			return false
		}
	}
	return true
}

// WaitFolio waits until f is not under write-back (folio_wait_writeback).
func (m *Mapping) WaitFolio(f *alloc.Folio, cancel <-chan struct{}) bool {
	w := m.wq.Prepare()
	defer m.wq.Finish(w)
	for m.State(f) == Writeback && f.Owner() == m.id {
		if !w.Wait(cancel) {
			return false
		}
	}
	return true
}

// Truncate drops every folio from page index on, dirty or not, after waiting
// for those under write-back. The caller keeps others from adding folios there
// (truncate_inode_pages).
func (m *Mapping) Truncate(index uint64) {
	m.remove(func(f *alloc.Folio) bool { return f.Index >= index }, numStates)
}

// InvalidateClean drops every clean folio that nobody is filling; what was
// cached may be out of date (invalidate_mapping_pages).
func (m *Mapping) InvalidateClean() {
	m.remove(func(f *alloc.Folio) bool { return !f.Has(alloc.Locked) }, Dirty)
}

// remove drops the folios in states below end that match.
func (m *Mapping) remove(match func(*alloc.Folio) bool, end State) {
	w := m.wq.Prepare()
	defer m.wq.Finish(w)
	for m.removeOnce(match, end) {
		w.Wait(nil)
	}
}

// removeOnce returns whether something matched but is under write-back or being
// filled.
func (m *Mapping) removeOnce(match func(*alloc.Folio) bool, end State) (again bool) {
	m.mu.Lock()
	defer m.unlock()
	a := m.back.cache.arena
	for s := Clean; s < end; s++ {
		for num := m.lists[s].head; num != alloc.None; {
			f := a.Folio(num)
			num = f.List.Next
			switch {
			case !match(f):
			case s == Writeback || f.Has(alloc.Locked):
				again = true
			default:
				m.drop(f)
			}
		}
	}
	return again
}
