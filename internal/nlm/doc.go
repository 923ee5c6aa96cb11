// Package nlm is a lock manager: who holds which bytes of which file, who waits for
// them, and what becomes of it when a client or the server starts again (The Open
// Group, C702 chapters 9 to 11). The server decodes, checks the file handle and the
// caller's rights, and asks the Manager.
//
//	LOCK ──► conflict? ── no ──► held ◄────────── GRANTED accepted
//	            │ yes, block                          ▲
//	            ▼                                     │ a worker calls the client
//	          waiting ── somebody unlocks ──► granted, not yet told
//
// Ranges are POSIX: the locks of one owner, an (address, caller, oh, svid), never
// overlap; locking again changes what there was, unlocking may split. Waiters of a file
// are looked at in the order they came whenever one of its locks goes or gets weaker.
// Who would wait for somebody that waits for them gets NLM4_DEADLCK.
//
// What is granted to a waiter is held from then on. A fixed number of workers, started
// ahead with buffers of their own, calls the client, again and again if need be, one
// call at a time per client, so that one that is gone keeps one worker. A client that
// has certainly not been reached loses the grant in the end; one that may have been
// keeps it, since two holders are worse than one too many. LOCK is idempotent: a client
// that asks again is told what it holds.
//
// Clients with locks are on a list on disk, a file each, written before the first lock
// is granted. A server that finds a list tells everybody on it (SM_NOTIFY), and for a
// grace period grants only what its client says it had. A client that says it has
// started again loses its locks, if they are from before.
//
// Clients can be on the server's own host, whose kernel registers a lock manager of the
// same name: LookAfter. A status monitor that the host has (rpc.statd) is told of clients.
//
// Everything is bounded: see Limits. Memory is of the Go heap, never of the arena.
//
// Lock order: monitor.mu, Manager.mu, callbacks.mu, and tracker.mu before the last. No
// network call is made and no disk used under any but the first.
//
// Deliberately not here: versions 1 to 3, GRANTED_MSG (GRANTED with its reply is called
// instead), locks that a local program sees, and fairness between those who wait and
// those who come: a writer may wait for as long as there are readers.
package nlm
