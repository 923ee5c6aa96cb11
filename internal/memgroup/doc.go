// Package memgroup keeps a process below the memory limit of its control group, for
// what it brings into the kernel.
//
//	/proc/self/cgroup, mountinfo ──► Find ──► Group: limit, usage   (both versions)
//	                                            │
//	who brings in a file ──► Room.Enough ───────┤ short
//	        ▲                                   ▼
//	        └── Room.Wait, bounded ◄── reclaimer: memory.reclaim, memory.force_empty
//
// A look-up brings an inode and a name into the kernel, which are charged to the group
// of who looks. The kernel would drop others for them, but not in the middle of such a
// call: file systems allocate inodes with GFP_NOFS, and then only pages of files can be
// dropped. Where all else is locked there are none, and the group is out of memory
// although nearly all of what it holds could be freed. So somebody has to have the group
// reclaimed before it is full, outside of any file system: a thread that does nothing
// else. Those who bring files in wait for it if it is late, for a bounded time.
//
// What it deliberately does not do: reclaim the groups above, which hold what belongs to
// others, although it heeds their limits; change a limit; or look for a limit that is set
// after it has started, on a group that had none.
package memgroup
