// Package writeback accounts for pages that are not clean, writes them out in
// the background, and throttles those who make more of them. It models
// mm/page-writeback.c and fs/fs-writeback.c.
//
//	          BalanceDirtyPages                 Flusher
//	writers ───────────────────► [dirty] ─────────────────► device
//	              waits while         over the background limit,
//	              over the limit      or old: write some
//
// A Domain is the memory that a dirty limit is for (wb_domain); a BDI is one
// backing device in it: the store's directory, the server behind a client. All
// pages that cannot be freed at once count: dirty, under write-back, and those
// that were written but not committed (unstable).
//
// Who is throttled is decided by a Throttle, which sees numbers and returns a
// verdict. LocalThrottle is the mechanism of that name; GlobalThrottle is the
// world without it.
//
// A flusher is a worker that exists from the start. It runs in a Memalloc and
// Reclaim scope: it may use the reserve and never enters reclaim.
//
// Lock order: no locks but leaves. BalanceDirtyPages blocks; everything else
// returns at once.
package writeback
