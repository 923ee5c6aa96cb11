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
	"path/filepath"
	"syscall"

	"loopnfs/fusefs"
	"loopnfs/nfsserver"
	"loopnfs/reclaim/writeback"
)

// ExportConfig is one directory to serve.
type ExportConfig struct {
	Dir string
	// Name is what clients mount; "" means "/" and the last element of Dir.
	Name string
}

// ServerConfig says what to serve to whom.
type ServerConfig struct {
	Exports []ExportConfig
	// StateDir keeps what must outlive the process, a directory per export in
	// it. It is made if it is not there.
	StateDir string
	// Listen is the address for NFS and MOUNT; port 0 takes any.
	Listen string
	// Listener, if not nil, is used instead. It is the server's then.
	Listener net.Listener
	// Fuse, if not empty, is where the first export is mounted by a door of
	// its own.
	Fuse string

	Squash nfsserver.Squash
	Allow  []netip.Prefix
	// Workers is how many requests are carried out at once; 0 for the default.
	Workers int
	// Slots is how many requests can be known at once; 0 for the default.
	Slots int
	// Flushers is the number of workers per export that write back; 0 for the
	// default.
	Flushers int

	// Mechanisms; nil means the default of nfsserver.
	Locality  nfsserver.Locality
	Scope     nfsserver.ScopePolicy
	Receive   nfsserver.ReceivePolicy
	Stability nfsserver.StabilityPolicy
	// Buffered switches the mechanism "direct-io" off.
	Buffered bool

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
	names := map[string]bool{}
	for i := range c.Exports {
		x := &c.Exports[i]
		if err := x.validate(); err != nil {
			return err
		}
		if names[x.Name] {
			return fmt.Errorf("two exports are called %s: give one of them another name with --export DIR:/NAME", x.Name)
		}
		names[x.Name] = true
	}
	if c.Fuse != "" && len(c.Exports) != 1 {
		return errors.New("a FUSE mount point needs exactly one export: name one with --export")
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
	Stores []*fusefs.Store
	NFS    *nfsserver.Server
	Door   *fusefs.Door // nil without ServerConfig.Fuse
	// Listener is where clients connect; Stop closes it.
	Listener net.Listener

	mem    *Memory
	log    *slog.Logger
	addr   net.Addr
	served chan error // one result of NFS.Serve
}

// StartServer starts a server that takes its pages from mem. Clients can connect
// when it returns. mem need not be started yet, but no load may come before.
func StartServer(mem *Memory, cfg ServerConfig) (_ *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for _, x := range cfg.Exports {
		if err := checkDir(x.Dir); err != nil {
			return nil, err
		}
	}
	s := &Server{mem: mem, log: cfg.Logger, served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop(context.Background()))
		}
	}()
	if err := s.startStores(&cfg); err != nil {
		return nil, err
	}
	if err := s.startNFS(&cfg); err != nil {
		return nil, err
	}
	if cfg.Fuse == "" {
		return s, nil
	}
	s.Door, err = fusefs.MountFS(fusefs.DoorConfig{
		FS: s.Stores[0], Mountpoint: cfg.Fuse, FsName: cfg.Exports[0].Dir,
		MaxInflightBytes: doorInflight, Graph: mem.Graph, Logger: cfg.Logger,
	})
	return s, err
}

func (s *Server) startStores(cfg *ServerConfig) error {
	for _, x := range cfg.Exports {
		state := filepath.Join(cfg.StateDir, fmt.Sprintf("export-%06x", nfsserver.ExportID(x.Name)))
		if err := os.MkdirAll(state, 0o700); err != nil {
			return fmt.Errorf("cannot make the state directory: %w; name another one with --state", err)
		}
		store, err := fusefs.NewStore(fusefs.StoreConfig{
			Dir: x.Dir, StateDir: state, Flushers: cfg.Flushers, Buffered: cfg.Buffered,
			Calls: cmp.Or(cfg.Workers, nfsserver.DefaultWorkers),
			Cache: s.mem.Cache, Domain: s.mem.Domain, Graph: s.mem.Graph, Logger: cfg.Logger,
		})
		if err != nil {
			return fmt.Errorf("export %s: %w", x.Dir, err)
		}
		s.Stores = append(s.Stores, store)
		s.mem.Reclaim.AddDevice(store.BDI())
		store.Start()
	}
	return nil
}

func (s *Server) startNFS(cfg *ServerConfig) error {
	nc := nfsserver.Config{
		Arena: s.mem.Arena, Graph: s.mem.Graph, StateDir: cfg.StateDir, Workers: cfg.Workers, Slots: cfg.Slots,
		Locality: cfg.Locality, Scope: cfg.Scope, Receive: cfg.Receive, Stability: cfg.Stability, Logger: cfg.Logger,
	}
	for i, x := range cfg.Exports {
		nc.Exports = append(nc.Exports, nfsserver.Export{
			Name: x.Name, FS: s.Stores[i], Squash: cfg.Squash, Allow: cfg.Allow,
		})
	}
	l, err := cfg.listen()
	if err != nil {
		return err
	}
	if s.NFS, err = nfsserver.New(nc); err != nil {
		l.Close()
		return err
	}
	s.Listener, s.addr = l, l.Addr()
	go func() { s.served <- s.NFS.Serve(l) }()
	return nil
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
func (s *Server) BDI() *writeback.BDI { return s.Stores[0].BDI() }

// Stop ends the server: its mount, its clients, then its stores, which put
// everything on stable storage. Who still uses the FUSE mount gets errors.
// ctx bounds how long their requests may take to end.
func (s *Server) Stop(ctx context.Context) error {
	var errs []error
	if s.Door != nil {
		closeDoor(s.Door, s.log)
		select {
		case <-s.Door.Done():
		case <-ctx.Done():
			errs = append(errs, errors.New("requests of the FUSE mount have not ended"))
		}
	}
	if s.NFS != nil {
		errs = append(errs, s.NFS.Close())
	}
	for _, store := range s.Stores {
		errs = append(errs, store.Shutdown())
	}
	s.Stores = nil
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
