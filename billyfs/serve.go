package billyfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"syscall"

	"github.com/go-git/go-billy/v5"
	nfs "github.com/willscott/go-nfs"

	"loopnfs/internal/stack"
	"loopnfs/nfsserver"
)

// DefaultMemoryBytes is the default of Config.MemoryBytes.
const DefaultMemoryBytes = 32 << 20

// Config says what to serve, and how. Zero fields get their defaults in Validate.
type Config struct {
	// Handler is what go-nfs serves. Its Mount is called for each MNT, with the
	// connection and the path that the client asked for, and decides who may
	// mount; the credentials in the request are empty. The first file system that
	// it returns is the one that is served, whatever the path. Change and FSStat
	// are used, the rest is not.
	Handler nfs.Handler
	// MemoryBytes is the size of the arena that data on its way takes its memory
	// from, locked if the process may: at least 4 MiB.
	MemoryBytes int64
	// MaxFileBytes is how large clients can make a file. The default is no limit
	// for files that the host keeps (the Sys of their FileInfo is a
	// *syscall.Stat_t), and 1 GiB for others, which may be in the memory of the
	// process.
	MaxFileBytes int64
	// MaxObjects is how many files and directories clients can know. A handle
	// stays good as long as the object exists, and takes some 300 bytes; beyond
	// the limit new ones are refused with NFS3ERR_JUKEBOX. The default is 1 Mi.
	MaxObjects int
	// Concurrent says that data of several files can be read, written and synced
	// at the same time as other calls to the file system are made. Otherwise
	// there is one call at a time.
	Concurrent bool
	// RootSquash makes nobody (65534) of a client's uid 0 and gid 0. go-nfs does
	// not look at who calls, so the default is to let root be root.
	RootSquash bool
	// Logger gets what nobody else is told; default slog.Default.
	Logger *slog.Logger
}

// Validate fills in the defaults and reports the first thing wrong with c.
func (c *Config) Validate() error {
	if c.MemoryBytes == 0 {
		c.MemoryBytes = DefaultMemoryBytes
	}
	if c.MaxObjects == 0 {
		c.MaxObjects = defaultMaxObjects
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	switch {
	case c.Handler == nil:
		return errors.New("billyfs: no handler: make one with NewNullAuthHandler of go-nfs")
	case c.MaxFileBytes < 0:
		return fmt.Errorf("billyfs: limit of %d bytes for a file: want at least 1, or 0 for the default", c.MaxFileBytes)
	case c.MaxObjects < minObjects || c.MaxObjects > maxMaxObjects:
		return fmt.Errorf("billyfs: limit of %d objects: want %d to %d", c.MaxObjects, minObjects, maxMaxObjects)
	}
	return nil
}

// Serve serves handler to those who connect to l, as nfs.Serve of go-nfs does,
// until l is closed; its error is that of accepting. Then connections are closed
// too; the arena stays mapped. A Server is for those who want
// something else than the defaults.
func Serve(l net.Listener, handler nfs.Handler) error {
	s, err := New(Config{Handler: handler})
	if err != nil {
		l.Close()
		return err
	}
	err = s.Serve(l)
	return errors.Join(err, s.Close())
}

// Server serves one handler. All methods may be called concurrently.
type Server struct {
	cfg    Config
	mem    *stack.Memory
	srv    *nfsserver.Server
	fs     *fileSystem
	ctx    context.Context
	cancel context.CancelFunc
	once   sync.Once // ends the memory

	mu      sync.Mutex
	mounted billy.Filesystem // what fs has attached
}

// New makes a server. Close it also if it never serves.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	mem, err := stack.NewMemory(stack.DefaultMemory(cfg.MemoryBytes))
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, mem: mem}
	if s.fs, err = newFileSystem(&s.cfg, mem.Arena); err != nil {
		return nil, err
	}
	squash := nfsserver.SquashNone
	if cfg.RootSquash {
		squash = nfsserver.SquashRoot
	}
	s.srv, err = nfsserver.New(nfsserver.Config{
		Exports: []nfsserver.Export{{Name: "/", FS: s.fs, Squash: squash, Mount: s.mount}},
		Arena:   mem.Arena, Graph: mem.Graph, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	mem.Start()
	return s, nil
}

// Serve serves those who connect to l, which it closes, until Close or until l is
// closed. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error { return s.srv.Serve(l) }

// Close ends connections and every Serve, when the calls in progress are
// answered. A second call does nothing.
func (s *Server) Close() error {
	s.cancel()
	err := s.srv.Close()
	s.once.Do(s.mem.Stop)
	return err
}

// mount asks the handler whether a client may mount dir.
func (s *Server) mount(nc net.Conn, dir string) error {
	status, bfs, _ := s.cfg.Handler.Mount(s.ctx, nc, nfs.MountRequest{Dirpath: []byte(dir)})
	switch {
	case status != nfs.MountStatusOk:
		return mountErrno(status)
	case bfs == nil:
		return syscall.EACCES
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted != nil {
		return s.isMounted(bfs, dir)
	}
	statFS := func(st *nfs.FSStat) error { return s.cfg.Handler.FSStat(s.ctx, bfs, st) }
	if err := s.fs.attach(bfs, s.cfg.Handler.Change(bfs), statFS); err != nil {
		s.cfg.Logger.Error("the file system cannot be served", "err", err)
		return errnoOf(err)
	}
	s.mounted = bfs
	return nil
}

// isMounted reports whether bfs is the file system that is served, as far as that
// can be told.
func (s *Server) isMounted(bfs billy.Filesystem, dir string) error {
	if reflect.TypeOf(bfs) == reflect.TypeOf(s.mounted) && bfs.Root() == s.mounted.Root() {
		return nil
	}
	s.cfg.Logger.Warn("the handler has another file system for this path, and only one can be served", "path", dir)
	return syscall.EACCES
}

// mountErrno returns the errno for a status, which has the same number where it
// has one.
func mountErrno(status nfs.MountStatus) error {
	switch status {
	case nfs.MountStatusErrNameTooLong:
		return syscall.ENAMETOOLONG
	case nfs.MountStatusErrNotSupp:
		return syscall.EOPNOTSUPP
	case nfs.MountStatusErrServerFault:
		return syscall.EREMOTEIO
	}
	return syscall.Errno(status)
}
