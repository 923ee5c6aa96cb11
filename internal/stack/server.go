package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"loopnfs/fusefs"
	"loopnfs/internal/nlm"
	"loopnfs/nfsserver"
	"loopnfs/reclaim/writeback"
)

// ExportConfig is one directory to serve.
type ExportConfig struct {
	Dir string
	// Name is what clients mount; "" means "/" and the last element of Dir.
	Name string

	// Who may do what with it: see nfsserver.Export.
	Squash           nfsserver.Squash
	AnonUID, AnonGID uint32
	Allow            []netip.Prefix
	ReadOnly, Secure bool
}

// ServerConfig says what to serve to whom.
type ServerConfig struct {
	Exports []ExportConfig
	// StateDir keeps what must outlive the process, a directory per export in
	// it. It is made if it is not there.
	StateDir string
	// Private are files that no client must reach, besides StateDir.
	Private []string
	// Holds: see nfsserver.Config.
	Holds func() bool
	// Listen is the address for NFS and MOUNT; port 0 takes any.
	Listen string
	// Listener, if not nil, is used instead. It is the server's then.
	Listener net.Listener
	// Fuse, if not empty, is where the first export is mounted by a door of
	// its own.
	Fuse string
	// Dropper: see fusefs.DoorConfig.
	Dropper func(mountpoint string, id int) (*exec.Cmd, error)

	// Workers is how many requests are carried out at once; 0 for the default.
	Workers int
	// Slots is how many requests can be known at once; 0 for the default.
	Slots int
	// Inodes is how many inodes stay in memory, of all exports that there were, which
	// share them evenly; 0 for fusefs.DefaultMaxInodes of each.
	Inodes int
	// AsyncMetadata: see nfsserver.Config.
	AsyncMetadata bool
	// Locks has NLM and NSM served, too, with the list of clients in StateDir.
	Locks bool
	// Flushers is the number of workers per export that write back; 0 for the
	// default.
	Flushers int

	// Mechanisms; nil means the default of nfsserver.
	Locality  nfsserver.Locality
	Scope     nfsserver.ScopePolicy
	Receive   nfsserver.ReceivePolicy
	Stability nfsserver.StabilityPolicy
	// Room: see fusefs.StoreConfig.
	Room fusefs.KernelRoom
	// Buffered switches the mechanism "direct-io" off.
	Buffered bool
	// CopyWrites: see fusefs.StoreConfig.
	CopyWrites bool

	Logger *slog.Logger // nil: slog.Default
}

// Validate fills in names and reports the first thing wrong with c itself.
func (c *ServerConfig) Validate() error {
	if len(c.Exports) == 0 {
		return errors.New("nothing to serve: name a directory with --export DIR")
	}
	if c.StateDir == "" {
		return errors.New("no directory for state: name one with --state DIR")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if err := validateExports(c.Exports); err != nil {
		return err
	}
	if c.Fuse != "" && len(c.Exports) != 1 {
		return errors.New("a FUSE mount point needs exactly one export: name one with --export")
	}
	return nil
}

func validateExports(list []ExportConfig) error {
	names := map[string]bool{}
	for i := range list {
		x := &list[i]
		if err := x.validate(); err != nil {
			return err
		}
		if names[x.Name] {
			return fmt.Errorf("two exports are called %s: give one of them another name (--export DIR:/NAME)", x.Name)
		}
		names[x.Name] = true
	}
	return nil
}

func (x *ExportConfig) validate() error {
	dir, err := filepath.Abs(x.Dir)
	if err != nil {
		return fmt.Errorf("export directory %s: %w", x.Dir, err)
	}
	x.Dir = dir
	if x.Name == "" {
		x.Name = "/" + filepath.Base(dir)
		if dir == "/" {
			x.Name = "/"
		}
	}
	if x.Name[0] != '/' || filepath.Clean(x.Name) != x.Name {
		return fmt.Errorf("export name %q of %s must be an absolute path, like /data", x.Name, dir)
	}
	return nil
}

// checkDir reports what is wrong with a directory to be served.
func checkDir(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("export directory %s does not exist: create it with mkdir -p %s", dir, dir)
	case err != nil:
		return fmt.Errorf("export directory %s: %w", dir, err)
	case !st.IsDir():
		return fmt.Errorf("export directory %s is not a directory: name one", dir)
	}
	return nil
}

// doorInflight is the Go memory that writers at the server's own mount may take:
// half of what a client's mount has, for the server is to stay small.
const doorInflight = fusefs.DefaultMaxInflightBytes / 2

