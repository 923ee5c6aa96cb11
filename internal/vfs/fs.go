package vfs

import (
	"math"
	"sync/atomic"
	"syscall"

	"loopnfs/alloc/gfp"
)

// NodeID names a file object of one FS while the FS runs. 0 is never a node.
type NodeID uint64

// RootID is the root directory of every FS; it is always referenced.
const RootID NodeID = 1

// Errors that have no place among the Errno values a file system returns.
const (
	// ErrStale is returned for a handle or node whose file is gone.
	ErrStale = syscall.ESTALE
	// ErrBadHandle is returned for a handle this FS never made.
	ErrBadHandle = syscall.EBADF
	// ErrNotSync is returned when the guard of a SetAttr does not match.
	ErrNotSync = syscall.EDEADLK
	// ErrBadCookie is returned for a directory cookie that is no longer valid.
	ErrBadCookie = syscall.EBADMSG
	// ErrJukebox is returned when the request should be tried again later
	// (NFS3ERR_JUKEBOX): memory is short, or a limit was reached.
	ErrJukebox = syscall.EAGAIN
)

// Cred says who asks: the numeric identity of AUTH_SYS or of a FUSE request.
type Cred struct {
	UID, GID uint32
	Groups   []uint32 // supplementary groups
}

// Op is the part of a request that every call needs. It is owned by the door,
// lives as long as the request, and is reused for the next one: nothing behind
// the contract keeps a pointer to it after returning.
type Op struct {
	// Scope is the allocation scope that the request runs under.
	Scope gfp.Scope
	// Cred is enforced by the FS.
	Cred Cred
	// Local is true if the client runs on this host (loop-back).
	Local bool
	// File is the open file that the call is made through, if there is one: Open, Write,
	// Flush and Sync of a local user.
	File *File
	// Cancel, if not nil, is closed when nobody waits for the answer any more.
	Cancel <-chan struct{}
	// Witness, if not nil, hears of the change of names that the call makes.
	Witness Witness
	// NoWait is set by callers that must not wait for a lock, memory or a disk
	// (IOCB_NOWAIT), only for a NoWaiter. An FS that would have to sets Waits, and
	// returns any error: nothing was done, and the caller lets somebody else call again.
	NoWait, Waits bool
	// Batch, if not 0, numbers calls that had all arrived before the first of them is made:
	// attributes that an FS has looked at for one of them, or for one with a larger number,
	// are not too old for the others. What a caller may do has to be looked at again.
	Batch uint64
}

// batches is the last Op.Batch. An FS may have several callers, and compares.
var batches atomic.Uint64

// NewBatch returns an Op.Batch for what has arrived now.
func NewBatch() uint64 { return batches.Add(1) }

// A Witness notes what a call is about to do to names. A server that dies in the middle of
// it can so tell later whether it was done. An FS that does not know Witness leaves it out.
type Witness interface {
	// Before is called with the locks of the directories held, right before the FS does
	// what only its disk or the caller's rights can still keep from being done. was is
	// the handle of what the name stands for, the old name of RENAME; it is empty if
	// something is made under that name, and only borrowed. whole says that it is done
	// in one step, or not at all. With an error nothing is done; the call fails with it.
	Before(was []byte, whole bool) error
	// Undone is called under the same locks if what was announced was not done.
	Undone()
}

// Announcer is an FS that tells Op.Witness of changes.
type Announcer interface {
	FS
	// SharesDisk reports whether a directory is on the same file system: what is at the
	// disk there before a change is made is on stable storage when the change is.
	SharesDisk(dir string) bool
	// SyncAll puts all changes that were made on stable storage (syncfs).
	SyncAll() error
}

// MustWait sets Waits if op may not wait, and reports whether that is so.
func (op *Op) MustWait() bool {
	op.Waits = op.Waits || op.NoWait
	return op.NoWait
}

