package billyfs

import (
	"os"
	"strings"
	"syscall"

	nfs "github.com/willscott/go-nfs"

	"loopnfs/internal/vfs"
)

// Modes of what is made without one.
const (
	defaultFileMode = 0o644
	defaultDirMode  = 0o755
)

// directory returns a directory that c has the rights want to, its attributes in a.
func (fs *fileSystem) directory(c *vfs.Cred, id vfs.NodeID, want uint32, a *vfs.Attr) (*node, error) {
	n, err := fs.node(id)
	if err != nil {
		return nil, err
	}
	if n.typ != vfs.TypeDirectory {
		return nil, syscall.ENOTDIR
	}
	if err := fs.look(n, a); err != nil {
		return nil, err
	}
	return n, permission(c, a, want)
}

// child returns the node called name in dir, its attributes in a, or ENOENT.
func (fs *fileSystem) child(dir *node, name string, a *vfs.Attr) (*node, error) {
	p, err := fs.childPath(dir, name)
	if err != nil {
		return nil, err
	}
	fi, err := fs.fs.Lstat(p)
	if err != nil {
		if isGone(err) {
			fs.drop(fs.find(dir, name))
		}
		return nil, errnoOf(err)
	}
	n, err := fs.nodeOf(dir, name, fi)
	if err == nil {
		fs.attrOf(n, fi, a)
	}
	return n, err
}

// nodeOf returns the node of the object called name in dir that fi describes.
func (fs *fileSystem) nodeOf(dir *node, name string, fi os.FileInfo) (*node, error) {
	n := fs.find(dir, name)
	if n != nil && n.is(fi) {
		return n, nil
	}
	fs.drop(n)
	return fs.add(dir, name, typeOf(fi.Mode()), ownID(fi))
}

// Lookup implements vfs.FS.
func (fs *fileSystem) Lookup(op *vfs.Op, dir vfs.NodeID, name string) (vfs.Entry, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var a vfs.Attr
	d, err := fs.directory(&op.Cred, dir, vfs.MayExec, &a)
	if err != nil {
		return vfs.Entry{}, err
	}
	if name == ".." {
		if err := fs.look(d.parent, &a); err != nil {
			return vfs.Entry{}, err
		}
		return d.parent.give(&a), nil
	}
	if err := checkName(name); err != nil {
		return vfs.Entry{}, err
	}
	n, err := fs.child(d, name, &a)
	if err != nil {
		return vfs.Entry{}, err
	}
	return n.give(&a), nil
}

// making is one object that is being made.
type making struct {
	dir  *node
	name string
	path string
	attr vfs.Attr // of dir
	wcc  vfs.WCC  // of dir
	old  *node    // what is there already, with oldAttr
	was  vfs.Attr
}

// make prepares the making of name in dir. What is there already is in m.old.
func (fs *fileSystem) make(op *vfs.Op, dir vfs.NodeID, name string, m *making) error {
	m.name = name
	var err error
	if m.dir, err = fs.directory(&op.Cred, dir, vfs.MayExec, &m.attr); err != nil {
		return err
	}
	m.wcc = begin(&m.attr)
	if err := checkName(name); err != nil {
		return err
	}
	switch m.old, err = fs.child(m.dir, name, &m.was); {
	case err == nil:
		return nil
	case err != syscall.ENOENT:
		return err
	case fs.readOnly:
		return syscall.EROFS
	}
	if err := permission(&op.Cred, &m.attr, vfs.MayWrite|vfs.MayExec); err != nil {
		return err
	}
	if !fs.hasRoom() { // later it would be there already
		return vfs.ErrJukebox
	}
	m.path, err = fs.childPath(m.dir, name)
	return err
}

// makeNew is make for what must not be there yet.
func (fs *fileSystem) makeNew(op *vfs.Op, dir vfs.NodeID, name string, set *vfs.SetAttr, m *making) error {
	if err := fs.make(op, dir, name, m); err != nil {
		return err
	}
	if m.old != nil {
		return syscall.EEXIST
	}
	return fs.mayMake(&op.Cred, set)
}

// mayMake reports whether c may give a new object what set says.
func (fs *fileSystem) mayMake(c *vfs.Cred, set *vfs.SetAttr) error {
	if c.UID != 0 && (set.SetUID && set.UID != c.UID || set.SetGID && !c.InGroup(set.GID)) {
		return syscall.EPERM
	}
	if set.SetSize && set.Size > fs.maxFile {
		fs.tellLimit()
		return syscall.EFBIG
	}
	return nil
}