// Server is a running server: a store per export, NFS and MOUNT on a socket,
// and a FUSE door if asked for.
type Server struct {
	NFS  *nfsserver.Server
	Door *fusefs.Door // nil without ServerConfig.Fuse
	// Locks is the lock manager, nil without ServerConfig.Locks. Its Notify is to be
	// called when clients can find the server.
	Locks *nlm.Manager
	// Listener is where clients connect; Stop closes it.
	Listener net.Listener

	cfg    ServerConfig
	mem    *Memory
	addr   net.Addr
	status []*net.UDPConn // of the status monitor; none without Locks
	state  *os.File       // holds the epoch; locked
	epoch  uint32         // of this start; 0 if it cannot be kept
	served chan error     // one result of NFS.Serve

	serving sync.WaitGroup // status

	mu      sync.Mutex
	stores  []exportStore // also of exports that are no more
	stopped bool          // there are to be no more stores
}

// exportStore is the store of an export.
type exportStore struct {
	dir, name string
	*fusefs.Store
}

// StartServer starts a server that takes its pages from mem. Clients can connect
// when it returns. mem need not be started yet, but no load may come before.
func StartServer(mem *Memory, cfg ServerConfig) (_ *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, mem: mem, served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop(context.Background()))
		}
	}()
	if err := s.openState(); err != nil {
		return nil, err
	}
	exports, err := s.startStores(cfg.Exports)
	if err != nil {
		return nil, err
	}
	if err := s.startNFS(exports); err != nil {
		return nil, err
	}
	if cfg.Fuse == "" {
		return s, nil
	}
	s.Door, err = fusefs.MountFS(fusefs.DoorConfig{
		FS: exports[0].FS, Mountpoint: cfg.Fuse, FsName: cfg.Exports[0].Dir,
		MaxNodes: fusefs.NodesFor(s.inodesOfEach(len(cfg.Exports))), MaxInflightBytes: doorInflight, Dropper: cfg.Dropper, Graph: mem.Graph, Logger: cfg.Logger,
	})
	return s, err
}

// SetExports replaces the exports. An export that is gone is refused to clients; its
// store is kept until the server stops, for it may come back. It takes as long as their
// directories take to answer, and stops with an error if the server does. It is not called
// twice at once.
func (s *Server) SetExports(list []ExportConfig) error {
	list = slices.Clone(list)
	if err := validateExports(list); err != nil {
		return err
	}
	exports, err := s.startStores(list)
	if err != nil {
		return err
	}
	return s.NFS.SetExports(exports)
}

// startStores returns exports with a store each, starting those that are not there.
func (s *Server) startStores(list []ExportConfig) ([]nfsserver.Export, error) {
	if err := s.cfg.checkDirs(list); err != nil {
		return nil, err
	}
	var exports []nfsserver.Export
	for i := range list {
		x := &list[i]
		store, err := s.storeOf(x, s.inodesOfEach(len(list)))
		if err != nil {
			return nil, err
		}
		exports = append(exports, nfsserver.Export{
			Name: x.Name, FS: store, Squash: x.Squash, AnonUID: x.AnonUID, AnonGID: x.AnonGID,
			Allow: x.Allow, ReadOnly: x.ReadOnly, Secure: x.Secure,
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores { // those of exports that are gone have some, too
		st.SetMaxInodes(s.inodesOfEach(len(s.stores)))
	}
	return exports, nil
}

// inodesOfEach is how many inodes one of so many exports keeps in memory.
func (s *Server) inodesOfEach(exports int) int {
	if s.cfg.Inodes == 0 {
		return fusefs.DefaultMaxInodes
	}
	return max(s.cfg.Inodes/exports, fusefs.MinInodes)
}

// storeOf returns the store of an export, which keeps so many inodes if it is new.
func (s *Server) storeOf(x *ExportConfig, inodes int) (*fusefs.Store, error) {
	if store := s.findStore(x); store != nil {
		return store, nil
	}
	state := filepath.Join(s.cfg.StateDir, fmt.Sprintf("export-%06x", nfsserver.ExportID(x.Name)))
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the state directory: %w; name another one with --state", err)
	}
	store, err := fusefs.NewStore(fusefs.StoreConfig{
		Dir: x.Dir, StateDir: state, Epoch: s.epoch, Flushers: s.cfg.Flushers, Buffered: s.cfg.Buffered, CopyWrites: s.cfg.CopyWrites, Room: s.cfg.Room, Holds: s.cfg.Holds,
		Calls: cmp.Or(s.cfg.Workers, nfsserver.DefaultWorkers) + nfsserver.MaxLate, MaxInodes: inodes,
		Cache: s.mem.Cache, Domain: s.mem.Domain, Graph: s.mem.Graph, Logger: s.cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", x.Dir, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errors.Join(fmt.Errorf("export %s: the server stops", x.Dir), store.Shutdown())
	}
	s.stores = append(s.stores, exportStore{x.Dir, x.Name, store})
	s.mem.Reclaim.AddDevice(store.BDI())
	store.Start()
	return store, nil
}

func (s *Server) findStore(x *ExportConfig) *fusefs.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores {
		if st.dir == x.Dir && st.name == x.Name {
			return st.Store
		}
	}
	return nil
}

func (s *Server) startNFS(exports []nfsserver.Export) error {
	cfg := &s.cfg
	l, err := cfg.listen()
	if err != nil {
		return err
	}
	if err := s.startLocks(l.Addr()); err != nil {
		l.Close()
		return err
	}
	s.NFS, err = nfsserver.New(nfsserver.Config{
		Exports: exports, Arena: s.mem.Arena, Graph: s.mem.Graph, StateDir: cfg.StateDir, Locks: s.Locks,
		Workers: cfg.Workers, Slots: cfg.Slots, AsyncMetadata: cfg.AsyncMetadata, Holds: cfg.Holds,
		Locality: cfg.Locality, Scope: cfg.Scope, Receive: cfg.Receive, Stability: cfg.Stability, Logger: cfg.Logger,
	})
	if err != nil {
		l.Close()
		return err
	}
	s.Listener, s.addr = l, l.Addr()
	go func() { s.served <- s.NFS.Serve(l) }()
	return nil
}

// startLocks starts the lock manager, if there is to be one, and its status monitor at
// the address of the server, where clients that start again say so over UDP, and at
// loopBack.
func (s *Server) startLocks(addr net.Addr) (err error) {
	if !s.cfg.Locks {
		return nil
	}
	s.Locks, err = nlm.New(nlm.Config{Dir: filepath.Join(s.cfg.StateDir, "locks"), Logger: s.cfg.Logger})
	if err != nil {
		return err
	}
	at := addr.(*net.TCPAddr).AddrPort()
	s.serveStatus(at)
	if a := at.Addr().Unmap(); !a.IsUnspecified() && a != loopBack {
		s.serveStatus(netip.AddrPortFrom(loopBack, at.Port()))
	}
	return nil
}

// loopBack is where rpc.statd calls the lock managers of its host.
var loopBack = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (s *Server) serveStatus(at netip.AddrPort) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		s.cfg.Logger.Warn("clients that start again cannot say so", "error", err,
			"costs", "what they had locked stays locked until this server starts again", "remedy", "free this port for UDP")
		return
	}
	s.status = append(s.status, conn)
	s.serving.Go(func() { s.Locks.ServeStatus(conn) })
}

