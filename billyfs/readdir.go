package billyfs

import (
	"cmp"
	"hash/maphash"
	"os"
	"slices"
	"sort"
	"time"

	"loopnfs/internal/vfs"
)

// Cookies. That of an entry is a keyed hash of its name, in whose order entries
// are listed: it stays good whatever else comes and goes, for as long as the
// process lives.
const (
	cookieDot    = 1
	cookieDotDot = 2
	cookieBits   = 62
)

func (fs *fileSystem) cookie(name string) uint64 {
	return max(maphash.String(fs.cookies, name)>>(64-cookieBits), cookieDotDot+1)
}

// listed is one entry of a listing.
type listed struct {
	cookie uint64
	name   string
	ino    uint64
	typ    vfs.FileType
}

const (
	// maxListings is how many listings are kept for the calls that go on with
	// them, and listingAge for how long.
	maxListings = 4
	listingAge  = 2 * time.Second
)

// listing is a directory as billy listed it.
type listing struct {
	dir     *node
	version uint64
	made    time.Time
	entries []listed
}

// listings are those in use, the newest last.
type listings []*listing

// find returns the listing that a call which is not the first can go on with.
func (ls listings) find(dir *node) *listing {
	for _, l := range ls {
		if l.dir == dir && l.version == dir.version && time.Since(l.made) < listingAge {
			return l
		}
	}
	return nil
}

// keep remembers l and forgets what is too old.
func (ls *listings) keep(l *listing) {
	*ls = slices.DeleteFunc(*ls, func(k *listing) bool {
		return k.dir == l.dir || time.Since(k.made) >= listingAge
	})
	if len(*ls) == maxListings {
		*ls = slices.Delete(*ls, 0, 1)
	}
	*ls = append(*ls, l)
}

// list returns the entries of dir in the order of their cookies.
func (fs *fileSystem) list(dir *node, goOn bool) (*listing, error) {
	if goOn {
		if l := fs.listings.find(dir); l != nil {
			return l, nil
		}
	}
	p, err := fs.path(dir)
	if err != nil {
		return nil, err
	}
	infos, err := fs.fs.ReadDir(p)
	if isGone(err) { // perhaps of an entry, which went meanwhile
		infos, err = fs.fs.ReadDir(p)
	}
	if err != nil {
		return nil, errnoOf(err)
	}
	l := &listing{dir: dir, version: dir.version, made: time.Now(), entries: make([]listed, 0, len(infos))}
	for _, fi := range infos {
		if checkName(fi.Name()) == nil {
			l.entries = append(l.entries, fs.listedOf(dir, fi))
		}
	}
	slices.SortFunc(l.entries, func(a, b listed) int { return cmp.Compare(a.cookie, b.cookie) })
	fs.listings.keep(l)
	return l, nil
}

// listedOf returns an entry. Where the file system has no file IDs it has to have
// a node, so that it is known by the same one later; if there is no room for it,
// it has one for this time only.
func (fs *fileSystem) listedOf(dir *node, fi os.FileInfo) listed {
	e := listed{cookie: fs.cookie(fi.Name()), name: fi.Name(), ino: ownID(fi), typ: typeOf(fi.Mode())}
	if e.ino != 0 {
		return e
	}
	if n, err := fs.nodeOf(dir, e.name, fi); err == nil {
		e.ino = n.fileID()
	} else {
		fs.lastID++
		e.ino = uint64(fs.lastID)
	}
	return e
}

// ReadDir implements vfs.FS.
func (fs *fileSystem) ReadDir(op *vfs.Op, dir vfs.NodeID, cookie uint64, verf vfs.Verifier, sink vfs.DirSink) (vfs.Verifier, bool, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var a vfs.Attr
	d, err := fs.directory(&op.Cred, dir, vfs.MayRead, &a)
	if err != nil {
		return vfs.Verifier{}, false, err
	}
	if cookie != 0 && verf != fs.dirVerf || cookie>>cookieBits != 0 {
		return vfs.Verifier{}, false, vfs.ErrBadCookie
	}
	l, err := fs.list(d, cookie != 0)
	if err != nil {
		return vfs.Verifier{}, false, err
	}
	return fs.dirVerf, fs.send(d, l, cookie, sink), nil
}

// send gives the entries after cookie to sink and reports whether that were all.
func (fs *fileSystem) send(d *node, l *listing, cookie uint64, sink vfs.DirSink) bool {
	dots := [...]listed{{cookieDot, ".", d.fileID(), d.typ}, {cookieDotDot, "..", d.parent.fileID(), d.typ}}
	for i := range dots {
		if dots[i].cookie > cookie && !fs.sendOne(&dots[i], sink) {
			return false
		}
	}
	i := sort.Search(len(l.entries), func(i int) bool { return l.entries[i].cookie > cookie })
	for ; i < len(l.entries); i++ {
		if !fs.sendOne(&l.entries[i], sink) {
			return false
		}
	}
	return true
}

func (fs *fileSystem) sendOne(e *listed, sink vfs.DirSink) bool {
	fs.entry = vfs.DirEntry{Ino: e.ino, Name: append(fs.entry.Name[:0], e.name...), Cookie: e.cookie, Type: e.typ}
	return sink.Entry(&fs.entry)
}
