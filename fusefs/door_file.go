package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// fmodeExec is the kernel's __FMODE_EXEC: the file is opened to be executed.
const fmodeExec = 0x20

// openMask returns what must be allowed for open flags.
func openMask(flags uint32) uint32 {
	var mask uint32
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		mask = unix.R_OK
	case unix.O_WRONLY:
		mask = unix.W_OK
	default:
		mask = unix.R_OK | unix.W_OK
	}
	if flags&fmodeExec != 0 {
		mask = unix.X_OK
	}
	return mask
}

func opensForWrite(flags uint32) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }

// Open opens a file. The kernel then drops the pages it has of it; it must not
// trust its attributes either, or it would read no further than the old end.
func (f *doorFS) Open(s *doorSlot, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	s.begin(opOpen, &in.InHeader)
	node := vfs.NodeID(in.NodeId)
	if st := f.access(s, node, openMask(in.Flags)); st != fuse.OK {
		return st
	}
	if st := f.open(s, node, in.Flags, out); st != fuse.OK {
		return st
	}
	f.conn.invalidate(in.NodeId)
	return fuse.OK
}

func (f *doorFS) open(s *doorSlot, node vfs.NodeID, flags uint32, out *fuse.OpenOut) fuse.Status {
	o := &openFile{node: node, cred: s.op.Cred, write: opensForWrite(flags)}
	o.adds = o.write && flags&unix.O_APPEND != 0
	s.op.File = &o.file
	st := s.do(func() error { return f.fs.Open(&s.op, node, o.write) })
	if st == fuse.OK {
		out.Fh = f.handles.add(o)
		if o.adds { // the kernel would put what is written where it thinks that the end is
			out.OpenFlags |= fuse.FOPEN_DIRECT_IO
		}
	}
	return st
}

// Create makes a file and opens it, whatever its mode allows. O_TRUNC matters
// only if somebody else was faster.
func (f *doorFS) Create(s *doorSlot, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	s.begin(opCreate, &in.InHeader)
	how := vfs.Unchecked
	if in.Flags&unix.O_EXCL != 0 {
		how = vfs.Guarded
	}
	s.set = vfs.SetAttr{SetMode: true, Mode: in.Mode & 0o7777, SetSize: in.Flags&unix.O_TRUNC != 0}
	st := f.make(s, &out.EntryOut, func() (vfs.Entry, vfs.WCC, error) {
		return f.fs.Create(&s.op, vfs.NodeID(in.NodeId), name, how, &s.set, vfs.Verifier{})
	})
	if st != fuse.OK {
		return st
	}
	node := vfs.NodeID(out.NodeId)
	if st = f.open(s, node, in.Flags, &out.OpenOut); st != fuse.OK {
		f.Forget(out.NodeId, 1)
	}
	return st
}

// Release undoes Open.
func (f *doorFS) Release(in *fuse.ReleaseIn) {
	f.count[opRelease].Add(1)
	if o := f.handles.remove(in.Fh); o != nil {
		f.fs.Close(o.node)
	}
}

// readResult is the data of one READ. It keeps the pages pinned until they are
// in the kernel.
type readResult struct {
	parts []vfs.Vec // what FS.Read returned, in order; more than one is rare
	n     int       // how many of parts are in use
	bufs  [][]byte
}

// next returns an empty Vec.
func (r *readResult) next() *vfs.Vec {
	if r.n == len(r.parts) {
		r.parts = append(r.parts, vfs.Vec{})
	}
	r.n++
	return &r.parts[r.n-1]
}

// slices returns the data as it lies in the pages.
func (r *readResult) slices() [][]byte {
	r.bufs = r.bufs[:0]
	for i := range r.parts[:r.n] {
		r.bufs = append(r.bufs, r.parts[i].Bufs...)
	}
	return r.bufs
}

// release is called when the data has been sent.
func (r *readResult) release() {
	for i := range r.parts[:r.n] {
		r.parts[i].Release()
	}
	clear(r.bufs)
	r.n = 0
}

