package fusefs

import (
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// KernelRoom is a policy: how many files the kernel may be made to keep on behalf of this
// process. What a look-up brings in, an inode and its name, stays there when the call is
// over. The methods may be called concurrently; they allocate nothing.
type KernelRoom interface {
	// Enough counts a file that is about to be brought in, and reports whether there
	// is room for it. It waits for nothing and costs next to nothing.
	Enough() bool
	// Wait waits for room, for a bounded time, and reports whether there is some.
	Wait() bool
}

// makeRoom comes before what may bring a file into the kernel. It waits if there is no
// room, as a writer does for the dirty limit, and goes on in the end. No lock of an inode
// is held, and op may wait: one that may not brings nothing in (resolveCached).
func (s *Store) makeRoom(op *vfs.Op) {
	if s.room == nil || s.room.Enough() {
		return
	}
	task := op.Scope.Task()
	task.Wait("", "room in the kernel for another file", 0, waitfor.Resource{})
	defer task.Done()
	if !s.room.Wait() {
		s.fds.closeIdle() // an inode that is open cannot be dropped
	}
}
