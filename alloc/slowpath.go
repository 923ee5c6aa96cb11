package alloc

import (
	"fmt"
	"time"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/waitfor"
)

// retryEvery bounds how long a waiting allocation trusts that it will be told
// when memory can be freed; unpinned folios tell nobody.
const retryEvery = 50 * time.Millisecond

// Alloc returns one folio with one reference, its content undefined. See
// AllocInto.
func (a *Arena) Alloc(sc gfp.Scope, flags gfp.Flags) (*Folio, error) {
	var one [1]*Folio
	if err := a.AllocInto(sc, flags, one[:]); err != nil {
		return nil, err
	}
	return one[0], nil
}

// AllocInto fills dst with folios, one reference each, their content undefined.
// It gets all of them or none. With gfp.DirectReclaim it frees memory itself
// and waits until there is enough; without, it fails with ErrNoMemory. The
// caller holds no lock that reclaim takes, unless sc or flags forbid FS
// (__alloc_pages).
func (a *Arena) AllocInto(sc gfp.Scope, flags gfp.Flags, dst []*Folio) error {
	if a.take(dst, a.marks.Low) {
		return nil
	}
	if len(dst) > a.MaxAlloc() {
		return fmt.Errorf("%w: %d at once is more than the limit of %d", ErrNoMemory, len(dst), a.MaxAlloc())
	}
	return a.slowPath(sc, a.policy.Mask(sc, flags), dst)
}

// slowPath is __alloc_pages_slowpath: wake kswapd, try down to min, reclaim,
// use the reserve if allowed, wait for some memory to be freed, start over.
func (a *Arena) slowPath(sc gfp.Scope, mask gfp.Flags, dst []*Folio) error {
	a.slow.Add(1)
	a.reclaim.WakeKswapd(len(dst))
	mark := a.minMark(mask)
	if a.takeCounted(dst, mark) {
		return nil
	}
	task := sc.Task()
	task.Wait("", "a free page", 0, waitfor.Resource{Kind: waitfor.FreePage})
	defer task.Done()
	w := a.wq.Prepare()
	defer a.wq.Finish(w)
	for {
		if mask&gfp.DirectReclaim != 0 && !sc.IsReclaim() {
			a.reclaim.DirectReclaim(sc, mask, len(dst))
		}
		if a.takeCounted(dst, mark) || sc.IsMemalloc() && a.takeCounted(dst, 0) {
			return nil
		}
		if a.closed.Load() {
			return ErrClosed
		}
		if mask&gfp.DirectReclaim == 0 {
			return ErrNoMemory
		}
		a.stalls.Add(1)
		a.reclaim.WakeKswapd(len(dst))
		w.WaitFor(retryEvery)
	}
}

// minMark returns how many pages an allocation leaves free that is not from a
// Memalloc scope.
func (a *Arena) minMark(mask gfp.Flags) int {
	switch {
	case !a.policy.Reserve:
		return 0
	case mask&gfp.High != 0:
		return a.marks.Min / 2
	}
	return a.marks.Min
}

// takeCounted is take, with an account of what comes from the reserve.
func (a *Arena) takeCounted(dst []*Folio, mark int) bool {
	if !a.take(dst, mark) {
		return false
	}
	if below := a.marks.Min - a.Free(); below > 0 && mark < a.marks.Min {
		a.reserve.Add(uint64(min(below, len(dst))))
	}
	return true
}