// Read reads into s.read. The kernel takes a short answer for the end of the file, so
// there is none in its middle.
func (f *doorFS) Read(s *doorSlot, in *fuse.ReadIn) fuse.Status {
	o := f.handles.get(in.Fh)
	if o == nil || o.dir {
		return fuse.EBADF
	}
	s.beginAs(opRead, &in.InHeader, o)
	return f.read(s, o.node, in.Offset, min(in.Size, f.maxWrite))
}

func (f *doorFS) read(s *doorSlot, node vfs.NodeID, off uint64, count uint32) fuse.Status {
	for count > 0 {
		v := s.read.next()
		var eof bool
		st := s.soonLarge(int(count), func() (err error) {
			v.Release() // after a failed try
			eof, err = f.fs.Read(&s.op, node, off, count, v, nil)
			return err
		})
		if st != fuse.OK {
			return st
		}
		n := v.Len()
		if n > int(count) {
			f.logger.Error("fuse: the file system read more than it was asked for", "node", node, "count", count, "read", n)
			return fuse.EIO
		}
		off, count = off+uint64(n), count-uint32(n)
		if eof || n == 0 {
			break
		}
	}
	return fuse.OK
}

// Write writes. data is the slot's buffer and goes to the file system as it is.
func (f *doorFS) Write(s *doorSlot, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	o := f.handles.get(in.Fh)
	if o == nil || o.dir {
		return 0, fuse.EBADF
	}
	s.beginAs(opWrite, &in.InHeader, o)
	off := in.Offset
	switch {
	case in.WriteFlags&fuse.WRITE_CACHE != 0:
		s.op.File = nil // of whoever has it mapped, not of o
	case o.adds && in.Flags&unix.O_APPEND != 0:
		off = vfs.AtEnd
	}
	s.data.Bufs = append(s.data.Bufs[:0], data)
	defer func() {
		clear(s.data.Bufs)
		s.data.Reset()
	}()
	how := stableFor(in.Flags)
	s.wrote = vfs.WriteResult{}
	st := s.soonLarge(len(data), func() error {
		if off == vfs.AtEnd && s.wrote.Count > 0 { // it is there, and would be a second time
			return f.fs.Sync(&s.op, o.node)
		}
		s.wrote = vfs.WriteResult{}
		return f.fs.Write(&s.op, o.node, off, &s.data, how, &s.wrote)
	})
	if st == fuse.OK && s.wrote.Count == 0 && s.data.Len() > 0 {
		st = fuse.EIO
	}
	return s.wrote.Count, st
}

// stableFor returns how durable a write must be for the flags of its file; the
// kernel puts those of the single call (RWF_DSYNC) into them too.
func stableFor(flags uint32) vfs.Stable {
	switch {
	case flags&unix.O_SYNC == unix.O_SYNC:
		return vfs.FileSync
	case flags&unix.O_DSYNC != 0:
		return vfs.DataSync
	}
	return vfs.Unstable
}

// Flush is close(2). A file that was only read has nothing to write back, and
// must not be told of errors that are for a writer.
func (f *doorFS) Flush(s *doorSlot, in *fuse.FlushIn) fuse.Status {
	o := f.handles.get(in.Fh)
	if o == nil || o.dir {
		return fuse.EBADF
	}
	if !o.write {
		return fuse.OK
	}
	s.beginAs(opFlush, &in.InHeader, o)
	return s.do(func() error { return f.fs.Flush(&s.op, o.node) })
}

// Fsync puts a file or directory on stable storage.
func (f *doorFS) Fsync(s *doorSlot, in *fuse.FsyncIn) fuse.Status {
	o := f.handles.get(in.Fh)
	if o == nil {
		return fuse.EBADF
	}
	s.beginAs(opFsync, &in.InHeader, o)
	return s.do(func() error { return f.fs.Sync(&s.op, o.node) })
}
