package gfp

import "loopnfs/internal/waitfor"

// Flags say what an allocation may do to get memory.
type Flags uint8

// Single permissions, and the usual sets of them.
const (
	// DirectReclaim: the caller may free memory itself, and wait for some to
	// be freed (__GFP_DIRECT_RECLAIM).
	DirectReclaim Flags = 1 << iota
	// IO: reclaim may wait for I/O to be started (__GFP_IO).
	IO
	// FS: reclaim may call into a file system (__GFP_FS).
	FS
	// High: half of the reserve may be used; for memory that ends in more
	// being free, but only together with a Memalloc allocation that follows,
	// for which the other half is (__GFP_HIGH).
	High

	// NoWait takes what is free and otherwise fails (GFP_NOWAIT).
	NoWait Flags = 0
	// NoIO may wait for memory but start no I/O (GFP_NOIO).
	NoIO = DirectReclaim
	// NoFS may start I/O but not enter a file system (GFP_NOFS).
	NoFS = DirectReclaim | IO
	// Kernel may do everything (GFP_KERNEL).
	Kernel = DirectReclaim | IO | FS
)

// String names f as the kernel would.
func (f Flags) String() string {
	f &^= High
	switch {
	case f == Kernel:
		return "GFP_KERNEL"
	case f&DirectReclaim == 0:
		return "GFP_NOWAIT"
	case f&IO == 0:
		return "GFP_NOIO"
	default:
		return "GFP_NOFS"
	}
}

// scopeBits are the properties of a scope.
type scopeBits uint8

const (
	bitNoFS scopeBits = 1 << iota
	bitNoIO
	bitMemalloc
	bitLocalThrottle
	bitKswapd
	bitReclaim
	// wireBits are the properties that mean something to another process.
	wireBits = bitNoFS | bitNoIO | bitMemalloc
)

// Scope is the allocation scope of a request. The zero value forbids nothing
// and belongs to no task.
type Scope struct {
	bits scopeBits
	task *waitfor.Task
}

// For returns an unrestricted scope of task, which may be nil.
func For(task *waitfor.Task) Scope { return Scope{task: task} }

// With returns s on behalf of task.
func (s Scope) With(task *waitfor.Task) Scope { s.task = task; return s }

// Task returns the task that the scope belongs to; nil is a valid task.
func (s Scope) Task() *waitfor.Task { return s.task }

// NoFS forbids reclaim to enter a file system: for code that holds a lock
// which a file system takes in reclaim (PF_MEMALLOC_NOFS).
func (s Scope) NoFS() Scope { s.bits |= bitNoFS; return s }

// NoIO forbids reclaim to start I/O; it implies NoFS (PF_MEMALLOC_NOIO).
func (s Scope) NoIO() Scope { s.bits |= bitNoIO | bitNoFS; return s }

// Memalloc allows the use of the reserve below the min watermark: for requests
// that end in more memory being free than before (PF_MEMALLOC, without its
// second meaning; see Reclaim).
func (s Scope) Memalloc() Scope { s.bits |= bitMemalloc; return s }

// LocalThrottle exempts the request from the global dirty limit: it cleans
// pages that count towards that limit (PF_LOCAL_THROTTLE).
func (s Scope) LocalThrottle() Scope { s.bits |= bitLocalThrottle; return s }

// Reclaim marks code that runs inside reclaim or write-back: it never enters
// direct reclaim again (the other meaning of the kernel's PF_MEMALLOC).
func (s Scope) Reclaim() Scope { s.bits |= bitReclaim; return s }

// Kswapd marks the background reclaimer (current_is_kswapd); implies Reclaim.
func (s Scope) Kswapd() Scope { s.bits |= bitKswapd | bitReclaim; return s }

// IsMemalloc reports whether the reserve may be used.
func (s Scope) IsMemalloc() bool { return s.bits&bitMemalloc != 0 }

// IsLocalThrottle reports whether the global dirty limit is not for s.
func (s Scope) IsLocalThrottle() bool { return s.bits&bitLocalThrottle != 0 }

// IsReclaim reports whether s runs inside reclaim or write-back.
func (s Scope) IsReclaim() bool { return s.bits&bitReclaim != 0 }

// IsKswapd reports whether s is the background reclaimer.
func (s Scope) IsKswapd() bool { return s.bits&bitKswapd != 0 }

// Mask returns f without what the scope forbids (current_gfp_context).
func (s Scope) Mask(f Flags) Flags {
	if s.bits&bitNoFS != 0 {
		f &^= FS
	}
	if s.bits&bitNoIO != 0 {
		f &^= IO | FS
	}
	return f
}

// Wire returns the part of the scope that crosses to another process.
func (s Scope) Wire() uint8 { return uint8(s.bits & wireBits) }

// FromWire adds to s what another process sent; unknown bits are ignored.
func (s Scope) FromWire(w uint8) Scope { s.bits |= scopeBits(w) & wireBits; return s }
