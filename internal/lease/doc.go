// Package lease says which of several hosts may use a disk that all of them can write:
// a record on that disk, which the holder renews and everybody else watches. It is a
// delta lease as in sanlock (Chockler and Malkhi, Light-weight leases for storage-centric
// coordination): reads and writes of one sector are atomic, and that is all.
//
//	free ──► claimed ──► held ──► released ──► claimed …
//	            ▲          │ not renewed for its duration, or its process is dead
//	            └──────────┘
//
// The disk, a small partition or a file, has blocks of 4 KiB: the record, and a ring of
// what has come to pass. Each is one sector, the rest is zeros.
//
// No clock of another host is ever looked at: who watches waits for the duration by its
// own clock, who holds stops by its own before that. docs/design/takeover.md has the
// argument, and what the lease does not do: it does not keep a host that does not run this
// program from writing, nor take back what is on its way to the disk. That is what
// fencing is for.
//
// Renewals allocate nothing, in the heap or in the page cache: the buffers are mapped and
// locked, and I/O is direct. One thread does nothing else.
//
// Nothing in here is called with a lock held.
package lease