// stopLocks ends the lock manager. Who has locks is told by the next.
func (s *Server) stopLocks() error {
	if s.Locks == nil {
		return nil
	}
	for _, conn := range s.status {
		conn.Close()
	}
	s.serving.Wait()
	return s.Locks.Close()
}

func (c *ServerConfig) listen() (net.Listener, error) {
	if c.Listener != nil {
		return c.Listener, nil
	}
	addr := c.Listen
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("cannot listen on %s: another server has this port (the kernel's nfsd, or another loopnfs): stop it, or choose a port with --listen", addr)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("cannot listen on %s: ports below 1024 need root: choose a higher one with --listen", addr)
	case err != nil:
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	return l, nil
}

// Addr returns the address that clients connect to.
func (s *Server) Addr() net.Addr { return s.addr }

// Failed gives the error when the server no longer accepts connections.
func (s *Server) Failed() <-chan error { return s.served }

// BDI returns the backing device of the first export.
func (s *Server) BDI() *writeback.BDI { return s.BDIs()[0] }

// BDIs returns the backing devices of all exports.
func (s *Server) BDIs() []*writeback.BDI {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*writeback.BDI
	for _, st := range s.stores {
		all = append(all, st.BDI())
	}
	return all
}

// Stop ends the server: its mount, its clients, then its stores, which put
// everything on stable storage. Who still uses the FUSE mount gets errors.
// ctx bounds how long their requests may take to end.
func (s *Server) Stop(ctx context.Context) error {
	var errs []error
	if s.Door != nil {
		closeDoor(s.Door, s.cfg.Logger)
		select {
		case <-s.Door.Done():
		case <-ctx.Done():
			errs = append(errs, errors.New("requests of the FUSE mount have not ended"))
		}
	}
	if s.NFS != nil {
		errs = append(errs, s.NFS.Close())
	}
	errs = append(errs, s.stopLocks())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores {
		errs = append(errs, st.Shutdown())
	}
	s.stores, s.stopped = nil, true
	if s.state != nil {
		errs = append(errs, s.state.Close())
		s.state = nil
	}
	return errors.Join(errs...)
}

// closeDoor unmounts, by force if the mount is in use.
func closeDoor(d *fusefs.Door, log *slog.Logger) {
	if err := d.Unmount(); err != nil {
		log.Warn("the mount is in use: those who use it get errors", "mountpoint", d.Mountpoint(), "error", err)
		if err := d.Abort(); err != nil {
			log.Error("the mount stays", "error", err)
		}
	}
}
