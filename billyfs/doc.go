// Package billyfs serves the file systems of others: anything that implements
// billy.Filesystem, and a whole Handler of go-nfs. A program that embeds go-nfs
// changes one line, nfs.Serve to billyfs.Serve, and is served by nfsserver, with
// the memory of an arena made for it.
//
//	NFS ──► nfsserver ──► fileSystem ──► billy.Filesystem, billy.Change
//	                      │ node table      of the program
//	                      └ arena
//
// billy knows paths, NFS knows objects. The node table keeps what stands between
// them: an object that a client has a handle of is a node, which has its parent
// and its name. A rename changes one node, and the handles of all that is below
// stay valid; a remove takes the node away, and its handle is stale. What is
// handed out is kept as long as the object exists, so memory grows with the
// objects that clients use, up to Config.MaxObjects.
//
// Data goes through billy by one open, read or write, and close per call, as
// go-nfs does: what a billy file has been given is only sure to be there when it
// is closed. That allocates from the Go heap, in billy and for the path.
//
// What a file system does not tell is kept for the life of the process: the
// verifier of an EXCLUSIVE create, ctime, and for one that knows neither owners
// nor billy.Change, as memfs, also modes, owners and times that a client sets.
//
// Stable storage is what the file system has of it. A file with Sync, as those of
// osfs, is synced where RFC 1813 asks for it. One without is as stable as its
// Close made it; nothing can be done about it, and a line in the log says so.
//
// Lock order: node.io, then fileSystem.mu. mu is held for every call into billy,
// except for those that move data of a file system that may be called
// concurrently (Config.Concurrent). No memory is waited for under a lock.
//
// Deliberately not here: hard links, which billy does not have (those of
// UnixChange take a path that each implementation reads in its own way); files
// that are open and unlinked; and what the program changes behind the server's
// back, which is seen when it changes type, size or times.
package billyfs
