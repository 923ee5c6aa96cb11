package fusefs

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/fslog"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim/writeback"
)

// Store is a file system over a backing directory. It implements vfs.FS,
// writeback.Writer and pagecache.Ops.
type Store struct {
	// Set by NewStore.
	log       *slog.Logger
	arena     *alloc.Arena
	back      *pagecache.Backing
	bdi       *writeback.BDI
	dom       *writeback.Domain
	graph     *waitfor.Graph
	rootFD    int
	rootIno   uint64
	rootMount int32
	dev       uint64
	fsid      uint64 // of the file system, to clients
	fsType    string
	fsLog     fslog.Log
	readOnly  bool
	// posixRights says that mode bits and POSIX ACLs are all there is to rights.
	posixRights bool
	macs        macs
	ids         *idTable // nil: the backing file system has file handles
	groups      []uint32 // of the process, to be restored
	maxIO       uint32
	maxBlocks   int      // pages of one directory listing
	ordered     *ordered // nil if the backing file system has cookies that stay
	nflush      int
	room        KernelRoom // nil: no bound

	nodes   table
	fds     fdCache
	scratch scratchPool
	aio     aioPool
	flusher *writeback.Flusher

	verifier   atomic.Uint64
	copyWrites bool        // see StoreConfig
	holds      func() bool // likewise; nil: always
	noDirect   atomic.Bool // O_DIRECT is not wanted, or the backing refuses it
	maxFile    uint64      // StatFS.MaxFile
	failMu     sync.Mutex
	failing    atomic.Int32 // inodes that cannot be written out; changes with failMu held
	failure    atomic.Int32 // why the last of them could not

	downOnce sync.Once
	downErr  error
}

var (
	_ vfs.FS           = (*Store)(nil)
	_ writeback.Writer = (*Store)(nil)
	_ pagecache.Ops    = (*Store)(nil)
)

