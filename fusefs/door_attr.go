package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// modeOfType are the type bits of st_mode.
var modeOfType = [...]uint32{
	vfs.TypeRegular: unix.S_IFREG, vfs.TypeDirectory: unix.S_IFDIR, vfs.TypeBlock: unix.S_IFBLK,
	vfs.TypeChar: unix.S_IFCHR, vfs.TypeSymlink: unix.S_IFLNK, vfs.TypeSocket: unix.S_IFSOCK,
	vfs.TypeFIFO: unix.S_IFIFO,
}

func typeMode(t vfs.FileType) uint32 {
	if int(t) < len(modeOfType) {
		return modeOfType[t]
	}
	return 0
}

func typeOfMode(mode uint32) (vfs.FileType, bool) {
	for t, m := range modeOfType {
		if m != 0 && m == mode&unix.S_IFMT {
			return vfs.FileType(t), true
		}
	}
	return 0, false
}

func (f *doorFS) fillAttr(a *vfs.Attr, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: a.Ino, Size: a.Size, Blocks: (a.Used + 511) / 512,
		Atime: uint64(a.Atime.Sec), Atimensec: a.Atime.Nsec,
		Mtime: uint64(a.Mtime.Sec), Mtimensec: a.Mtime.Nsec,
		Ctime: uint64(a.Ctime.Sec), Ctimensec: a.Ctime.Nsec,
		Mode: typeMode(a.Type) | a.Mode&0o7777, Nlink: a.Nlink,
		Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:  uint32(unix.Mkdev(a.Major, a.Minor)), Blksize: f.maxWrite,
	}
}

// GetAttr reads attributes.
func (f *doorFS) GetAttr(s *doorSlot, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	s.begin(opGetAttr, &in.InHeader)
	st := s.soon(func() error { return f.fs.GetAttr(&s.op, vfs.NodeID(in.NodeId), &s.attr) })
	if st == fuse.OK {
		f.fillAttr(&s.attr, &out.Attr)
		out.SetTimeout(f.attrTimeout)
	}
	return st
}

// SetAttr changes attributes; through an open file it is ftruncate(2), allowed
// by how the file was opened.
func (f *doorFS) SetAttr(s *doorSlot, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if o := f.setAttrFile(in); o != nil {
		s.beginAs(opSetAttr, &in.InHeader, o)
	} else {
		s.begin(opSetAttr, &in.InHeader)
	}
	fillSetAttr(in, &s.set)
	node := vfs.NodeID(in.NodeId)
	carryOut := s.do
	if s.set.SetSize { // one that is late would cut what was written after the other
		carryOut = s.once
	}
	st := carryOut(func() error {
		wcc, err := f.fs.SetAttr(&s.op, node, &s.set)
		if err != nil || wcc.HasPost {
			s.attr = wcc.Post
			return err
		}
		return f.fs.GetAttr(&s.op, node, &s.attr)
	})
	if st == fuse.OK {
		f.fillAttr(&s.attr, &out.Attr)
		out.SetTimeout(f.attrTimeout)
	}
	return st
}

// setAttrFile returns the open file that in truncates, if any.
func (f *doorFS) setAttrFile(in *fuse.SetAttrIn) *openFile {
	if in.Valid&fuse.FATTR_FH == 0 || in.Valid&fuse.FATTR_SIZE == 0 {
		return nil
	}
	o := f.handles.get(in.Fh)
	if o == nil || !o.write || o.node != vfs.NodeID(in.NodeId) {
		return nil
	}
	return o
}

func fillSetAttr(in *fuse.SetAttrIn, set *vfs.SetAttr) {
	*set = vfs.SetAttr{
		SetMode: in.Valid&fuse.FATTR_MODE != 0, Mode: in.Mode & 0o7777,
		SetUID: in.Valid&fuse.FATTR_UID != 0, UID: in.Uid,
		SetGID: in.Valid&fuse.FATTR_GID != 0, GID: in.Gid,
		SetSize: in.Valid&fuse.FATTR_SIZE != 0, Size: in.Size,
		SetAtime: setTime(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW),
		SetMtime: setTime(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW),
		Atime:    vfs.Time{Sec: int64(in.Atime), Nsec: in.Atimensec},
		Mtime:    vfs.Time{Sec: int64(in.Mtime), Nsec: in.Mtimensec},
	}
}

func setTime(valid, given, now uint32) vfs.SetTime {
	switch {
	case valid&given == 0:
		return vfs.DontChange
	case valid&now != 0:
		return vfs.SetToServerTime
	}
	return vfs.SetToClientTime
}

// ACCESS3 rights that stand for R_OK, W_OK and X_OK, whatever the type.
const (
	rightsRead  = vfs.AccessRead
	rightsWrite = vfs.AccessModify | vfs.AccessExtend
	rightsExec  = vfs.AccessLookup | vfs.AccessExecute
)

// Access is access(2): the file system says what the caller may do.
func (f *doorFS) Access(s *doorSlot, in *fuse.AccessIn) fuse.Status {
	s.begin(opAccess, &in.InHeader)
	return f.access(s, vfs.NodeID(in.NodeId), in.Mask)
}

// access checks the rights of mask, R_OK and so on. FS says which it has, never
// more than were asked for and fit the type.
func (f *doorFS) access(s *doorSlot, node vfs.NodeID, mask uint32) fuse.Status {
	var want, got uint32
	for _, r := range accessRights {
		if mask&r.mask != 0 {
			want |= r.rights
		}
	}
	if want == 0 {
		return fuse.OK
	}
	st := s.soon(func() (err error) {
		got, err = f.fs.Access(&s.op, node, want)
		return err
	})
	if st != fuse.OK {
		return st
	}
	for _, r := range accessRights {
		if mask&r.mask != 0 && got&r.rights == 0 {
			return fuse.EACCES
		}
	}
	return fuse.OK
}

var accessRights = [...]struct{ mask, rights uint32 }{
	{unix.R_OK, rightsRead}, {unix.W_OK, rightsWrite}, {unix.X_OK, rightsExec},
}

// StatFs describes the file system.
func (f *doorFS) StatFs(s *doorSlot, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	s.begin(opStatFS, h)
	return s.do(func() error {
		st, err := f.fs.StatFS(&s.op, vfs.NodeID(h.NodeId))
		if err != nil {
			return err
		}
		bs := uint64(max(st.BlockSize, 512))
		*out = fuse.StatfsOut{
			Blocks: st.TotalBytes / bs, Bfree: st.FreeBytes / bs, Bavail: st.AvailBytes / bs,
			Files: st.TotalFiles, Ffree: st.FreeFiles,
			Bsize: uint32(bs), Frsize: uint32(bs), NameLen: st.NameMax,
		}
		return nil
	})
}
