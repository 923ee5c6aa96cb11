package nfsserver

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nlm"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/waitfor"
)

// Defaults and limits of a Config.
const (
	DefaultWorkers  = 32
	DefaultSlots    = 64
	DefaultMaxConns = 1024

	MaxWorkers = 4096
	MaxSlots   = 1 << 16
	MaxExports = 1024

	DefaultSendTimeout    = 30 * time.Second
	DefaultReceiveTimeout = 60 * time.Second
	DefaultCloseTimeout   = 10 * time.Second
)

// ScopePolicy says what the allocation scope of a request is when the client
// sent wire, the wire form of its own scope; local says whether the client runs
// on this host.
type ScopePolicy func(wire uint8, local bool, sc gfp.Scope) gfp.Scope

// HonourLocal is the mechanism "scope-propagation": the scope of a client on
// this host is heeded, for it waits for memory that both share. What others say
// about their memory means nothing here.
func HonourLocal(wire uint8, local bool, sc gfp.Scope) gfp.Scope {
	if local {
		return sc.FromWire(wire)
	}
	return sc
}

// LoseScope is a world in which a scope ends at the socket.
func LoseScope(_ uint8, _ bool, sc gfp.Scope) gfp.Scope { return sc }

// Config says how to make a Server. Zero fields get their defaults in Validate.
type Config struct {
	// Exports are the file systems served, at least one.
	Exports []Export
	// Arena holds what WRITE receives and READDIR sends, and should hold what
	// the file systems pin for READ.
	Arena *alloc.Arena
	// Graph gets a task for each request slot and each connection; may be nil.
	Graph *waitfor.Graph
	// StateDir is where replies to calls that must not be carried out twice are
	// kept for the next server; "" keeps them in memory only. It must be there,
	// and no other server may use it.
	StateDir string
	// Holds, if not nil, reports whether this server may answer at all: whether it has
	// the lease of the disk. It is asked often, by several goroutines, and neither waits
	// nor allocates. When it reports false no reply is sent and nothing is carried out
	// that was not begun, and connections end.
	Holds func() bool
	// AsyncMetadata has calls that change names or attributes answered before the
	// change is on stable storage, against RFC 1813 §4.8: after a crash it may
	// not have happened. WRITE and COMMIT keep what they promise.
	AsyncMetadata bool
	// Locks is the lock manager (NLM, NSM) that is served, too; nil for none. It stays
	// the caller's, who closes it after the server.
	Locks *nlm.Manager
	// PoolID names the pool of workers in Graph. Servers that share a graph
	// need different ones.
	PoolID uint64

	// Workers is how many requests are carried out at once (threads of nfsd).
	Workers int
	// Slots is how many requests can be known at once: those queued, carried
	// out, and with a reply that is not sent. At least Workers.
	Slots int
	// MaxConns is how many connections there can be. A further one takes the place
	// of the one that has been idle for longest; if all are in use, it is closed.
	MaxConns int

	// SendTimeout is how long a reply may wait for a client that does not
	// read; then the connection is closed.
	SendTimeout time.Duration
	// ReceiveTimeout is how long the data of one WRITE may take to arrive;
	// then the connection is closed. An idle connection has no limit.
	ReceiveTimeout time.Duration
	// CloseTimeout is how long Close waits for requests in progress.
	CloseTimeout time.Duration

	// Locality is the mechanism "loopback-detect"; default a hostaddr.Watcher.
	Locality Locality
	// Scope is the mechanism "scope-propagation"; default HonourLocal.
	Scope ScopePolicy
	// Receive is the mechanism "socket-reserve"; default FairShare.
	Receive ReceivePolicy
	// Stability is the mechanism "stable-replies"; default AsAsked, for a
	// server does not know by itself when memory is short.
	Stability StabilityPolicy
	// Logger gets what nobody else is told; default slog.Default.
	Logger *slog.Logger
}

// Validate fills in the defaults and reports the first thing wrong with c.
func (c *Config) Validate() error {
	c.setDefaults()
	switch {
	case c.Arena == nil:
		return errors.New("nfsserver: no arena for request data")
	case c.Workers < 1 || c.Workers > MaxWorkers:
		return fmt.Errorf("nfsserver: %d workers: want 1 to %d", c.Workers, MaxWorkers)
	case c.Slots < max(c.Workers, minSlots) || c.Slots > MaxSlots:
		return fmt.Errorf("nfsserver: %d request slots: want %d, or the number of workers, to %d", c.Slots, minSlots, MaxSlots)
	case c.MaxConns < 1:
		return fmt.Errorf("nfsserver: limit of %d connections: want at least 1", c.MaxConns)
	case c.SendTimeout < 0 || c.ReceiveTimeout < 0 || c.CloseTimeout < 0:
		return errors.New("nfsserver: a timeout is negative")
	}
	return validateExports(c.Exports)
}

func (c *Config) setDefaults() {
	setDefault(&c.Workers, DefaultWorkers)
	setDefault(&c.Slots, max(DefaultSlots, 2*c.Workers))
	setDefault(&c.MaxConns, DefaultMaxConns)
	setDefault(&c.SendTimeout, DefaultSendTimeout)
	setDefault(&c.ReceiveTimeout, DefaultReceiveTimeout)
	setDefault(&c.CloseTimeout, DefaultCloseTimeout)
	if c.Scope == nil {
		c.Scope = HonourLocal
	}
	if c.Receive == nil {
		c.Receive = FairShare{}
	}
	if c.Stability == nil {
		c.Stability = AsAsked
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

const (
	// minSlots lets the policy for slots leave some to local clients.
	minSlots = 8
	// payloadPart of the arena is the most that data in flight may take.
	payloadPart = 4
	// ioPart of the arena is the most that one READ or WRITE moves, so that a
	// connection's share of the payload limit always holds one WRITE.
	ioPart = 16
	// ioLimit is the most that one READ or WRITE moves, in bytes.
	ioLimit = 1 << 20
)

// headLimit is the size of the largest record without its payload.
const headLimit = sunrpc.MaxCallHeader + maxArgs

// ioMax returns the transfer size for a file system that can do fsMax bytes at
// once: whole pages, unless fsMax is less than one.
func (c *Config) ioMax(fsMax uint32) uint32 {
	n := min(int64(c.Arena.Total())<<alloc.PageShift/ioPart, ioLimit, int64(fsMax))
	if n >= alloc.PageSize {
		n &^= alloc.PageSize - 1
	}
	return uint32(n)
}
