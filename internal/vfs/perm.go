package vfs

import "slices"

// Rights, as in a mode.
const (
	MayExec  = 1
	MayWrite = 2
	MayRead  = 4
)

// InGroup reports whether gid is one of the caller's groups.
func (c *Cred) InGroup(gid uint32) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }

// ClassBits returns the bits of mode, that of a file of uid and gid, that are for c
// (acl_permission_check without an ACL).
func (c *Cred) ClassBits(mode, uid, gid uint32) uint32 {
	switch {
	case c.UID == uid:
		return mode >> 6 & 7
	case c.InGroup(gid):
		return mode >> 3 & 7
	}
	return mode & 7
}

// MayIO is the check for READ and WRITE, given that for an open: the owner always may,
// for the right was checked when the file was opened, and the mode may have been
// changed since (NFSD_MAY_OWNER_OVERRIDE); who may execute may read.
func MayIO(owner bool, typ FileType, want uint32, may func(want uint32) error) error {
	if owner && typ == TypeRegular {
		return nil
	}
	err := may(want)
	if err != nil && want == MayRead && typ == TypeRegular {
		return may(MayExec)
	}
	return err
}

// access bits and the rights they need, for directories and for other files.
var (
	dirAccess = [...]struct{ bit, want uint32 }{
		{AccessRead, MayRead}, {AccessLookup, MayExec},
		{AccessModify, MayWrite | MayExec}, {AccessExtend, MayWrite | MayExec},
		{AccessDelete, MayWrite | MayExec},
	}
	fileAccess = [...]struct{ bit, want uint32 }{
		{AccessRead, MayRead}, {AccessModify, MayWrite},
		{AccessExtend, MayWrite}, {AccessExecute, MayExec},
	}
)

// MayAccess returns which of the wanted rights (ACCESS3_*) may grants for a file of
// type typ.
func MayAccess(typ FileType, want uint32, may func(want uint32) error) (have uint32) {
	table := fileAccess[:]
	if typ == TypeDirectory {
		table = dirAccess[:]
	}
	for _, a := range table {
		if want&a.bit != 0 && may(a.want) == nil {
			have |= a.bit
		}
	}
	return have
}
