package nfsserver

import "loopnfs/internal/vfs"

// StabilityPolicy says how to carry out a WRITE whose client asked for how, at
// least as durably; local says whether the client runs on this host.
type StabilityPolicy func(how vfs.Stable, local bool) vfs.Stable

// AsAsked is a world without stable replies.
func AsAsked(how vfs.Stable, _ bool) vfs.Stable { return how }

// StableWhenShort is the mechanism "stable-replies": while memory is short, a
// WRITE of a client on this host is carried out and answered FILE_SYNC. Its pages
// are clean with the reply. After UNSTABLE they could not be freed before a
// COMMIT, and after DATA_SYNC a client sends one, too: whoever waits for that in
// reclaim may be one that the server needs. Remote clients free no memory here.
// short is called for each WRITE.
func StableWhenShort(short func() bool) StabilityPolicy {
	return func(how vfs.Stable, local bool) vfs.Stable {
		if local && short() {
			return vfs.FileSync
		}
		return how
	}
}
