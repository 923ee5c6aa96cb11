package nfsclient

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim/writeback"
)

// Limits of a Config.
const (
	MaxIOBytes = 1 << 20
	MinSlots   = 4
	MaxSlots   = 1024
	// arenaShare is the part of the arena that one call's data may take.
	arenaShare = 64
	// readAheadShare is the part of the arena that read-ahead may have in
	// flight.
	readAheadShare = 8
)

// Config says what to mount and how. Zero fields have the defaults named.
type Config struct {
	// Addr is the host:port of the NFS server, MountAddr that of its MOUNT
	// service (default: Addr). Names are resolved once.
	Addr, MountAddr string
	// Export is the path to mount.
	Export string

	// Cache holds the pages, Domain the dirty limit that they count towards.
	Cache  *pagecache.Cache
	Domain *writeback.Domain
	// Graph, if not nil, shows what the client waits for.
	Graph *waitfor.Graph
	// Logger, if not nil, is told when the server goes and comes back.
	Logger *slog.Logger

	// WSize and RSize are the bytes of one WRITE and one READ; 0: what the
	// server prefers. Never more than 1 MiB or a 64th of the arena.
	WSize, RSize uint32
	// Slots is the number of calls in flight, 4 to 1024 (default 64).
	Slots int
	// Flushers is the number of workers that write back (default 1).
	Flushers int
	// ReadAhead is the number of READs sent ahead of a sequential reader
	// (default 4); negative for none.
	ReadAhead int
	// AttrTimeout is how long attributes are trusted (default 1 s); negative
	// for not at all.
	AttrTimeout time.Duration

	// Release is the policy of ReleaseFolio (default Release2026{}).
	Release ReleasePolicy
	// WireScope says what of a scope is sent to the server; the mechanism
	// "scope-propagation" is gfp.Scope.Wire (default), NoWireScope is the
	// world without it.
	WireScope func(gfp.Scope) uint8

	// Machine is the machine name of AUTH_SYS (default: the host's name).
	Machine string
	// UID and GID are who mounts, and who writes back what has no writer.
	UID, GID uint32
	// Now is the clock (default time.Now).
	Now func() time.Time
}

// NoWireScope sends no scope to the server.
func NoWireScope(gfp.Scope) uint8 { return 0 }

// Validate reports the first thing wrong with c.
func (c *Config) Validate() error {
	switch {
	case c.Cache == nil || c.Domain == nil:
		return errors.New("nfsclient: Cache and Domain are needed")
	case c.Export == "":
		return errors.New("nfsclient: no export to mount")
	case len(c.Export) > nfs3.MaxMountPath:
		return fmt.Errorf("nfsclient: path of the export is longer than %d bytes", nfs3.MaxMountPath)
	case c.Slots != 0 && (c.Slots < MinSlots || c.Slots > MaxSlots):
		return fmt.Errorf("nfsclient: %d slots: want %d to %d", c.Slots, MinSlots, MaxSlots)
	case c.WSize != 0 && c.WSize < alloc.PageSize, c.RSize != 0 && c.RSize < alloc.PageSize:
		return fmt.Errorf("nfsclient: rsize %d, wsize %d: want at least %d", c.RSize, c.WSize, alloc.PageSize)
	case c.Flushers < 0 || c.Flushers > 64:
		return fmt.Errorf("nfsclient: %d flushers: want 1 to 64", c.Flushers)
	case c.ReadAhead > 64:
		return fmt.Errorf("nfsclient: read-ahead of %d calls: want at most 64", c.ReadAhead)
	}
	for _, a := range []string{c.Addr, c.MountAddr} {
		if _, _, err := net.SplitHostPort(a); err != nil && (a != "" || c.Addr == "") {
			return fmt.Errorf("nfsclient: address %q is not host:port: %w", a, err)
		}
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.MountAddr == "" {
		c.MountAddr = c.Addr
	}
	if c.Slots == 0 {
		c.Slots = 64
	}
	if c.Flushers == 0 {
		c.Flushers = 1
	}
	if c.ReadAhead == 0 {
		c.ReadAhead = 4
	}
	if c.AttrTimeout == 0 {
		c.AttrTimeout = time.Second
	}
	if c.Release == nil {
		c.Release = Release2026{}
	}
	if c.WireScope == nil {
		c.WireScope = gfp.Scope.Wire
	}
	if c.Machine == "" {
		c.Machine = hostname()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// ioSize returns the size of a transfer in bytes, whole pages: asked if not 0,
// otherwise pref of the server, never more than its max, 1 MiB, or the arena's
// share.
func (c *Config) ioSize(asked, pref, max uint32) (int, error) {
	n := asked
	if n == 0 {
		n = pref
	}
	if max != 0 && n > max || n == 0 {
		n = max
	}
	limit := min(MaxIOBytes, c.Cache.Arena().Total()*alloc.PageSize/arenaShare)
	pages := min(int(min(n, MaxIOBytes)), limit) >> alloc.PageShift
	if pages == 0 {
		return 0, fmt.Errorf("nfsclient: the server takes only %d bytes at a time, less than a page of %d", n, alloc.PageSize)
	}
	return pages << alloc.PageShift, nil
}

func hostname() string {
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}
