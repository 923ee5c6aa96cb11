package billyfs

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5"
	nfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/file"

	"loopnfs/alloc"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// maxIO is the largest Read and Write, in bytes.
const maxIO = 1 << 20

// memoryFileBytes is the default limit of a file that the host does not keep: it
// may be in the memory of the process, and a hole costs a client nothing.
const memoryFileBytes = 1 << 30

// fileSystem is a vfs.FS over a billy file system.
type fileSystem struct {
	cfg   *Config
	arena *alloc.Arena
	log   *slog.Logger
	fsid  uint64
	maxIO uint32

	handleKey cipher.Block
	handleTag uint64
	cookies   maphash.Seed
	dirVerf   vfs.Verifier
	scratch   sync.Pool // of *pages
	lives     atomic.Uint64
	life      uint64      // what lives began with
	told      atomic.Bool // that a file was too large

	mu sync.Mutex // guards everything below, and calls to billy
	source
	table
	listings listings
	last     int64 // the last time that a change was given, nanoseconds since 1970
	entry    vfs.DirEntry
	elems    []string
	plain    [handleLen]byte // of the handle looked at
}

// source is the file system of the program, and what is known of it.
type source struct {
	fs     billy.Filesystem // nil until it is attached
	change billy.Change     // nil if attributes cannot be changed
	statFS func(*nfs.FSStat) error

	uid, gid uint32 // who owns what has no owner
	maxFile  uint64 // bytes
	readOnly bool
	host     bool // attributes are those of a file system of this host
	keeps    bool // modes and owners are ours to keep
	timeless bool // files have no times: each look gives the time it is
	syncDirs bool // directories can be opened and synced
	copies   bool // see copyTree
	derefs   bool // Remove and Rename follow symbolic links
}

func newFileSystem(cfg *Config, arena *alloc.Arena) (*fileSystem, error) {
	var secret [16 + 8 + 8 + 8 + 8]byte
	rand.Read(secret[:])
	key, err := aes.NewCipher(secret[:16])
	if err != nil {
		return nil, err
	}
	word := func(i int) uint64 { return binary.BigEndian.Uint64(secret[16+8*i:]) }
	fs := &fileSystem{
		cfg: cfg, arena: arena, log: cfg.Logger, handleKey: key, handleTag: word(0), fsid: word(1), life: word(2),
		cookies: maphash.MakeSeed(), maxIO: uint32(min(maxIO, arena.MaxAlloc()<<alloc.PageShift/2)),
	}
	binary.BigEndian.PutUint64(fs.dirVerf[:], word(3)|1)
	fs.scratch.New = func() any { return &pages{arena: arena} }
	fs.table.init(cfg.MaxObjects)
	return fs, nil
}

