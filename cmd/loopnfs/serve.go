package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"loopnfs/fusefs"
	"loopnfs/internal/hostguard"
	"loopnfs/internal/lease"
	"loopnfs/internal/memgroup"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/nlm"
	"loopnfs/internal/portmap"
	"loopnfs/internal/pressure"
	"loopnfs/internal/stack"
	"loopnfs/nfsserver"
	"loopnfs/reclaim/writeback"
)

// stopLimit is how long the orderly end may take for what depends on others.
const stopLimit = 30 * time.Second

// reloadLimit is after how long it is told that a reload takes long.
const reloadLimit = 5 * time.Second

type serveOptions struct {
	exports []string
	file    string // with more exports
	rules   exportRules
	listen  string
	memory  byteSize
	fuse    string
	state   string
	lease   leaseOptions
	threads int
	metrics string
	portmap bool
	locks   bool
	async   bool // metadata
	require bool // everything that the guard wants
	without without
	verbose bool
}

func newServeCommand() *cobra.Command {
	opts := serveOptions{memory: defaultMemory}
	cmd := &cobra.Command{
		Use:   "serve --export DIR[:/NAME]",
		Short: "Serve directories by NFS, in the foreground",
		Long: `Serves directories by NFSv3. NFS and MOUNT answer on the same port, no portmapper
is needed, and clients may call from any port. An export is mounted by its NAME:
by default "/" and the last element of DIR, so 127.0.0.1:/data for
--export /srv/data.

The process guards itself against want of memory, because a host that mounts what
it serves gets memory back only from the server: it locks its memory, starts its
threads ahead, and its threads enter no file system for memory. A parent of it
starts it again at once if it is killed or crashes. It says what it cannot get for
want of rights.

When clients can connect, one line is printed on standard output: "ready", the
address, and the names of the exports. Messages go to standard error. SIGTERM
and SIGINT end the server with everything on disk. SIGHUP has it read the --config
file again, which is like this, all but dir being optional:

  [[export]]
  dir = "/srv/data"
  name = "/data"
  allow = ["10.0.0.0/8", "192.0.2.7"]
  squash = "all"       # or "root", "none"
  anonuid = 65534
  anongid = 65534
  read_only = true
  secure = true        # clients call from ports below 1024, as only root may`,
		Example: `  loopnfs serve --export /srv/data
  loopnfs serve --export /srv/data:/data --export /home --listen :2049 --allow 10.0.0.0/8
  loopnfs serve --export /srv/data --listen 127.0.0.1:0 --memory 256MiB --fuse /data
  loopnfs serve --export /srv/shared/data --state /srv/shared/.loopnfs --lease /dev/vdb1 --listen :2049`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runServe(cmd.Context(), &opts) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&opts.exports, "export", nil, "directory to serve, and the `DIR[:/NAME]` it is mounted by; may be repeated")
	f.StringVar(&opts.listen, "listen", "127.0.0.1:2049", "`address` to listen on; port 0 takes any")
	f.Var(&opts.memory, "memory", "memory for caches and requests: most of it for pages, which is taken at the start")
	f.StringVar(&opts.fuse, "fuse", "", "also mount the export here, without NFS, at `mountpoint`")
	f.StringVar(&opts.file, "config", "", "`file` with exports and who may use them; read again at SIGHUP")
	opts.rules.flags(f)
	f.StringVar(&opts.state, "state", "/var/lib/loopnfs", "`directory` for what outlives the server")
	f.StringVar(&opts.lease.path, "lease", "", "`file` or partition on a disk that several hosts can mount: only the server that has the lease there serves")
	f.DurationVar(&opts.lease.duration, "lease-duration", lease.DefaultDuration, "how long a server that does not answer is waited for; the same on all hosts")
	f.IntVar(&opts.threads, "threads", nfsserver.DefaultWorkers, "requests carried out at once")
	f.StringVar(&opts.metrics, "metrics", "", "serve Prometheus metrics at http://`address`/metrics")
	f.BoolVar(&opts.portmap, "portmap", false, "tell the portmapper of this host (rpcbind) about the port, for clients that ask it")
	f.BoolVar(&opts.locks, "locks", false, "serve locks (NLM) to clients that mount without nolock, on this host and others; they ask the portmapper for it (--portmap)")
	f.BoolVar(&opts.async, "async-metadata", false, "answer before changes of names and attributes are on the disk: faster, and a crash may undo them")
	f.BoolVar(&opts.require, "require-guard", false, "do not start if the process cannot be guarded against want of memory in every way")
	f.StringSliceVar((*[]string)(&opts.without), "without", nil, "switch `mechanisms` off, to see what happens")
	_ = f.MarkHidden("without")
	f.BoolVar(&opts.verbose, "verbose", false, "more messages")
	return cmd
}

