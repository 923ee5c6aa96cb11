package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// Lookup finds a name. That there is none is not cached: another client may
// create it at any time.
func (f *doorFS) Lookup(s *doorSlot, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	s.begin(opLookup, h)
	dir := vfs.NodeID(h.NodeId)
	var e vfs.Entry
	st := s.soon(func() (err error) {
		e, err = f.fs.Lookup(&s.op, dir, name)
		return err
	})
	if st == fuse.OK {
		f.enter(&e, f.mayCache(s, dir), out)
	}
	return st
}

// make runs a creation and tells the kernel what was made.
func (f *doorFS) make(s *doorSlot, out *fuse.EntryOut, create func() (vfs.Entry, vfs.WCC, error)) fuse.Status {
	var e vfs.Entry
	var wcc vfs.WCC
	st := s.once(func() (err error) {
		e, wcc, err = create()
		return err
	})
	if st == fuse.OK {
		f.enter(&e, f.mayCacheIn(&wcc), out)
	}
	return st
}

// Mkdir makes a directory.
func (f *doorFS) Mkdir(s *doorSlot, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	s.begin(opMkdir, &in.InHeader)
	s.set = vfs.SetAttr{SetMode: true, Mode: in.Mode & 0o7777}
	return f.make(s, out, func() (vfs.Entry, vfs.WCC, error) {
		return f.fs.Mkdir(&s.op, vfs.NodeID(in.NodeId), name, &s.set)
	})
}

// Mknod makes a file of any type but a directory or a link.
func (f *doorFS) Mknod(s *doorSlot, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	typ, ok := typeOfMode(in.Mode)
	if !ok || typ == vfs.TypeDirectory || typ == vfs.TypeSymlink {
		return fuse.EINVAL
	}
	s.begin(opMknod, &in.InHeader)
	s.set = vfs.SetAttr{SetMode: true, Mode: in.Mode & 0o7777}
	return f.make(s, out, func() (vfs.Entry, vfs.WCC, error) {
		dir, dev := vfs.NodeID(in.NodeId), uint64(in.Rdev)
		if typ == vfs.TypeRegular {
			return f.fs.Create(&s.op, dir, name, vfs.Guarded, &s.set, vfs.Verifier{})
		}
		return f.fs.Mknod(&s.op, dir, name, typ, unix.Major(dev), unix.Minor(dev), &s.set)
	})
}

// Symlink makes a symbolic link.
func (f *doorFS) Symlink(s *doorSlot, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	s.begin(opSymlink, h)
	s.set = vfs.SetAttr{SetMode: true, Mode: 0o777}
	return f.make(s, out, func() (vfs.Entry, vfs.WCC, error) {
		return f.fs.Symlink(&s.op, vfs.NodeID(h.NodeId), name, target, &s.set)
	})
}

// Link makes another name for a file. The kernel counts the answer as one more
// reference to the node; the file system gives us none.
func (f *doorFS) Link(s *doorSlot, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	s.begin(opLink, &in.InHeader)
	node := vfs.NodeID(in.Oldnodeid)
	var wcc vfs.WCC
	st := s.once(func() (err error) {
		s.attr, wcc, err = f.fs.Link(&s.op, node, vfs.NodeID(in.NodeId), name)
		return err
	})
	if st == fuse.OK {
		f.nodes.add(node, 1, 0)
		f.fillEntry(node, &s.attr, f.mayCacheIn(&wcc), out)
	}
	return st
}

// Unlink removes a name of a file.
func (f *doorFS) Unlink(s *doorSlot, h *fuse.InHeader, name string) fuse.Status {
	s.begin(opUnlink, h)
	return s.once(func() error {
		_, err := f.fs.Remove(&s.op, vfs.NodeID(h.NodeId), name)
		return err
	})
}

// Rmdir removes an empty directory.
func (f *doorFS) Rmdir(s *doorSlot, h *fuse.InHeader, name string) fuse.Status {
	s.begin(opRmdir, h)
	return s.once(func() error {
		_, err := f.fs.Rmdir(&s.op, vfs.NodeID(h.NodeId), name)
		return err
	})
}

// Rename moves a name. NFSv3 cannot exchange two names, nor refuse to replace
// one atomically.
func (f *doorFS) Rename(s *doorSlot, in *fuse.RenameIn, name, newName string) fuse.Status {
	if in.Flags != 0 {
		return fuse.EINVAL
	}
	s.begin(opRename, &in.InHeader)
	return s.once(func() error {
		_, _, err := f.fs.Rename(&s.op, vfs.NodeID(in.NodeId), name, vfs.NodeID(in.Newdir), newName)
		return err
	})
}

// Readlink reads a symbolic link.
func (f *doorFS) Readlink(s *doorSlot, h *fuse.InHeader) ([]byte, fuse.Status) {
	s.begin(opReadlink, h)
	var target []byte
	st := s.do(func() (err error) {
		target, err = f.fs.Readlink(&s.op, vfs.NodeID(h.NodeId), nil)
		return err
	})
	return target, st
}
