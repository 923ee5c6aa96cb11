// Package nfsserver serves any vfs.FS by NFS version 3 and MOUNT version 3
// (RFC 1813) over TCP, both on one port. It models nfsd: a fixed pool of
// workers takes calls from all connections, so that calls of one connection are
// carried out at once and answered out of order.
//
//	        reader of a connection          workers            sender
//	socket ──► head ──► payload ──► slot ──► queue ──► procedure ──► socket
//	              bounded memory   bounded                 │ a socket that takes
//	              of the arena     number                  └ no more: its own sender
//
// A call is received by the reader of its connection, which waits for the peer
// before it takes anything that others need. Payload of WRITE goes from the
// socket into pages of the arena; these, and those that READ and READDIR will
// need for their replies, are counted first, and a connection may have its share
// of a quarter of the arena (ReceivePolicy). Then the call gets a slot (type request),
// which was made when the server started, as were the workers: nothing is
// allocated from the Go heap and no goroutine is started for a call. A reader
// that gets no memory or no slot stops reading its socket; nobody else notices.
//
// Before a worker is asked, the reader tries calls that seldom have to wait, with
// vfs.Op.NoWait (serveNow); their replies are sent together when it is about to wait, or
// has been at work for some time (sendEarly).
//
// Each procedure is a function of its own in a file of its own; it decodes with
// internal/nfs3, calls the FS and encodes. dispatch.go has the table.
//
// The allocation scope of a call is that of its client if the client runs on
// this host (ScopePolicy). WRITE and COMMIT of such a client may use the reserve
// and are throttled by their own device only: see cleansMemory. Nothing here
// adds NoFS: a WRITE enters direct reclaim as nfsd's does. Receiving is the
// exception; see allocData.
//
// What changes names or attributes is on stable storage before the reply
// (FS.Sync); how durable a WRITE is, the FS says and the reply repeats. It may be
// asked for more than the client wants (StabilityPolicy).
//
// In the wait-for graph a call is a task "server" that holds its reply from
// receipt on, waits for a worker, and then holds it. One that waits for a slot,
// or for room for its payload, waits for all calls that have some.
//
// Lock order: no two locks of this package are held together, but for that of the
// admission under that of the server, and none while the FS is called or the socket is
// used (that of the duplicate request cache while a socket is asked for its state).
//
// A call that a client sends again is answered with the reply to the first (drc.go);
// replies are kept for the next server, too.
//
// With a lock manager (Config.Locks) NLM and NSM are served on the same port. A LOCK that
// has to wait is answered at once, so that it keeps no worker.
//
// Deliberately not here: UDP, portmap, NFSACL, RPCSEC_GSS.
package nfsserver