// NewStore opens the directory and checks that everything the store promises
// can be had from its file system. Start it before use and Shutdown afterwards.
// It clears the umask of the process: clients have applied theirs.
func NewStore(cfg StoreConfig) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	s := &Store{log: cfg.Logger, arena: cfg.Cache.Arena(), dom: cfg.Domain, graph: cfg.Graph, nflush: cfg.Flushers, room: cfg.Room, holds: cfg.Holds}
	if err := s.open1(&cfg); err != nil {
		if s.ids != nil {
			_ = s.ids.close()
		}
		if s.rootFD > 0 {
			unix.Close(s.rootFD)
		}
		return nil, fmt.Errorf("cannot serve %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func (s *Store) open1(cfg *StoreConfig) error {
	if fi, err := os.Stat(cfg.StateDir); err != nil || !fi.IsDir() {
		return fmt.Errorf("the state directory %s is not there: create it, readable for root only", cfg.StateDir)
	}
	if err := Outside(cfg.StateDir, cfg.Dir); err != nil {
		return fmt.Errorf("the state directory %w: its clients could read the key of the file handles; put it elsewhere, next to the export for example", err)
	}
	var err error
	if s.rootFD, err = unix.Open(cfg.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	s.fsLog = fslog.Of(s.rootFD)
	if err := s.probe(cfg); err != nil {
		return err
	}
	unix.Umask(0)
	s.sizeTo(cfg)
	s.bdi = cfg.Domain.NewBDI("store " + cfg.Dir)
	s.back = cfg.Cache.NewBacking(s.bdi, s)
	root, _, err := s.instantiate(s.rootFD, nil)
	if err != nil {
		return err
	}
	if root.id != vfs.RootID {
		panic("fusefs: the root is not the first inode")
	}
	s.rootIno = root.ino
	return nil
}

// sizeTo fits the store's tables to the configuration and the arena.
func (s *Store) sizeTo(cfg *StoreConfig) {
	most := uint32(s.arena.MaxAlloc()-1) << alloc.PageShift
	s.maxIO = min(cfg.MaxIO, max(most&^(64<<10-1), MinIO))
	s.maxBlocks = min(max(s.arena.Total()/listingShare, 2), maxListing)
	s.scratch.init(int(s.maxIO), cfg.Calls+cfg.Flushers)
	s.noDirect.Store(cfg.Buffered)
	s.copyWrites = cfg.CopyWrites
	s.nodes.init(cfg.MaxInodes)
	s.fds.limit = max(16, min(FilesMay(), cfg.MaxFiles))
	s.verifier.Store(firstVerifier(cfg.Epoch))
}

// probe checks what the process may do and what the backing file system can.
func (s *Store) probe(cfg *StoreConfig) error {
	var st unix.Stat_t
	var sf unix.Statfs_t
	if err := errors.Join(fstat(s.rootFD, &st), unix.Fstatfs(s.rootFD, &sf)); err != nil {
		return err
	}
	s.dev, s.fsType = st.Dev, fsTypeName(int64(sf.Type))
	if countsEntries(int64(sf.Type)) {
		s.ordered = newOrdered()
	}
	s.posixRights = slices.Contains([]int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC,
		unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC}, int64(sf.Type))
	s.readOnly = sf.Flags&unix.ST_RDONLY != 0
	s.maxFile = maxFileOf(s.rootFD)
	var raw rawHandle
	noHandles, err := s.kernelHandles(&raw) // first: to take an identity back gives capabilities
	if err != nil {
		return err
	}
	if s.groups, err = processGroups(); err != nil {
		return err
	}
	if err := s.checkIdentity(); err != nil {
		return fmt.Errorf("cannot act on behalf of a user (setfsuid, setgroups): %w: the server needs CAP_SETUID and CAP_SETGID; run it as root", err)
	}
	if noHandles != nil {
		return s.useTable(cfg, st.Ino, noHandles)
	}
	return s.useKey(cfg.StateDir, s.keyNames(cfg.StateDir, &raw))
}

// kernelHandles reports why the backing file system has no handles that can be
// opened, if so, and returns that of the root.
func (s *Store) kernelHandles(raw *rawHandle) (no, err error) {
	if no := nameToHandle(s.rootFD, raw, &s.rootMount); no != nil {
		return fmt.Errorf("name_to_handle_at: %w", no), nil
	}
	fd, err := openByHandle(s.rootFD, raw, unix.O_PATH)
	switch err {
	case nil:
		unix.Close(fd)
		return nil, nil
	case unix.EPERM:
		return nil, fmt.Errorf("open_by_handle_at: %w: the server needs CAP_DAC_READ_SEARCH; run it as root or give it that capability", err)
	}
	return fmt.Errorf("open_by_handle_at: %w", err), nil
}

// useTable has a table in the state directory do what the file system cannot. Its
// name comes from the inode number of the root, and from the state directory if that is
// on the same file system, else from the number of the file system if it has one
// (statfs): what has no handles often has no other that stays from mount to mount.
func (s *Store) useTable(cfg *StoreConfig, ino uint64, why error) error {
	if err := s.keepsInodes(); err != nil {
		return err
	}
	var sf unix.Statfs_t
	err := unix.Fstatfs(s.rootFD, &sf)
	if err != nil {
		return err
	}
	root := rawHandle{typ: tableType, bytes: 8}
	binary.BigEndian.PutUint64(root.data[:], ino)
	var names keyNames
	if at, ok := s.besides(cfg.StateDir); ok {
		names = keyNames{[]string{keyName(append([]byte("table beside "), at...), &root)}, 1}
	}
	names.names = append(names.names, keyName(fmt.Appendf(nil, "table %v", sf.Fsid.Val), &root))
	if err := s.useKey(cfg.StateDir, names); err != nil {
		return err
	}
	name := names.table(cfg.StateDir)
	if s.ids, err = openTable(cfg.StateDir, name, s.rootFD, ino, s.fsType == "overlay", s.log); err != nil {
		return err
	}
	s.log.Warn("the file system has no file handles: a table in the state directory does instead; "+
		"files that others than this server rename or replace become stale, and the table takes memory",
		"export", cfg.Dir, "filesystem", s.fsType, "reason", why, "table", filepath.Join(cfg.StateDir, name),
		"files", len(s.ids.byNumber)-1, "limit", s.ids.limit, "bytes_per_file", recordBytes,
		"remedy", "export a directory of ext4, XFS, btrfs or tmpfs")
	return nil
}

// table returns the name of the table in dir: that which is there, or the best.
func (n *keyNames) table(dir string) string {
	for _, key := range n.names {
		name := strings.TrimSuffix(key, ".key") + ".ids"
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return name
		}
	}
	return strings.TrimSuffix(n.names[0], ".key") + ".ids"
}

