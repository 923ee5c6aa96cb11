package nfsserver

import (
	"syscall"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// mknod answers MKNOD (RFC 1813 §3.3.11).
func mknod(r *request) {
	var args nfs3.MknodArgs
	dir, err := r.nodeToChange(args.Decode(&r.dec), &args.Where.Dir)
	r.changes(dir, &args.Where)
	r.set = args.Set
	switch {
	case err != nil:
	case !isSpecial(args.Type):
		err = errBadType
	case args.Major > maxMajor || args.Minor > maxMinor:
		err = syscall.EINVAL
	}
	var ent vfs.Entry
	var wcc vfs.WCC
	if err == nil {
		ent, wcc, err = r.exp.FS.Mknod(&r.op, dir, string(args.Where.Name), args.Type, args.Major, args.Minor, &r.set)
	}
	r.created(dir, &ent, &wcc, err)
}

// The largest numbers of a device that Linux knows (MINORBITS).
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

func isSpecial(t vfs.FileType) bool {
	switch t {
	case vfs.TypeBlock, vfs.TypeChar, vfs.TypeSocket, vfs.TypeFIFO:
		return true
	}
	return false
}
