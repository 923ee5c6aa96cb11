// Package alloc hands out pages of one bounded arena: the memory of every cache
// and of every request buffer. It models the page allocator of the kernel
// (mm/page_alloc.c): watermarks, a reserve, a slow path that enters direct
// reclaim and then waits.
//
//	free pages
//	  ▲
//	  │ high ── kswapd goes to sleep
//	  │ low  ── kswapd is woken
//	  │ min  ── ordinary allocations reclaim, then wait
//	  │   (upper half of the reserve: also gfp.High)
//	  │   (lower half: only scopes with Memalloc)
//	  0
//
// A folio is one page. Larger buffers are lists of folios: a list can always be
// had when its number of pages is free, so there is no fragmentation to wait
// for. The record of a folio holds no Go pointer, so the garbage collector
// never looks at it, however large the arena is.
//
// An allocation of several folios takes all of them at once or none: nobody
// waits for memory while sitting on half of what it needs.
//
// The allocator waits for some memory to be freed, never for a certain page.
// It does not know what the pages are used for: what can be freed, and how, is
// behind the Reclaimer interface.
//
// Lock order: Arena.mu is a leaf; the Reclaimer is called without it.
package alloc
