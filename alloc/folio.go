package alloc

import "sync/atomic"

// PageShift and PageSize give the size of a folio in bytes.
const (
	PageShift = 12
	PageSize  = 1 << PageShift
)

// Pages returns the number of folios that hold n bytes.
func Pages(n int) int { return (n + PageSize - 1) >> PageShift }

// None is the folio number that stands for no folio in a Link.
const None = 0

// Link chains folios by number, in one of the lists that a folio can be on.
type Link struct{ Prev, Next uint32 }

// Flag is a property of a folio (enum pageflags).
type Flag uint32

// The flags. Those without another owner named are guarded by the lock of the
// mapping that the folio belongs to.
const (
	// Uptodate: the content is that of the file.
	Uptodate Flag = 1 << iota
	// Locked: being filled; whoever needs the content waits.
	Locked
	// Private: the file system wants to be asked before the folio is freed.
	Private
	// OnLRU: on an LRU list (guarded by the lock of that list).
	OnLRU
	// Referenced: used since reclaim last looked (no lock).
	Referenced
)

// Folio is the record of one page of an arena (struct folio). It belongs to
// whoever holds a reference; the fields say who may change them.
type Folio struct {
	num   uint32
	refs  atomic.Int32
	flags atomic.Uint32
	owner atomic.Uint32

	// LRU is owned by the LRU list.
	LRU Link
	// State, List, Seq, Index and Hash are owned by the mapping.
	List  Link
	Hash  uint32
	State uint8
	Index uint64 // offset in the file, in pages
	Seq   uint64 // when the folio entered its present state

	_ [8]byte // one cache line each
}

// Num returns the number of the folio in its arena, from 1.
func (f *Folio) Num() uint32 { return f.num }

// Owner returns the number of the mapping that the folio belongs to, or 0.
func (f *Folio) Owner() uint32 { return f.owner.Load() }

// SetOwner is called by the mapping, with its lock held.
func (f *Folio) SetOwner(id uint32) { f.owner.Store(id) }

// Refs returns the number of references.
func (f *Folio) Refs() int32 { return f.refs.Load() }

// Get takes another reference; the caller must have one or hold a lock that
// keeps one alive.
func (f *Folio) Get() { f.refs.Add(1) }

// Has reports whether all of the flags are set.
func (f *Folio) Has(fl Flag) bool { return Flag(f.flags.Load())&fl == fl }

// Set sets flags.
func (f *Folio) Set(fl Flag) { f.flags.Or(uint32(fl)) }

// Clear clears flags.
func (f *Folio) Clear(fl Flag) { f.flags.And(^uint32(fl)) }

// reset prepares the record for its next life, with one reference.
func (f *Folio) reset() {
	f.flags.Store(0)
	f.owner.Store(0)
	f.LRU, f.List, f.Hash, f.State, f.Index, f.Seq = Link{}, Link{}, None, 0, 0, 0
	f.refs.Store(1)
}
