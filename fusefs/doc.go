// Package fusefs is the file system of the server's side: the store, a page
// cache over a backing directory with stable file identity (store.go and the
// files around it), and the FUSE door to it (door*.go).
//
//	door ──► Store ──► pagecache (arena) ──► flusher ──► backing directory
//	                        ▲                  O_DIRECT, or buffered and
//	                        └── preadv ◄────── started at once
//
// # The store
//
// It models a disk file system on the kernel's page cache (mm/filemap.c,
// fs/open.c, and what knfsd does around it in fs/nfsd/vfs.c).
//
// Data. Dirty pages are in the arena only. WRITE copies into pages under the
// inode's lock; flushers and those who sync write them out. COMMIT, Sync and
// FILE_SYNC return when everything that was written before is on stable
// storage; those that come together share one fsync. What cannot be written
// stays dirty and is tried again, less and less often; writers and those who
// sync get the error meanwhile, and the write verifier changes. Of data that is lost NFS
// clients learn by the verifier, and who has the file open here by the next fsync (vfs.WbErr).
//
// Identity. A file handle is the kernel's (name_to_handle_at) with a keyed
// check; the key is in the state directory. Handles outlive the process, and
// none can be made up that leads out of the export. Where the file system has no
// handles, a table in the state directory remembers the names of files
// (idtable.go) and outlives the process as a log (idlog.go).
//
// Attributes. Callers see the size and the times that their calls made, at
// once, though the backing file gets them at write-out. A change that somebody
// else makes to the backing file is noticed by its times and taken over; one
// made within the same tick of the kernel's clock may be missed before Linux
// 6.13.
//
// Rights. What is one system call is made with the caller's fsuid, fsgid and
// groups, on a thread of its own meanwhile, so the kernel decides. READ, WRITE
// and ACCESS look at the mode, and ask the kernel if there is a POSIX ACL. The
// owner may always read and write its file (as in knfsd). Root is not squashed
// here. A user's write takes set-uid and set-gid away, even the owner's.
//
// Directory listings are cached in pages of the arena that reclaim can only get
// by asking: ReleaseFolio takes the directory's lock, as file systems do whose
// reclaim path needs their own locks. So whoever holds a directory's lock
// allocates under NoFS (mechanism "scope"). Without it, CREATE and READDIR wait
// for themselves.
//
// Lock order:
//
//	lock of a directory (two: in the order of their node numbers)
//	  lock of a file
//	    inode.am                 attributes; held over fstat, not over data I/O
//	      Mapping.mu             see pagecache
//	    idTable.mu
//	      idLog.mu               neither is held over a system call
//	    table.mu, fdCache.mu, syncGroup.mu   (leaves)
//
// Memory for READ and WRITE is allocated before any lock is taken. Write-out
// takes no lock above inode.am and allocates nothing. Waiting for pages under
// write-back happens under the lock of a file (truncate); what ends it takes
// inode.am only.
//
// What it deliberately does not do: read ahead (the kernel does, behind the
// buffered descriptor), export what is mounted inside the directory, ACL and
// lock protocols, space reservation for dirty pages (ENOSPC comes with COMMIT,
// as it may in NFS).
package fusefs
