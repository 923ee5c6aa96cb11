package main

import (
	"fmt"
	"log/slog"

	"loopnfs/internal/hostguard"
	"loopnfs/internal/memgroup"
	"loopnfs/nfsserver"
)

// tightGroup is what a group should have free when a server has all its inodes, in bytes:
// less is reclaimed all the time.
const tightGroup = 32 << 20

// room keeps the server below the memory limit of its control group; nil if that has
// none, or cannot be reclaimed.
func (o *serveOptions) room(log *slog.Logger) *memgroup.Room {
	if !o.without.has(groupReclaim) {
		return nil
	}
	group, err := memgroup.Open()
	if err != nil {
		log.Warn("whether the control group limits memory cannot be told", "error", err,
			"costs", "if it does, a client that lists many files can have the server killed",
			"remedy", "mount the control groups where the server can read them")
	}
	if group == nil {
		return nil
	}
	free, _ := group.Free(memgroup.Unlimited)
	r, err := memgroup.Start(group, o.threads+nfsserver.MaxLate+fuseThreads, hostguard.LeaveFlushers)
	if err != nil {
		warnGroup(log, group, free, err)
		return nil
	}
	log.Info("the control group limits memory, and is reclaimed before it is full", "group", group.Dir, "limit_mib", group.Limit>>20, "free_mib", free>>20)
	_, inodes := o.shareOut()
	if need := tightGroup + int64(inodes)*inodeBytes; free < need {
		log.Warn("the control group has little memory left", "limit_mib", group.Limit>>20, "free_mib", free>>20,
			"costs", "clients that look at many files wait often until the kernel has forgotten others",
			"remedy", fmt.Sprintf("set a limit that is %d MiB higher, or a smaller --memory", (need-free)>>20+1))
	}
	return r
}

// warnGroup says what it means that a group with a limit cannot be reclaimed.
func warnGroup(log *slog.Logger, group *memgroup.Group, free int64, why error) {
	log.Warn("the memory limit of the control group may have the server killed", "error", why, "group", group.Dir,
		"limit_mib", group.Limit>>20, "free_mib", free>>20,
		"costs", "the kernel keeps about 2 KiB for each file that clients look at, and cannot drop it when the limit is reached",
		"remedy", fmt.Sprintf("let the server write to %s (mount the control groups writable), or have it run without a limit; "+
			"with one, it takes 2 MiB more for each 1000 files that are looked at", group.ReclaimFile()))
}
