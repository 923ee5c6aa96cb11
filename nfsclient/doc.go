// Package nfsclient is an NFS version 3 client (RFC 1813) with a page cache: the
// file system that the FUSE door shows, and the mirror image of the server's
// store. It models fs/nfs and net/sunrpc of the kernel.
//
//	Read ──► page cache ──miss──► READ  ─┐
//	Write ─► page cache ─flusher► WRITE ─┤ slots ─► sender ─► TCP ─► server
//	fsync ─► WRITE, then COMMIT ─────────┤                            │
//	names, attributes ──► one call each ─┘   reader ◄─────────────────┘
//
// # Transport
//
// One TCP connection carries many calls; replies come in any order. A call in
// flight owns a slot, and all slots exist from the start, so that a call
// allocates nothing. The last few slots are only for Memalloc scopes: write-back
// can always send. Payload goes from folios to the socket and back without a
// copy in between.
//
//	idle ─► queued ─► sending ─► waiting ─► reply ─► idle
//	          ▲                    │  ▲       │
//	          └── connection lost ─┘  │       │ NFS3ERR_JUKEBOX
//	          ▲                       │       ▼
//	          └────────── new xid ────┴─── delayed
//
// The reader goroutine receives, and runs the completions of asynchronous calls,
// which never block. It is also the one that reconnects, for ever, with a
// back-off (a hard mount). The sender goroutine sends what callers did not send
// themselves, and everything in flight again, with the same xids, after a
// reconnect, and once a minute after that. Both exist from the start, and neither takes a page from the arena:
// they are the rescuers of write-back (kernel: WQ_MEM_RECLAIM). A reply that
// cannot be decoded closes the connection and is asked for again; after a few of
// them for one call, the call fails with EIO. A call that is given up
// (Op.Cancel) leaves its slot in quarantine until its reply, or a reconnect.
//
// # Write-back
//
// Folios go through the states of package pagecache. WRITE is UNSTABLE; the
// write verifier is kept per inode, and when it changes, everything unstable
// there is dirty again. One COMMIT per inode is in flight, and covers what was
// answered before it was sent, whatever has become of the pages (inode.answered);
// who needs a later one shares it with others. fsync writes in the caller's own
// scope, as filemap_fdatawrite does, the flusher in its own; the scope crosses the
// wire in the AUTH_SYS stamp. After an error of the server's (not the loss of the
// connection) the data is dropped, and who has the file open is told (vfs.WbErr).
//
// Reclaim asks ReleaseFolio; what it does is a ReleasePolicy.
//
// # Callers that may not wait
//
// What the cache has is told to a caller with Op.NoWait at once: attributes that are not too
// old, pages that are valid, and a write goes to pages that are there, or whole ones, as long
// as nobody has to wait for memory or because of dirty pages. Everything else fails before
// anything is done, and the FUSE door lets somebody else call again.
//
// # Consistency
//
// Close-to-open: opening a file, unless the caller has just created it, asks for its
// attributes and drops clean pages if it was changed elsewhere; the last close
// writes back, commits, and takes the attributes after that for those of the cached
// pages. Weak cache consistency data tells own changes from those of others.
// Attributes are kept for a second. As long as there is data that was not sent, the
// size and the mtime are local.
//
// A file that is removed here while it is open here is renamed to .nfs… first
// and removed at the last close, because an NFSv3 server knows no open files.
//
// # Replayed calls
//
// A call that is sent again after a reconnect may have been carried out before, and
// then fails because of itself, if the server has forgotten. Ours does not forget when
// it is started again. The caller is told what the server says: nothing here could tell
// the own file from that of a neighbour who did just the same, and two would have one
// lock file. A server can tell with an EXCLUSIVE create (RFC 1813 §3.3.8), but that makes
// a file without attributes, which somebody may find before they are set, or for ever;
// so Exclusive is for callers who ask for it.
//
// # Locks
//
//	inode.sem (held for a write or a truncation; waits for replies, never for memory)
//	  inode.mu
//	    Mapping.mu, table.mu, Client.listMu (leaves)
//	transport.sendMu (held during writev; a completion may run under it)
//	  inode.mu, as above
//	    transport.mu
//	      Task.mu
//
// Nothing sends while it holds inode.mu. A caller of a call never waits in
// writev: what the socket does not take at once is left to the sender.
//
// Reclaim and completions take no inode.sem. Pages are allocated before it is
// taken.
//
// The package deliberately has no locking (NLM), no port mapper, no UDP, no
// RPCSEC_GSS, no delegation, and no retransmission on a connection that is up.
package nfsclient
