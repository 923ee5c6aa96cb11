package billyfs

import (
	"os"
	"syscall"
	"time"

	"github.com/willscott/go-nfs/file"

	"loopnfs/internal/vfs"
)

// ownID returns the file ID that the file system tells, 0 if it tells none.
func ownID(fi os.FileInfo) uint64 {
	if info := file.GetInfo(fi); info != nil {
		return info.Fileid
	}
	return 0
}

// fileID returns what clients know n by.
func (n *node) fileID() uint64 {
	if n.own != 0 {
		return n.own
	}
	return uint64(n.id)
}

func typeOf(m os.FileMode) vfs.FileType {
	switch m & os.ModeType {
	case 0:
		return vfs.TypeRegular
	case os.ModeDir:
		return vfs.TypeDirectory
	case os.ModeSymlink:
		return vfs.TypeSymlink
	case os.ModeSocket:
		return vfs.TypeSocket
	case os.ModeNamedPipe:
		return vfs.TypeFIFO
	case os.ModeDevice:
		return vfs.TypeBlock
	}
	return vfs.TypeChar
}

// special are the bits of a mode above the permissions.
var special = [...]struct {
	mode os.FileMode
	bit  uint32
}{{os.ModeSetuid, 0o4000}, {os.ModeSetgid, 0o2000}, {os.ModeSticky, 0o1000}}

func modeBits(m os.FileMode) uint32 {
	bits := uint32(m.Perm())
	for _, s := range special {
		if m&s.mode != 0 {
			bits |= s.bit
		}
	}
	return bits
}

func fileMode(bits uint32) os.FileMode {
	m := os.FileMode(bits & 0o777)
	for _, s := range special {
		if bits&s.bit != 0 {
			m |= s.mode
		}
	}
	return m
}

// is reports whether fi can be of the object that n was made for.
func (n *node) is(fi os.FileInfo) bool {
	return typeOf(fi.Mode()) == n.typ && ownID(fi) == n.own
}

// stat returns what the file system tells of n. If it has no such object, or
// another one by now, n is stale.
func (fs *fileSystem) stat(n *node) (os.FileInfo, error) {
	p, err := fs.path(n)
	if err != nil {
		return nil, err
	}
	if n == fs.root {
		fi, err := fs.fs.Stat(p) // it may be reached by a symbolic link
		return fi, errnoOf(err)
	}
	fi, err := fs.fs.Lstat(p)
	if err != nil && !isGone(err) {
		return nil, errnoOf(err)
	}
	if err != nil || !n.is(fi) {
		fs.drop(n)
		return nil, vfs.ErrStale
	}
	return fi, nil
}

// look puts the attributes of n into a.
func (fs *fileSystem) look(n *node, a *vfs.Attr) error {
	fi, err := fs.stat(n)
	if err == nil {
		fs.attrOf(n, fi, a)
	}
	return err
}

// attrOf puts what fi and n tell into a.
func (fs *fileSystem) attrOf(n *node, fi os.FileInfo, a *vfs.Attr) {
	*a = vfs.Attr{
		Type: n.typ, Mode: modeBits(fi.Mode()), Nlink: 1, UID: fs.uid, GID: fs.gid,
		Size: uint64(max(fi.Size(), 0)), FSID: fs.fsid, Ino: n.fileID(),
	}
	a.Used = a.Size
	if info := file.GetInfo(fi); info != nil {
		a.Nlink, a.UID, a.GID, a.Major, a.Minor = max(info.Nlink, 1), info.UID, info.GID, info.Major, info.Minor
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		a.Used = uint64(st.Blocks) * 512
		a.Atime, a.Mtime, a.Ctime = timespec(st.Atim), timespec(st.Mtim), timespec(st.Ctim)
		return
	}
	if n.hasMode {
		a.Mode = n.mode
	}
	if n.hasOwner {
		a.UID, a.GID = n.uid, n.gid
	}
	fs.timesOf(n, fi, a)
}

func timespec(t syscall.Timespec) vfs.Time { return vfs.Time{Sec: t.Sec, Nsec: uint32(t.Nsec)} }

func nanos(ns int64) vfs.Time { return vfs.TimeOf(time.Unix(0, ns)) }

// modNanos returns the mtime that fi tells now, 0 for none.
func modNanos(fi os.FileInfo) int64 {
	if t := fi.ModTime(); !t.IsZero() {
		return t.UnixNano()
	}
	return 0
}

// timesOf puts times into a. They are the file system's as far as it has any, but
// no change that can be seen goes without one.
func (fs *fileSystem) timesOf(n *node, fi os.FileInfo, a *vfs.Attr) {
	mtime := modNanos(fi)
	resized := n.looked && n.typ == vfs.TypeRegular && n.size != fi.Size()
	switch {
	case fs.timeless && (resized || !n.looked), resized && mtime == n.seen:
		n.mtime = fs.now()
		n.ctime = n.mtime
	case !fs.timeless && mtime != n.seen:
		n.mtime = 0
	}
	n.looked, n.size, n.seen = true, fi.Size(), mtime
	if n.mtime != 0 {
		mtime = n.mtime
	}
	a.Mtime, a.Atime, a.Ctime = nanos(mtime), nanos(mtime), nanos(max(mtime, n.ctime))
	if n.atime != 0 {
		a.Atime = nanos(n.atime)
	}
	if fs.timeless {
		a.Ctime = nanos(n.ctime)
	}
}

// begin starts a change of n, whose attributes were read into a just now.
func begin(a *vfs.Attr) vfs.WCC { return vfs.WCC{Pre: a.Pre(), HasPre: true} }

// finish ends a change of n that w began with; content says whether mtime
// changes too.
func (fs *fileSystem) finish(n *node, w *vfs.WCC, content bool) {
	fi, err := fs.stat(n)
	if err != nil {
		return
	}
	if !fs.host {
		n.ctime, n.size = fs.now(), fi.Size()
		if content && (fs.timeless || modNanos(fi) == n.seen) {
			n.mtime = n.ctime
		}
	}
	fs.attrOf(n, fi, &w.Post)
	w.HasPost = true
}

// GetAttr implements vfs.FS.
func (fs *fileSystem) GetAttr(_ *vfs.Op, id vfs.NodeID, attr *vfs.Attr) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.node(id)
	if err != nil {
		return err
	}
	return fs.look(n, attr)
}
