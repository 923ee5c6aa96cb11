package fusefs

import (
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// scratch is what one call needs on the side. It is reused from call to call.
type scratch struct {
	fs    []*alloc.Folio // the pages of the call, nil where one is missing
	given int            // how many of them, from the first on, a WRITE brings
	mine  []bool         // those that this call fills
	spare []*alloc.Folio // folios that are not in the cache: not yet, or not any more
	iov   []unix.Iovec
	runs  []int   // where each run of adjacent pages in fs ends, in write-out
	got   []int64 // how many bytes of each run were written at once
	done  []int   // how many pages of each run are written

	raw     rawHandle
	mountID int32
	name    cname
	how     unix.OpenHow
	st      unix.Stat_t
	attr    vfs.Attr
}

// scratchPool keeps what calls have needed: as much as were ever carried out at
// once. A sync.Pool is emptied by the garbage collector, and then has to allocate
// when there may be nothing to be had.
type scratchPool struct {
	pages int

	mu   sync.Mutex
	free []*scratch
}

// init fits the pool to calls of n bytes, which may start in the middle of a
// page, and fills it for so many calls at once.
func (p *scratchPool) init(n, calls int) {
	p.pages = alloc.Pages(n) + 1
	for range calls {
		p.put(p.make())
	}
}

func (p *scratchPool) get() *scratch {
	if b := p.pop(); b != nil {
		return b
	}
	return p.make()
}

// make makes one whose memory is touched, not just mapped.
func (p *scratchPool) make() *scratch {
	b := &scratch{
		fs: make([]*alloc.Folio, p.pages), mine: make([]bool, p.pages),
		spare: make([]*alloc.Folio, p.pages), iov: make([]unix.Iovec, p.pages), runs: make([]int, 0, maxRuns), got: make([]int64, 0, maxRuns), done: make([]int, 0, maxRuns),
	}
	clear(b.fs)
	clear(b.mine)
	clear(b.spare)
	clear(b.iov)
	b.fs, b.mine, b.spare, b.iov = b.fs[:0], b.mine[:0], b.spare[:0], b.iov[:0]
	return b
}

// pop returns one that is free, or nil.
func (p *scratchPool) pop() *scratch {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free) - 1
	if n < 0 {
		return nil
	}
	b := p.free[n]
	p.free = p.free[:n]
	return b
}

func (p *scratchPool) put(b *scratch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, b)
}

// alloc brings the number of spare folios to n.
func (b *scratch) alloc(a *alloc.Arena, sc gfp.Scope, flags gfp.Flags, n int) error {
	have := len(b.spare)
	if n <= have {
		return nil
	}
	b.spare = b.spare[:n]
	if err := a.AllocInto(sc, flags, b.spare[have:]); err != nil {
		b.spare = b.spare[:have]
		return fmt.Errorf("%w: %w", vfs.ErrJukebox, err)
	}
	slices.Reverse(b.spare[have:]) // takeSpare begins at the end: neighbours stay neighbours
	return nil
}

// takeSpare returns a folio that alloc made.
func (b *scratch) takeSpare() *alloc.Folio {
	n := len(b.spare) - 1
	f := b.spare[n]
	b.spare = b.spare[:n]
	return f
}

// release gives back every folio of the call.
func (b *scratch) release(a *alloc.Arena) {
	a.PutAll(b.spare)
	a.PutAll(b.fs)
	clear(b.fs)
	b.fs, b.spare, b.given = b.fs[:0], b.spare[:0], 0
}

// vector appends the memory of fs to iov; what is adjacent becomes one element.
func vector(a *alloc.Arena, iov []unix.Iovec, fs []*alloc.Folio) []unix.Iovec {
	first := len(iov)
	for _, f := range fs {
		p := a.Bytes(f)
		if n := len(iov); n > first {
			last := &iov[n-1]
			if uintptr(unsafe.Pointer(last.Base))+uintptr(last.Len) == uintptr(unsafe.Pointer(&p[0])) {
				last.Len += uint64(len(p))
				continue
			}
		}
		iov = append(iov, unix.Iovec{Base: &p[0], Len: uint64(len(p))})
	}
	return iov
}
