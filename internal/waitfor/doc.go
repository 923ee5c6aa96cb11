// Package waitfor keeps the wait-for graph of a process: which task waits for
// which resource, and which task holds the resource, so that a watchdog can
// tell a deadlock from slowness and say in words what waits for what.
//
// A task is something that can wait: a request on its way through the server,
// a call of the client, a background worker. It records a wait just before it
// blocks and takes the record back afterwards; a wait may contain another one
// (an allocation enters direct reclaim, which waits for a COMMIT), so waits
// form a stack. Nothing in this package ever blocks a task or decides anything:
// it only observes.
//
//	task ──waits for──► resource ──held by──► task ──waits for──► …
//
// A resource with several holders (the worker pool) is an AND-wait for the
// purpose of Cycle: it is followed only if every holder waits too.
//
// Lock order: Graph.mu, then Task.mu. Task methods take only Task.mu and are
// cheap; Cycle looks at every task.
package waitfor
