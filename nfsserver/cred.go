package nfsserver

import (
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
)

// squash returns who the caller is in x. The groups are those of c, changed in
// place; a caller without AUTH_SYS is anonymous.
func squash(x *Export, c *sunrpc.Cred) vfs.Cred {
	if c.Flavor != sunrpc.AuthSys || x.Squash == SquashAll {
		return vfs.Cred{UID: x.AnonUID, GID: x.AnonGID}
	}
	cred := vfs.Cred{UID: c.Sys.UID, GID: c.Sys.GID, Groups: c.Sys.Groups()}
	if x.Squash == SquashRoot {
		squashRoot(&cred, x)
	}
	return cred
}

// squashRoot takes uid 0 and every gid 0 away (nfsd_setuser).
func squashRoot(cred *vfs.Cred, x *Export) {
	if cred.UID == 0 {
		cred.UID = x.AnonUID
	}
	if cred.GID == 0 {
		cred.GID = x.AnonGID
	}
	for i, g := range cred.Groups {
		if g == 0 {
			cred.Groups[i] = x.AnonGID
		}
	}
}
