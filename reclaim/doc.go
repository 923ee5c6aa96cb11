// Package reclaim frees pages: it orders them by use (LRU), frees those used
// longest ago when an allocation needs them (direct reclaim), and in the
// background before one does (kswapd). It models mm/vmscan.c.
//
//	alloc slow path ──► DirectReclaim ─┐
//	                                   ├─► LRU tail ─► pagecache.Release ─► free
//	free < low ───────► kswapd ────────┘                      │
//	                                                    not clean: the file
//	                                                    system's ReleaseFolio
//
// Reclaim drops what is clean. It writes nothing itself: what is dirty is left
// to the flushers, which are woken. It waits for nothing either; whether the
// file system's ReleaseFolio does is that policy's business.
//
// Used folios get a second chance: a folio that was looked up since the last
// scan goes back to the head of the list once.
//
// Lock order: Reclaimer.mu guards the LRU list and is a leaf; it may be taken
// under the lock of a mapping and is never held while a folio is freed.
package reclaim