// attach makes bfs the file system, and asks it what it can do.
func (fs *fileSystem) attach(bfs billy.Filesystem, change billy.Change, statFS func(*nfs.FSStat) error) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	s := source{fs: bfs, change: change, statFS: statFS, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	root := bfs.Join()
	fi, err := bfs.Stat(root)
	if isGone(err) { // the memfs of go-nfs has none while it is empty
		if err = bfs.MkdirAll(root, defaultDirMode); err == nil {
			fi, err = bfs.Stat(root)
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("billyfs: the root of the file system: %w", err)
	case !fi.IsDir():
		return errors.New("billyfs: the root of the file system is not a directory: export one")
	}
	_, s.host = fi.Sys().(*syscall.Stat_t)
	s.keeps = change == nil && file.GetInfo(fi) == nil
	s.readOnly = !billy.CapabilityCheck(bfs, billy.WriteCapability)
	s.timeless = !s.host && isClock(bfs, root)
	s.syncDirs = canSync(bfs, root)
	s.maxFile = fileLimit(fs.cfg.MaxFileBytes, s.host)
	s.copies, s.derefs = quirks(bfs)
	fs.source = s
	fs.root.own = ownID(fi)
	if !s.syncDirs && !s.readOnly {
		fs.log.Info("this file system cannot put directories on stable storage: what clients are told is stable is as stable as it makes it")
	}
	return nil
}

func fileLimit(configured int64, host bool) uint64 {
	switch {
	case configured > 0:
		return uint64(configured)
	case host:
		return 1<<63 - 1
	}
	return memoryFileBytes
}

// isClock reports whether the time of a file is the time at which it is asked
// for, as in memfs.
func isClock(bfs billy.Filesystem, path string) bool {
	before := time.Now()
	first, err := modTime(bfs, path)
	if err != nil || first.Before(before) {
		return false
	}
	time.Sleep(time.Millisecond)
	second, err := modTime(bfs, path)
	return err == nil && second.After(first)
}

// modTime asks once: the FileInfo of memfs gives another time each time.
func modTime(bfs billy.Filesystem, path string) (time.Time, error) {
	fi, err := bfs.Stat(path)
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}

// now returns a time for a change, later than that of any change before.
func (fs *fileSystem) now() int64 {
	fs.last = max(time.Now().UnixNano(), fs.last+1)
	return fs.last
}

// verifier returns the write verifier; it is another one after forgot.
func (fs *fileSystem) verifier() (v vfs.Verifier) {
	binary.BigEndian.PutUint64(v[:], fs.life+fs.lives.Load())
	return v
}

// forgot says that unstable data may be lost.
func (fs *fileSystem) forgot() { fs.lives.Add(1) }

// pause lets others in while data moves, if the file system allows that; defer
// resume at once.
func (fs *fileSystem) pause() {
	if fs.cfg.Concurrent {
		fs.mu.Unlock()
	}
}

func (fs *fileSystem) resume() {
	if fs.cfg.Concurrent {
		fs.mu.Lock()
	}
}

// MaxIO implements vfs.FS.
func (fs *fileSystem) MaxIO() uint32 { return fs.maxIO }

// StatFS implements vfs.FS: what the handler says, or what go-nfs says if it says
// nothing.
func (fs *fileSystem) StatFS(_ *vfs.Op, id vfs.NodeID) (vfs.StatFS, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if _, err := fs.node(id); err != nil {
		return vfs.StatFS{}, err
	}
	const much = 1 << 62
	st := nfs.FSStat{
		TotalSize: much, FreeSize: much, AvailableSize: much,
		TotalFiles: much, FreeFiles: much, AvailableFiles: much,
	}
	if fs.readOnly {
		st.AvailableSize, st.AvailableFiles = 0, 0
	}
	if fs.statFS != nil {
		if err := fs.statFS(&st); err != nil {
			return vfs.StatFS{}, errnoOf(err)
		}
	}
	return vfs.StatFS{
		TotalBytes: st.TotalSize, FreeBytes: st.FreeSize, AvailBytes: st.AvailableSize,
		TotalFiles: st.TotalFiles, FreeFiles: st.FreeFiles, AvailFiles: st.AvailableFiles,
		BlockSize: alloc.PageSize, NameMax: maxName, LinkMax: 1,
	}, nil
}

// errnoOf returns the errno that tells a door what err is.
func errnoOf(err error) error {
	var errno syscall.Errno
	var status *nfs.NFSStatusError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &errno):
		return plain(errno)
	case errors.As(err, &status):
		return nfs3.Errno(nfs3.Status(status.NFSStatus))
	}
	for _, k := range knownErrors {
		if errors.Is(err, k.err) {
			return k.errno
		}
	}
	return syscall.EIO
}

var knownErrors = [...]struct {
	err   error
	errno syscall.Errno
}{
	{os.ErrNotExist, syscall.ENOENT}, {os.ErrExist, syscall.EEXIST}, {os.ErrPermission, syscall.EACCES},
	{os.ErrInvalid, syscall.EINVAL}, {billy.ErrReadOnly, syscall.EROFS},
	{billy.ErrNotSupported, syscall.EOPNOTSUPP}, {errors.ErrUnsupported, syscall.EOPNOTSUPP},
	{billy.ErrCrossedBoundary, syscall.EACCES},
}

// plain returns errno, or EIO for one that stands for something else in vfs.
func plain(errno syscall.Errno) error {
	switch errno {
	case vfs.ErrBadHandle, vfs.ErrNotSync, vfs.ErrBadCookie:
		return syscall.EIO
	}
	return errno
}

// isGone reports whether there is nothing at the path that err is about.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