// NoWaiter is an FS whose ByHandle, GetAttr, Access, Lookup, Read and Write heed Op.NoWait.
type NoWaiter interface {
	FS
	HeedsNoWait()
}

// Stater is an FS that tells of files without keeping them in memory: who lists or walks
// a large tree makes no nodes.
type Stater interface {
	FS
	// Stat is ByHandle, GetAttr and Forget.
	Stat(op *Op, handle []byte, attr *Attr) error
	// StatEntry is Lookup, Handle and Forget; it does not know "..". The handle is
	// appended to buf.
	StatEntry(op *Op, dir NodeID, name string, attr *Attr, buf []byte) ([]byte, error)
	// StatEntries is StatEntry for all names of list, which does not cost as much. An error
	// says that none of them can be told of.
	StatEntries(op *Op, dir NodeID, list StatList) error
}

// StatList is what StatEntries is to tell of.
type StatList interface {
	// Next returns a name, "" after the last, and what to append the handle to. They are
	// borrowed until Tell.
	Next() (name string, buf []byte)
	// Tell is called once for each name, with attributes and handle, which are borrowed, or
	// an error.
	Tell(attr *Attr, handle []byte, err error)
}

// Entry is what a look-up or a creation returns: a node, referenced once for
// the caller, and its attributes.
type Entry struct {
	Node NodeID
	Attr Attr
	// WithDir is set by what makes a new object if that is on stable storage as soon as
	// its directory is: there is nothing left for a Sync of its own.
	WithDir bool
}

// Stable says how durable written data must be before WRITE returns
// (stable_how of RFC 1813 §3.3.7).
type Stable uint32

// The values of stable_how.
const (
	Unstable Stable = 0
	DataSync Stable = 1
	FileSync Stable = 2
)

// Verifier identifies one life of the data that is not yet stable (writeverf3):
// when it changes, unstable data may have been lost and must be sent again.
type Verifier [8]byte

// AtEnd is the offset of a Write that appends (O_APPEND): behind what anybody else has written.
const AtEnd uint64 = math.MaxUint64

// WriteResult is what Write returns.
type WriteResult struct {
	Count    uint32 // bytes written
	Stable   Stable // what was reached, at least what was asked for
	Verifier Verifier
	WCC      WCC
}

// CreateMode says how an existing file is treated (createmode3 of RFC 1813
// §3.3.8).
type CreateMode uint32

// The values of createmode3.
const (
	Unchecked CreateMode = 0
	Guarded   CreateMode = 1
	Exclusive CreateMode = 2
)

// DirEntry is one entry handed to a DirSink.
type DirEntry struct {
	Ino    uint64
	Name   []byte   // valid only during the call
	Cookie uint64   // where to go on after this entry
	Type   FileType // 0 if unknown
}

// DirSink takes directory entries, in order.
type DirSink interface {
	// Entry returns false if e does not fit; it is then the first entry of
	// the next call. It must not call back into the FS.
	Entry(e *DirEntry) bool
}