// made completes the making of an object, which exists by now.
func (fs *fileSystem) made(op *vfs.Op, m *making, set *vfs.SetAttr, mode uint32) (*node, vfs.Entry, error) {
	m.dir.version++
	fs.drop(fs.find(m.dir, m.name))
	var a vfs.Attr
	n, err := fs.child(m.dir, m.name, &a)
	if err == nil {
		err = fs.dress(op, m, n, &a, set, mode)
	}
	if err == nil {
		err = fs.look(n, &a)
	}
	fs.finish(m.dir, &m.wcc, true)
	if err != nil {
		return nil, vfs.Entry{}, err
	}
	return n, n.give(&a), nil
}

// dress gives a new object its owner, mode and the rest of set. What the file
// system cannot be told stays as it made it, and the reply tells.
func (fs *fileSystem) dress(op *vfs.Op, m *making, n *node, a *vfs.Attr, set *vfs.SetAttr, mode uint32) error {
	rest := *set
	rest.SetUID, rest.SetGID = false, false
	rest.SetSize = set.SetSize && n.typ == vfs.TypeRegular && set.Size != a.Size
	if fs.change == nil && !fs.keeps {
		rest = vfs.SetAttr{SetSize: rest.SetSize, Size: rest.Size}
		return fs.apply(op, n, a, &rest)
	}
	owner := vfs.SetAttr{SetUID: true, UID: op.Cred.UID, SetGID: true, GID: op.Cred.GID}
	if set.SetUID {
		owner.UID = set.UID
	}
	if set.SetGID {
		owner.GID = set.GID
	}
	if m.attr.Mode&setgid != 0 { // as in a directory of System V
		owner.GID = m.attr.GID
		if n.typ == vfs.TypeDirectory {
			mode |= setgid
		}
	}
	// A process without the right to give files away keeps them.
	err := fs.apply(&vfs.Op{}, n, a, &owner)
	if err != nil && err != syscall.EPERM && err != syscall.EACCES {
		return err
	}
	if err := fs.look(n, a); err != nil {
		return err
	}
	if n.typ == vfs.TypeSymlink { // billy.Change would follow it
		return nil
	}
	rest.SetMode, rest.Mode = true, mode
	return fs.apply(op, n, a, &rest)
}

func modeOf(set *vfs.SetAttr, otherwise uint32) uint32 {
	if set.SetMode {
		return set.Mode & 0o7777
	}
	return otherwise
}

// Create implements vfs.FS.
func (fs *fileSystem) Create(op *vfs.Op, dir vfs.NodeID, name string, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (vfs.Entry, vfs.WCC, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var m making
	if err := fs.make(op, dir, name, &m); err != nil {
		return vfs.Entry{}, m.wcc, err
	}
	if m.old != nil {
		ent, err := fs.reuse(op, &m, how, set, verf)
		return ent, m.wcc, err
	}
	if err := fs.mayMake(&op.Cred, set); err != nil {
		return vfs.Entry{}, m.wcc, err
	}
	mode := modeOf(set, defaultFileMode)
	f, err := fs.fs.OpenFile(m.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, os.FileMode(mode&0o777))
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return vfs.Entry{}, m.wcc, errnoOf(err)
	}
	n, ent, err := fs.made(op, &m, set, mode)
	if err == nil && how == vfs.Exclusive {
		n.hasVerf, n.verf = true, verf
	}
	return ent, m.wcc, err
}

