// Package hostguard keeps a process that others need to get memory back from
// waiting for memory itself, on a real kernel. A server that is mounted on its
// own machine is one: the pages of its mount are free only after it has answered.
//
// It has these ways to get into that wait, and the guard closes each:
//
//	it allocates in the kernel  ──► direct reclaim ──► nfs_release_folio ──► itself
//	  PR_SET_IO_FLUSHER: PF_MEMALLOC_NOIO, so its allocations enter no file system
//	it writes                   ──► balance_dirty_pages ──► pages that it cleans
//	  PR_SET_IO_FLUSHER: PF_LOCAL_THROTTLE, so only its own disk holds it up
//	it touches its own memory   ──► page fault ──► allocation
//	  mlockall, the binary read in, threads started ahead
//	it starts, after it was killed ──► others have taken its memory
//	  a Keep, which outlives it, and a keeper that starts it
//
// A Guard goes through Enter, which may execute the program again, or EnterKeeping,
// which returns in a child of the keeper; Protect; and,
// once the process serves, Check. It never fails: what could not be had is
// remembered with what that costs and the remedy, for Log to say and for Err to
// refuse.
//
// Audit looks at any process from outside, and needs nothing else of this
// package.
//
// What it deliberately does not do: lock memory that is made for data. Whoever
// makes that touches and locks it (alloc).
package hostguard