// config turns flags into a configuration.
func (o *serveOptions) config() (cfg stack.ServerConfig, err error) {
	if err := o.without.validate(); err != nil {
		return cfg, err
	}
	if o.require && !o.without.has(hostGuard) {
		return cfg, usagef("--require-guard and --without %s: give one of them", hostGuard)
	}
	cfg = stack.ServerConfig{
		StateDir: o.state, Listen: o.listen, Fuse: o.fuse, Workers: o.threads, AsyncMetadata: o.async, Locks: o.locks,
		Buffered: !o.without.has(directIO), Dropper: dropper,
	}
	_, cfg.Inodes = o.shareOut()
	if cfg.Exports, err = o.allExports(); err != nil {
		return cfg, err
	}
	if err := o.lease.validate(); err != nil {
		return cfg, err
	}
	if o.lease.path != "" {
		cfg.Private = []string{o.lease.path}
	}
	if o.threads < 1 || o.threads > nfsserver.MaxWorkers {
		return cfg, usagef("--threads %d: give 1 to %d", o.threads, nfsserver.MaxWorkers)
	}
	if err := cfg.Validate(); err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

// shareOut divides the memory between the arena, in bytes, and inodes.
func (o *serveOptions) shareOut() (arena int64, inodes int) {
	return shareOut(int64(o.memory), o.fuse != "", fusefs.FilesMay())
}

// memoryConfig says what the arena is like.
func (o *serveOptions) memoryConfig(keep *hostguard.Keep) stack.MemoryConfig {
	arena, _ := o.shareOut()
	cfg := stack.DefaultMemory(arena)
	cfg.File = keep.Data()
	if !o.without.has(localThrottle) {
		cfg.Throttle = writeback.GlobalThrottle{}
	}
	cfg.Throttle = writeback.FairThrottle{Throttle: cfg.Throttle}
	return cfg
}

// inodesMay is how many bytes inodes may take.
func (o *serveOptions) inodesMay(inodes int) int {
	if o.fuse != "" {
		inodes = fusefs.NodesFor(inodes) // the kernel refers to these
	}
	return inodes * storeInode
}

func runServe(ctx context.Context, opts *serveOptions) (err error) {
	cfg, err := opts.config()
	if err != nil {
		return err
	}
	outliveReaders()
	var guard *hostguard.Guard
	var keep *hostguard.Keep
	if opts.without.has(hostGuard) {
		arena, _ := opts.shareOut()
		guard, keep = hostguard.EnterKeeping(opts.state, arena)
	}
	defer keep.Remove() // what is left is taken over by the next start
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	log, flush := newLogger(os.Stderr, opts.verbose)
	defer flush()
	cfg.Logger = log
	manager := startNotifier(log)
	spareProcessors()
	guard.Protect(opts.guardConfig(len(cfg.Exports), keep))
	mem, err := newMemory(opts.memoryConfig(keep), guard, opts.inodesMay(cfg.Inodes))
	if err != nil {
		return err
	}
	defer mem.Stop()
	if err := opts.checkGuard(guard); err != nil {
		return err
	}
	watch := opts.watch(cfg.Logger)
	defer watch.Stop()
	if watch != nil {
		cfg.Stability = nfsserver.StableWhenShort(watch.Short)
	}
	room := opts.room(cfg.Logger)
	defer room.Stop()
	if room != nil { // a nil one is not a nil policy
		cfg.Room = room
	}
	var running atomic.Pointer[stack.Server]
	if opts.lease.path != "" {
		manager.starting("waits for the lease", 2*opts.lease.duration+leaseTimeout)
	}
	held, err := opts.lease.take(ctx, &cfg, lostLease(&running, log, flush))
	if err != nil {
		return err
	}
	stopped := true // all that there was to write is on the disk
	defer func() {  // before room and watch end, which may take long
		if stopped {
			err = errors.Join(err, held.Release())
		}
	}()
	if cfg.Listener, err = keep.Listener(); err != nil {
		return err
	}
	server, err := stack.StartServer(mem, cfg)
	if err != nil {
		return err
	}
	running.Store(server)
	stopServer := func() error {
		err := stopServer(server)
		stopped = err == nil
		return err
	}
	metrics, err := startMetrics(opts.metrics, &collector{mem, server, watch, room, held})
	if err != nil {
		return errors.Join(err, stopServer())
	}
	defer metrics.close()
	registration, err := opts.register(server, keep.Restarted(), cfg.Logger)
	if err != nil {
		return errors.Join(err, stopServer())
	}
	defer registration.Close()
	if server.Locks != nil {
		server.Locks.Notify()
	}
	guard.Check()
	guard.Log(cfg.Logger)
	if err := opts.checkGuard(guard); err != nil {
		return errors.Join(err, stopServer())
	}
	fmt.Println(readyLine(server, cfg.Exports))
	manager.ready(readyLine(server, cfg.Exports))
	go manager.watch(ctx, newSelfCall(server.Addr(), cfg.Holds).call, cfg.Logger)
	if err := keep.Ready(server.Listener); err != nil {
		cfg.Logger.Warn("nobody starts this server again if it is killed", "error", err)
	}
	if watch != nil {
		go refill(ctx, keep, watch, room, cfg.Logger)
	}
	go func() { // directories may not answer
		for range hup {
			manager.reloading()
			manager.ready(opts.reload(server, cfg.Logger))
		}
	}()
	select {
	case <-ctx.Done():
		stop() // a second signal ends the process at once
		manager.stopping()
		cfg.Logger.Info("stopping")
	case err = <-server.Failed():
		if errors.Is(err, nfsserver.ErrClosed) { // not by us: the lease is lost
			select {} // who has closed it ends the process
		}
	}
	return errors.Join(err, stopServer())
}

// register tells the portmapper where the server is, if it is to know, and sees to it
// that this stays so for what the kernel of this host registers, too.
func (o *serveOptions) register(server *stack.Server, restarted bool, log *slog.Logger) (*portmap.Registration, error) {
	if !o.portmap {
		return nil, nil
	}
	progs := []portmap.Program{
		{Number: nfs3.Program, Version: nfs3.Version}, {Number: nfs3.MountProgram, Version: nfs3.MountVersion},
	}
	if o.locks {
		progs = append(progs, nlm.Programs()...)
	}
	r, err := registerAt(portmap.DefaultAddr, server.Addr().(*net.TCPAddr).Port, progs, restarted, log)
	if err == nil && o.locks {
		server.Locks.LookAfter(r)
	}
	return r, err
}

// registerAt registers progs. A server that was killed and has clients comes back without a
// portmapper, too, which the want of memory may have ended as well.
func registerAt(addr string, port int, progs []portmap.Program, restarted bool, log *slog.Logger) (*portmap.Registration, error) {
	r, err := portmap.Register(addr, port, progs)
	if err == nil || !restarted {
		return r, err
	}
	log.Warn("the portmapper does not register this server, which is started again all the same", "error", err,
		"costs", "clients that ask it do not find the server", "remedy", "start rpcbind; without --locks, then start this server again")
	return portmap.Later(addr, port, progs), nil
}

// reload reads the exports again, and returns what came of it.
func (o *serveOptions) reload(server *stack.Server, log *slog.Logger) string {
	slow := time.AfterFunc(reloadLimit, func() {
		log.Warn("the exports are still being read", "file", o.file,
			"costs", "they stay as they were until then", "remedy", "see which directory does not answer, and take it out of the file")
	})
	defer slow.Stop()
	exports, err := o.allExports()
	if err == nil {
		err = server.SetExports(exports)
	}
	if err != nil {
		log.Error("the exports stay as they were", "error", err)
		return "the exports stay as they were: " + err.Error()
	}
	log.Info("exports were read again", "file", o.file, "exports", len(exports))
	return readyLine(server, exports)
}

// refill takes the memory that the next start is to have, again if it was given up.
func refill(ctx context.Context, keep *hostguard.Keep, watch *pressure.Watcher, room *memgroup.Room, log *slog.Logger) {
	watch.WhenExhausted(keep.GiveWay)
	if room != nil {
		room.WhenExhausted(keep.GiveWay)
	}
	spare := func() int64 { return min(watch.Spare(), room.Spare()) }
	for {
		if err := keep.Refill(ctx.Done(), spare); err != nil && ctx.Err() == nil {
			log.Warn("host guard: "+err.Error(), "costs", "a server that was killed may find no memory to start with",
				"remedy", "make the tmpfs larger, or wait until the host has memory and start the server again")
		}
		select {
		case <-ctx.Done():
			return
		case <-keep.Given():
			log.Warn("host guard: the host, or the control group, has no memory at all: what was kept for a restart is given up", "remedy", "give the host or the group more memory, or the server a smaller --memory")
		}
	}
}

// checkGuard refuses a guard that is not complete, if that is wanted.
func (o *serveOptions) checkGuard(guard *hostguard.Guard) error {
	if err := guard.Err(); o.require && err != nil {
		return fmt.Errorf("the process cannot be guarded against want of memory: %w; or start without --require-guard", err)
	}
	return nil
}

// watch starts to watch the memory of the host, for stable replies; nil if it is
// not to be watched, or cannot be.
func (o *serveOptions) watch(log *slog.Logger) *pressure.Watcher {
	if !o.without.has(stableReplies) {
		return nil
	}
	w, err := pressure.Start()
	if err != nil {
		log.Warn("WRITEs of local clients are not made stable when memory is short", "error", err,
			"costs", "pages that wait for a COMMIT may hold up everything", "remedy", "mount /proc")
	}
	return w
}

func readyLine(server *stack.Server, exports []stack.ExportConfig) string {
	words := []string{"ready", server.Addr().String()}
	for _, x := range exports {
		words = append(words, x.Name)
	}
	return strings.Join(words, " ")
}

func stopServer(server *stack.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	return server.Stop(ctx)
}