// reuse answers a Create of what is there already.
func (fs *fileSystem) reuse(op *vfs.Op, m *making, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (vfs.Entry, error) {
	n := m.old
	switch {
	case how == vfs.Exclusive && n.hasVerf && n.verf == verf:
		return n.give(&m.was), nil
	case how != vfs.Unchecked || n.typ != vfs.TypeRegular:
		return vfs.Entry{}, syscall.EEXIST
	case set.SetSize:
		size := vfs.SetAttr{SetSize: true, Size: set.Size}
		w := begin(&m.was)
		err := fs.maySet(&op.Cred, n, &m.was, &size)
		if err == nil {
			err = fs.apply(op, n, &m.was, &size)
			fs.finish(n, &w, true)
		}
		if err != nil {
			return vfs.Entry{}, err
		}
		if w.HasPost {
			m.was = w.Post
		}
	}
	return n.give(&m.was), nil
}

// Mkdir implements vfs.FS.
func (fs *fileSystem) Mkdir(op *vfs.Op, dir vfs.NodeID, name string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var m making
	if err := fs.makeNew(op, dir, name, set, &m); err != nil {
		return vfs.Entry{}, m.wcc, err
	}
	mode := modeOf(set, defaultDirMode)
	if err := fs.fs.MkdirAll(m.path, os.FileMode(mode&0o777)); err != nil {
		return vfs.Entry{}, m.wcc, errnoOf(err)
	}
	_, ent, err := fs.made(op, &m, set, mode)
	return ent, m.wcc, err
}

// Symlink implements vfs.FS.
func (fs *fileSystem) Symlink(op *vfs.Op, dir vfs.NodeID, name, target string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var m making
	if err := fs.makeNew(op, dir, name, set, &m); err != nil {
		return vfs.Entry{}, m.wcc, err
	}
	switch {
	case target == "":
		return vfs.Entry{}, m.wcc, syscall.ENOENT
	case len(target) > maxPath:
		return vfs.Entry{}, m.wcc, syscall.ENAMETOOLONG
	case strings.ContainsRune(target, 0):
		return vfs.Entry{}, m.wcc, syscall.EINVAL
	}
	if err := fs.fs.Symlink(target, m.path); err != nil {
		return vfs.Entry{}, m.wcc, errnoOf(err)
	}
	_, ent, err := fs.made(op, &m, set, 0o777)
	return ent, m.wcc, err
}

// Readlink implements vfs.FS.
func (fs *fileSystem) Readlink(_ *vfs.Op, id vfs.NodeID, buf []byte) ([]byte, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.node(id)
	if err != nil {
		return buf, err
	}
	if n.typ != vfs.TypeSymlink {
		return buf, syscall.EINVAL
	}
	if _, err := fs.stat(n); err != nil {
		return buf, err
	}
	p, err := fs.path(n)
	if err != nil {
		return buf, err
	}
	target, err := fs.fs.Readlink(p)
	if err != nil {
		return buf, errnoOf(err)
	}
	return append(buf, target...), nil
}

// Mknod implements vfs.FS, for a file system whose billy.Change is a UnixChange.
func (fs *fileSystem) Mknod(op *vfs.Op, dir vfs.NodeID, name string, typ vfs.FileType, major, minor uint32, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var m making
	if err := fs.makeNew(op, dir, name, set, &m); err != nil {
		return vfs.Entry{}, m.wcc, err
	}
	unix, ok := fs.change.(nfs.UnixChange)
	if !ok {
		return vfs.Entry{}, m.wcc, syscall.EOPNOTSUPP
	}
	mode := modeOf(set, defaultFileMode)
	var err error
	switch typ {
	case vfs.TypeFIFO:
		err = unix.Mkfifo(m.path, mode&0o777)
	case vfs.TypeSocket:
		err = unix.Socket(m.path)
	case vfs.TypeBlock, vfs.TypeChar:
		err = mknod(unix, op, &m, typ, mode, major, minor)
	default:
		err = syscall.EINVAL
	}
	if err != nil {
		return vfs.Entry{}, m.wcc, errnoOf(err)
	}
	_, ent, err := fs.made(op, &m, set, mode)
	return ent, m.wcc, err
}

// mknod makes a device, which root alone may (vfs_mknod).
func mknod(unix nfs.UnixChange, op *vfs.Op, m *making, typ vfs.FileType, mode, major, minor uint32) error {
	if op.Cred.UID != 0 {
		return syscall.EPERM
	}
	kind := uint32(syscall.S_IFCHR)
	if typ == vfs.TypeBlock {
		kind = syscall.S_IFBLK
	}
	return unix.Mknod(m.path, kind|mode&0o777, major, minor)
}

// Link implements vfs.FS: billy has no hard links.
func (fs *fileSystem) Link(*vfs.Op, vfs.NodeID, vfs.NodeID, string) (vfs.Attr, vfs.WCC, error) {
	return vfs.Attr{}, vfs.WCC{}, syscall.EOPNOTSUPP
}
