// Package pressure watches whether this host is short of memory.
//
//	/proc/meminfo, ten times a second ─┐
//	                                   ├─► judge ─► Short
//	/proc/pressure/memory, when tasks ─┘
//	have stalled (PSI)
//
// What counts is what can be had without help from the process that asks. Dirty
// pages and those under write-back are part of MemAvailable, but on a host that
// mounts its own NFS server they are free only after the server has answered; a
// page that waits for its COMMIT is under write-back, too (since Linux 5.8;
// before, it is NFS_Unstable). So they are taken off.
//
// The host is short at once, and is no longer short only after there has been
// much more memory for a while: being short by mistake costs time, the opposite
// may cost everything. It is short as well when nobody can tell.
//
// The watcher has a thread of its own and everything open and allocated from the
// start, since it is needed most when there is nothing to be had.
//
// What it deliberately does not do: look at memory limits of control groups. When
// tasks stall at one, PSI tells.
package pressure
