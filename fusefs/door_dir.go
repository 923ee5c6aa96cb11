package fusefs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// OpenDir opens a directory for reading.
func (f *doorFS) OpenDir(s *doorSlot, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	s.begin(opOpenDir, &in.InHeader)
	node := vfs.NodeID(in.NodeId)
	if st := f.access(s, node, unix.R_OK); st != fuse.OK {
		return st
	}
	out.Fh = f.handles.add(&openFile{node: node, cred: s.op.Cred, dir: true})
	return fuse.OK
}

// ReleaseDir undoes OpenDir.
func (f *doorFS) ReleaseDir(in *fuse.ReleaseIn) { f.handles.remove(in.Fh) }

// dirSink packs entries into the kernel's buffer. With plus there is room for
// what a look-up returns, which is looked up later: the file system must not be
// called from here.
type dirSink struct {
	out     *fuse.DirEntryList
	plus    bool
	pending []plusEntry
}

type plusEntry struct {
	out  *fuse.EntryOut
	name string // in the kernel's buffer, valid as long as the request
}

// Entry implements vfs.DirSink.
func (d *dirSink) Entry(e *vfs.DirEntry) bool {
	de := fuse.DirEntry{
		Mode: typeMode(e.Type), Ino: e.Ino, Off: e.Cookie,
		Name: unsafe.String(unsafe.SliceData(e.Name), len(e.Name)), // copied before we return
	}
	if !d.plus {
		return d.out.AddDirEntry(de)
	}
	entry := d.out.AddDirLookupEntry(de)
	if entry == nil {
		return false
	}
	if s := de.Name; s != "." && s != ".." {
		d.pending = append(d.pending, plusEntry{entry, d.lastName(len(s))})
	}
	return true
}

// lastName returns the name of the last entry where it lies in the kernel's
// buffer: at the end, before the padding to 8 bytes.
func (d *dirSink) lastName(n int) string {
	buf := d.out.Bytes()
	end := len(buf) - (8-n&7)&7
	return unsafe.String(unsafe.SliceData(buf[end-n:end]), n)
}

// ReadDir lists names into out; with plus it also looks each up.
func (f *doorFS) ReadDir(s *doorSlot, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	o := f.handles.get(in.Fh)
	if o == nil || !o.dir {
		return fuse.EBADF
	}
	s.beginAs(opReadDir, &in.InHeader, o)
	s.dir.plus, s.dir.pending = plus, s.dir.pending[:0]
	st := s.do(func() error {
		*out = *fuse.NewDirEntryList(out.Bytes()[:cap(out.Bytes())], in.Offset)
		s.dir.out = out
		s.dir.pending = s.dir.pending[:0]
		return f.list(s, o, in.Offset)
	})
	if st != fuse.OK {
		return st
	}
	s.dir.out = nil
	f.lookupAll(s, o.node)
	return fuse.OK
}

// list reads entries from cookie on, with the verifier of the call before.
func (f *doorFS) list(s *doorSlot, o *openFile, cookie uint64) error {
	o.mu.Lock()
	if cookie == 0 {
		o.verf = vfs.Verifier{}
	}
	verf := o.verf
	o.mu.Unlock()
	next, _, err := f.fs.ReadDir(&s.op, o.node, cookie, verf, &s.dir)
	if err != nil {
		return err
	}
	o.mu.Lock()
	o.verf = next
	o.mu.Unlock()
	return nil
}

// lookupAll fills in what READDIRPLUS tells beyond READDIR. An entry that is
// gone by now stays a bare name.
func (f *doorFS) lookupAll(s *doorSlot, dir vfs.NodeID) {
	cache := len(s.dir.pending) > 0 && f.mayCache(s, dir)
	for i := range s.dir.pending {
		p := &s.dir.pending[i]
		if e, err := f.fs.Lookup(&s.op, dir, p.name); err == nil {
			f.enter(&e, cache, p.out)
		}
		*p = plusEntry{}
	}
}