// keepsInodes reports whether files can be told by their inode numbers.
func (s *Store) keepsInodes() error {
	if s.fsType == "proc" || s.fsType == "sysfs" {
		return fmt.Errorf("it is of %s, whose files come and go with what the kernel does: export a directory of files", s.fsType)
	}
	fd, err := unix.Openat(s.rootFD, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // cannot be told, or nothing can be made there
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := fstat(fd, &st); err == nil && st.Dev != s.dev {
		return fmt.Errorf("its file system (%s) lies on several others, and its inode numbers are not its own: "+
			"mount the overlay with xino=on, or with all layers on one file system", s.fsType)
	}
	return nil
}

// maxFileOf returns how large a new file in dir can get: as far as the kernel lets us seek,
// or 0 if none can be made.
func maxFileOf(dir int) (size uint64) {
	fd, err := unix.Openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	for bit := uint64(1) << 62; bit > 0; bit >>= 1 {
		if _, err := unix.Seek(fd, int64(size|bit), unix.SEEK_SET); err == nil {
			size |= bit
		}
	}
	return size
}

func processGroups() ([]uint32, error) {
	ids, err := unix.Getgroups()
	groups := make([]uint32, len(ids))
	for i, id := range ids {
		groups[i] = uint32(id)
	}
	return groups, err
}

// fsTypeName names the file systems that people know.
func fsTypeName(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext2/3/4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs",
		unix.FUSE_SUPER_MAGIC: "fuse", unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs",
		unix.MSDOS_SUPER_MAGIC: "vfat", unix.SQUASHFS_MAGIC: "squashfs",
	}
	if n := names[magic]; n != "" {
		return n
	}
	return fmt.Sprintf("type %#x", magic)
}

// Start starts the flushers.
func (s *Store) Start() {
	s.startAIO(s.nflush + moreAIO)
	s.flusher = writeback.StartFlusher(s.bdi, s, s.graph, s.nflush)
}

// BDI returns the device that the store's pages are accounted to.
func (s *Store) BDI() *writeback.BDI { return s.bdi }

// firstVerifier returns a write verifier that no other start has had: its upper half is
// the epoch. Without one it is drawn at random. The lower half counts, and does not
// reach the upper.
func firstVerifier(epoch uint32) uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	v := binary.BigEndian.Uint64(b[:])
	if epoch == 0 {
		return v
	}
	return uint64(epoch)<<32 | v&(1<<31-1)
}

// Verifier returns the present write verifier.
func (s *Store) Verifier() (v vfs.Verifier) {
	binary.BigEndian.PutUint64(v[:], s.verifier.Load())
	return v
}

// MaxIO implements vfs.FS.
func (s *Store) MaxIO() uint32 { return s.maxIO }

// Shutdown puts everything on stable storage, stops the flushers and lets go of
// every page. No call is running and none comes afterwards. It returns what
// could not be written; that data is lost. (Close is a call of vfs.FS.)
func (s *Store) Shutdown() error {
	s.downOnce.Do(func() { s.downErr = s.shutdown() })
	return s.downErr
}

func (s *Store) shutdown() error {
	if s.flusher != nil {
		s.flusher.Stop()
	}
	task := s.graph.NewTask("store")
	defer s.graph.Remove(task)
	task.Begin("shutdown")
	sc := gfp.For(task).Memalloc().Reclaim()
	var errs []error
	ins := s.nodes.all()
	for _, in := range ins {
		if !in.dirty() {
			continue
		}
		if err := s.syncInode(sc, in, true); err != nil {
			errs = append(errs, fmt.Errorf("inode %d: %d pages are lost: %w", in.ino, in.m.Nr(pagecache.Dirty), err))
		}
	}
	if err := unix.Syncfs(s.rootFD); err != nil {
		errs = append(errs, fmt.Errorf("cannot sync the file system: %w", err))
	}
	for _, in := range ins {
		s.discard(in)
	}
	if s.ids != nil {
		if err := s.ids.close(); err != nil {
			errs = append(errs, fmt.Errorf("cannot write the table of file handles: %w", err))
		}
	}
	s.aio.end()
	unix.Close(s.rootFD)
	return errors.Join(errs...)
}