// FS is a file system as its doors see it. All calls may be made concurrently.
//
// A NodeID in an argument must be referenced by the caller (RootID always is);
// a NodeID in a result carries one reference for the caller, who gives it back
// with Forget. Names are single path components: never empty, ".", "..", and
// never with '/' or NUL; the FS refuses others with EINVAL, and names of more
// than 255 bytes with ENAMETOOLONG. The bytes of names and targets are only
// borrowed: whoever keeps them after returning clones them (strings.Clone).
//
// Calls that change a directory return weak cache consistency data for it.
// No name-space change is promised to be on stable storage before Sync of the
// directory has returned.
type FS interface {
	// Lookup finds name in dir. The name ".." is allowed: the parent, or the
	// root itself at the root.
	Lookup(op *Op, dir NodeID, name string) (Entry, error)
	// Forget gives back n references to node.
	Forget(node NodeID, n uint64)
	// Handle appends the persistent file handle of node to buf: it outlives
	// the process. At most 60 bytes. A file that is gone keeps its handle.
	Handle(node NodeID, buf []byte) ([]byte, error)
	// ByHandle finds the node of a handle; ErrStale if the file is gone,
	// ErrBadHandle if the handle was never made here.
	ByHandle(op *Op, handle []byte) (NodeID, error)

	GetAttr(op *Op, node NodeID, attr *Attr) error
	SetAttr(op *Op, node NodeID, set *SetAttr) (WCC, error)
	// Access returns which of the wanted rights (ACCESS3_* of RFC 1813
	// §3.3.4) the caller has.
	Access(op *Op, node NodeID, want uint32) (uint32, error)
	// Readlink appends the target of a symbolic link to buf.
	Readlink(op *Op, node NodeID, buf []byte) ([]byte, error)

	// Read fills v, which the caller releases, with up to count bytes from
	// offset off. Fewer bytes than asked for are returned only at the end of
	// the file or at the FS's own limit. attr, if not nil, gets the attributes.
	Read(op *Op, node NodeID, off uint64, count uint32, v *Vec, attr *Attr) (eof bool, err error)
	// Write writes the bytes of v, which stays the caller's, at offset off, or at
	// the end of the file for AtEnd, and makes them as durable as asked. Only the FUSE
	// door asks for AtEnd.
	Write(op *Op, node NodeID, off uint64, v *Vec, how Stable, res *WriteResult) error
	// Commit puts the data of [off, off+count) on stable storage; count 0
	// means to the end of the file.
	Commit(op *Op, node NodeID, off uint64, count uint32) (Verifier, WCC, error)
	// Sync puts everything known of node, data and attributes, entries of a
	// directory too, on stable storage.
	Sync(op *Op, node NodeID) error

	// Open prepares node for I/O by a local user and keeps it alive, also
	// unlinked, until Close. write says whether it may be written.
	Open(op *Op, node NodeID, write bool) error
	// Flush is called at each close(2) of a file that is open for writing: close-to-open
	// file systems write back here.
	Flush(op *Op, node NodeID) error
	// Close undoes one Open.
	Close(node NodeID)

	// Create makes a regular file. verf is the create verifier of Exclusive.
	Create(op *Op, dir NodeID, name string, how CreateMode, set *SetAttr, verf Verifier) (Entry, WCC, error)
	Mkdir(op *Op, dir NodeID, name string, set *SetAttr) (Entry, WCC, error)
	Symlink(op *Op, dir NodeID, name, target string, set *SetAttr) (Entry, WCC, error)
	// Mknod makes a device, socket or FIFO.
	Mknod(op *Op, dir NodeID, name string, typ FileType, major, minor uint32, set *SetAttr) (Entry, WCC, error)
	Remove(op *Op, dir NodeID, name string) (WCC, error)
	Rmdir(op *Op, dir NodeID, name string) (WCC, error)
	// Rename returns the data of the old and of the new directory.
	Rename(op *Op, dir NodeID, name string, newDir NodeID, newName string) (from, to WCC, err error)
	Link(op *Op, node, dir NodeID, name string) (Attr, WCC, error)

	// ReadDir hands the entries after cookie (0: from the start, "." and ".."
	// included) to sink until it is full or the directory ends. verf must be
	// what an earlier call returned, or zero with cookie 0.
	ReadDir(op *Op, dir NodeID, cookie uint64, verf Verifier, sink DirSink) (newVerf Verifier, eof bool, err error)

	StatFS(op *Op, node NodeID) (StatFS, error)
	// MaxIO returns the largest Read and Write, in bytes.
	MaxIO() uint32
}

// Access rights of RFC 1813 §3.3.4.
const (
	AccessRead    = 0x01
	AccessLookup  = 0x02
	AccessModify  = 0x04
	AccessExtend  = 0x08
	AccessDelete  = 0x10
	AccessExecute = 0x20
)
