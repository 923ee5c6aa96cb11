package billyfs

import (
	"errors"
	"io"
	"os"
	"reflect"
	"syscall"

	"github.com/go-git/go-billy/v5"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// lockFile returns a node with io and mu held: nobody else changes its data.
func (fs *fileSystem) lockFile(id vfs.NodeID) (*node, error) {
	fs.mu.Lock()
	n, err := fs.node(id)
	if err != nil {
		fs.mu.Unlock()
		return nil, err
	}
	if n.io.TryLock() {
		return n, nil
	}
	fs.mu.Unlock()
	n.io.Lock()
	fs.mu.Lock()
	if n.isGone() {
		fs.unlockFile(n)
		return nil, vfs.ErrStale
	}
	return n, nil
}

func (fs *fileSystem) unlockFile(n *node) {
	fs.mu.Unlock()
	n.io.Unlock()
}

// file returns a regular file that c has the right want to, its attributes in a.
func (fs *fileSystem) file(c *vfs.Cred, n *node, want uint32, a *vfs.Attr) error {
	switch {
	case n.typ == vfs.TypeDirectory:
		return syscall.EISDIR
	case n.typ != vfs.TypeRegular:
		return syscall.EINVAL
	}
	if err := fs.look(n, a); err != nil {
		return err
	}
	return ioPermission(c, a, want)
}

// pages is what one Read puts its data in.
type pages struct {
	arena  *alloc.Arena
	folios [maxIO >> alloc.PageShift]*alloc.Folio
	n      int // folios held
	attr   vfs.Attr
}

func (p *pages) alloc(op *vfs.Op, bytes int) error {
	n := alloc.Pages(bytes)
	if err := p.arena.AllocInto(op.Scope, gfp.Kernel, p.folios[:n]); err != nil {
		return vfs.ErrJukebox
	}
	p.n = n
	return nil
}

// release gives back what is held.
func (p *pages) release() {
	p.arena.PutAll(p.folios[:p.n])
	clear(p.folios[:p.n])
	p.n = 0
}

// moveTo gives the first n bytes to v, whose Release gives the pages back.
func (p *pages) moveTo(v *vfs.Vec, n int) {
	used := alloc.Pages(n)
	for _, f := range p.folios[:used] {
		v.Bufs = append(v.Bufs, p.arena.Bytes(f)[:min(n, alloc.PageSize)])
		v.Pins = append(v.Pins, f.Num())
		n -= alloc.PageSize
	}
	v.Owner = p.arena
	p.arena.PutAll(p.folios[used:p.n])
	clear(p.folios[:p.n])
	p.n = 0
}

// Read implements vfs.FS. The pages are taken before any lock is.
func (fs *fileSystem) Read(op *vfs.Op, id vfs.NodeID, off uint64, count uint32, v *vfs.Vec, attr *vfs.Attr) (bool, error) {
	p := fs.scratch.Get().(*pages)
	defer fs.scratch.Put(p)
	defer p.release()
	n, err := fs.readable(op, id, off, count, &p.attr)
	if err == nil && n > 0 {
		if err = p.alloc(op, n); err == nil {
			n, err = fs.readInto(op, id, off, n, p)
		}
	}
	if err != nil {
		return false, err
	}
	if attr != nil {
		*attr = p.attr
	}
	eof := off >= p.attr.Size || uint64(n) >= p.attr.Size-off
	p.moveTo(v, n)
	return eof, nil
}

// readable returns how many bytes there are to read at off, at most count.
func (fs *fileSystem) readable(op *vfs.Op, id vfs.NodeID, off uint64, count uint32, a *vfs.Attr) (int, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.node(id)
	if err == nil {
		err = fs.file(&op.Cred, n, vfs.MayRead, a)
	}
	if err != nil || off >= a.Size {
		return 0, err
	}
	return int(min(uint64(count), uint64(fs.maxIO), a.Size-off)), nil
}

// readInto fills the pages with up to n bytes from off, and p.attr.
func (fs *fileSystem) readInto(op *vfs.Op, id vfs.NodeID, off uint64, n int, p *pages) (int, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	nd, err := fs.node(id)
	if err == nil {
		err = fs.file(&op.Cred, nd, vfs.MayRead, &p.attr)
	}
	if err != nil {
		return 0, err
	}
	path, err := fs.path(nd)
	if err != nil {
		return 0, err
	}
	f, err := fs.fs.Open(path)
	if err != nil {
		return 0, errnoOf(err)
	}
	got, err := fs.readPages(f, int64(off), n, p)
	if end := off + uint64(got); err == nil && got < n && end < p.attr.Size {
		p.attr.Size = end // it became shorter meanwhile
	}
	return got, errnoOf(err)
}

func (fs *fileSystem) readPages(f billy.File, off int64, n int, p *pages) (got int, err error) {
	fs.pause()
	defer fs.resume()
	defer f.Close()
	for _, folio := range p.folios[:p.n] {
		b := p.arena.Bytes(folio)[:min(n-got, alloc.PageSize)]
		k, err := readFull(f, b, off+int64(got))
		got += k
		if err != nil || k < len(b) {
			return got, err
		}
	}
	return got, nil
}

// readFull fills b unless the file ends before.
func readFull(f io.ReaderAt, b []byte, off int64) (n int, err error) {
	for n < len(b) {
		k, err := f.ReadAt(b[n:], off+int64(n))
		n += k
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		case k == 0:
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// Write implements vfs.FS.
func (fs *fileSystem) Write(op *vfs.Op, id vfs.NodeID, off uint64, v *vfs.Vec, how vfs.Stable, res *vfs.WriteResult) error {
	*res = vfs.WriteResult{Verifier: fs.verifier()}
	n, err := fs.lockFile(id)
	if err != nil {
		return err
	}
	defer fs.unlockFile(n)
	p := fs.scratch.Get().(*pages) // for its attr alone: one here would be allocated
	defer fs.scratch.Put(p)
	if err := fs.file(&op.Cred, n, vfs.MayWrite, &p.attr); err != nil {
		return err
	}
	res.WCC = begin(&p.attr)
	if err := fs.mayExtend(&p.attr, off, v.Len()); err != nil {
		return err
	}
	res.Stable = how
	count, err := fs.writeFile(n, off, v, how)
	if err == nil && v.Len() > 0 {
		err = fs.dropPriv(op, n, &p.attr)
	}
	fs.finish(n, &res.WCC, v.Len() > 0)
	res.Count, res.Verifier = uint32(count), fs.verifier()
	return err
}

func (fs *fileSystem) mayExtend(a *vfs.Attr, off uint64, n int) error {
	end := off + uint64(n)
	switch {
	case fs.readOnly:
		return syscall.EROFS
	case end < off, end > 1<<63-1:
		return syscall.EFBIG
	case end > a.Size && end > fs.maxFile:
		fs.tellLimit()
		return syscall.EFBIG
	}
	return nil
}

// tellLimit tells the program's owner why files do not grow.
func (fs *fileSystem) tellLimit() {
	if fs.told.CompareAndSwap(false, true) {
		fs.log.Warn("a client wanted a file larger than the limit: raise Config.MaxFileBytes if it should have it", "limit", fs.maxFile)
	}
}

// dropPriv takes setuid and setgid from a file that another than root has
// written (file_remove_privs).
func (fs *fileSystem) dropPriv(op *vfs.Op, n *node, a *vfs.Attr) error {
	mode := unprivileged(a.Mode)
	if op.Cred.UID == 0 || mode == a.Mode {
		return nil
	}
	path, err := fs.path(n)
	if err != nil {
		return err
	}
	return fs.chmod(n, path, mode)
}

// writeFile writes v and returns how much of it; without error it is as stable as
// how says. It is an error if nothing was written.
func (fs *fileSystem) writeFile(n *node, off uint64, v *vfs.Vec, how vfs.Stable) (int, error) {
	path, err := fs.path(n)
	if err != nil {
		return 0, err
	}
	f, err := fs.fs.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, errnoOf(err)
	}
	fs.pause()
	defer fs.resume()
	count, err := writeAt(f, int64(off), v)
	if count > 0 && errors.Is(err, syscall.ENOSPC) {
		err = nil // the client will hear of it when it sends the rest
	}
	if err == nil && how != vfs.Unstable {
		err = fs.syncOpen(f)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, errnoOf(err)
	}
	return count, nil
}

func writeAt(f billy.File, off int64, v *vfs.Vec) (count int, err error) {
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	for _, b := range v.Bufs {
		k, err := f.Write(b)
		count += max(k, 0)
		if err != nil {
			return count, err
		}
		if k < len(b) {
			return count, io.ErrShortWrite
		}
	}
	return count, nil
}

// chrootPkg wraps files in a type that hides all but the methods of billy.File.
const chrootPkg = "github.com/go-git/go-billy/v5/helper/chroot"

// syncerOf returns the Sync of f, also of a file in a chroot of billy, nil if it
// has none. Other wrappers are not looked into: they may hold data back.
func syncerOf(f billy.File) interface{ Sync() error } {
	for range maxWrappers {
		if s, ok := f.(interface{ Sync() error }); ok {
			return s
		}
		v := reflect.Indirect(reflect.ValueOf(f))
		if v.Kind() != reflect.Struct || v.Type().PkgPath() != chrootPkg {
			return nil
		}
		inner, ok := v.FieldByName("File").Interface().(billy.File)
		if !ok {
			return nil
		}
		f = inner
	}
	return nil
}

// syncOpen puts an open file on stable storage if it can be.
func (fs *fileSystem) syncOpen(f billy.File) error {
	s := syncerOf(f)
	if s == nil {
		return nil
	}
	err := s.Sync()
	if err != nil {
		fs.forgot()
	}
	return err
}

func canSync(bfs billy.Filesystem, path string) bool {
	f, err := bfs.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return syncerOf(f) != nil
}

// sync puts n on stable storage: a file, or the entries of a directory.
func (fs *fileSystem) sync(n *node) error {
	if fs.readOnly || n.typ != vfs.TypeRegular && (n.typ != vfs.TypeDirectory || !fs.syncDirs) {
		return nil
	}
	path, err := fs.path(n)
	if err != nil {
		return err
	}
	f, err := fs.fs.Open(path)
	if err != nil {
		return errnoOf(err)
	}
	fs.pause()
	defer fs.resume()
	defer f.Close()
	return errnoOf(fs.syncOpen(f))
}

// Commit implements vfs.FS.
func (fs *fileSystem) Commit(op *vfs.Op, id vfs.NodeID, _ uint64, _ uint32) (vfs.Verifier, vfs.WCC, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var a vfs.Attr
	n, err := fs.node(id)
	if err == nil {
		err = fs.file(&op.Cred, n, vfs.MayWrite, &a)
	}
	if err != nil {
		return fs.verifier(), vfs.WCC{}, err
	}
	w := begin(&a)
	err = fs.sync(n)
	w.HasPost = fs.look(n, &w.Post) == nil
	return fs.verifier(), w, err
}

// Sync implements vfs.FS.
func (fs *fileSystem) Sync(_ *vfs.Op, id vfs.NodeID) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.node(id)
	if err == nil {
		_, err = fs.stat(n)
	}
	if err != nil {
		return err
	}
	return fs.sync(n)
}

// Open implements vfs.FS: it checks the rights of the caller. A file that is
// unlinked is gone, open or not.
func (fs *fileSystem) Open(op *vfs.Op, id vfs.NodeID, write bool) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.node(id)
	if err != nil {
		return err
	}
	var a vfs.Attr
	want := uint32(vfs.MayRead)
	if write {
		want = vfs.MayWrite
	}
	if write && fs.readOnly {
		return syscall.EROFS
	}
	return fs.file(&op.Cred, n, want, &a)
}

// Flush implements vfs.FS: nothing is held back.
func (fs *fileSystem) Flush(*vfs.Op, vfs.NodeID) error { return nil }

// Close implements vfs.FS.
func (fs *fileSystem) Close(vfs.NodeID) {}

var _ vfs.FS = (*fileSystem)(nil)
