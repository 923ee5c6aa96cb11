// Package doctor tells whether a host is safe for loop-back NFS mounts: mounts
// of a server that runs on the same host, whatever server that is.
//
//	Look ──► Facts ──► Judge ──► Report ──► Fix
//	/proc, /sys        rules     findings   what can be set while all runs
//
// Look reads, Judge decides from what was read alone, Fix writes. The rules are
// about the ways in which such a mount stands still when memory runs out:
//
//	the kernel waits for COMMIT in nfs_release_folio (6.3 until January 2026)
//	the server enters reclaim of the pages that it is to clean   (PF_MEMALLOC_NOIO)
//	the server is throttled for them in balance_dirty_pages      (PF_LOCAL_THROTTLE)
//	the server's own memory is taken away, or the server killed  (VmLck, oom_score_adj)
//	the mount holds more dirty memory than the host can miss     (bdi, dirty limits)
//	swap space lies on the mount
//	suspend freezes the server before those who wait for it
//
// Everything is read from /proc, /sys and a few files, so that it works without
// root as far as it can; what could not be seen is a fact too. Nothing is read
// that waits for a process that hangs (a command line, a memory map), and no
// mount point is looked at: the mount may hang already.
//
// What it deliberately does not do: ask servers anything, use the network, or
// look for a cause of a hang that is there.
package doctor
