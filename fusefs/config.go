package fusefs

import (
	"errors"
	"fmt"
	"log/slog"

	"loopnfs/alloc"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim/writeback"
)

// Limits and defaults of a StoreConfig.
const (
	MinIO            = alloc.PageSize
	MaxMaxIO         = 1 << 20
	DefaultFlushers  = 2
	DefaultMaxInodes = 8192
	DefaultMaxFiles  = 65536
	maxFlushers      = 64
	maxCalls         = 4096
	MinInodes        = 16
	// MaxReferenced is how many inodes a store has at most if all are referenced: by open
	// files behind a door, or by the kernel's dentries where it cannot be made to drop
	// them. It is also at most referencedShare times what it keeps.
	MaxReferenced   = 1 << 20
	referencedShare = 128

	// A listing has at most one of listingShare pages of the arena, and at
	// most maxListing; a change reads up to maxRelist again at once.
	listingShare = 8
	maxListing   = 16384
	maxRelist    = 4
	// racyNs is longer than a tick of the kernel's clock.
	racyNs = 20e6
	// An inode that cannot be written out is tried again after retryMin ns,
	// then after twice as long each time, up to retryMax.
	retryMin = 100e6
	retryMax = 1e9
	// maxRuns is how many runs of adjacent pages are written out together; moreAIO is how
	// many callers, beside the flushers, may have the device write more than one at once.
	maxRuns = 64
	moreAIO = 2
	// maxVain is how many inodes one call of WritePages looks at in vain.
	maxVain = 64
)

// StoreConfig says how to make a Store.
type StoreConfig struct {
	// Dir is the directory to serve.
	Dir string
	// Cache holds the file data; Domain limits how much of it may be dirty.
	Cache  *pagecache.Cache
	Domain *writeback.Domain
	// Graph shows what the store's own workers wait for; nil for none.
	Graph *waitfor.Graph
	// StateDir keeps the key of the file handles, and the table of them where
	// the file system has none, with mode 0600. It must outlive the process,
	// go where Dir goes, and lie outside of Dir.
	StateDir string
	// Epoch is a number that no other start with this StateDir has, for the write
	// verifier; 0 if there is none.
	Epoch uint32
	// MaxIO is the largest READ and WRITE, in bytes: a multiple of MinIO, up
	// to MaxMaxIO, which is the default. A small arena lowers it.
	MaxIO uint32
	// Logger gets what an operator should know; nil for slog.Default.
	Logger *slog.Logger
	// Flushers is the number of workers that write out; 0 for the default.
	Flushers int
	// Calls is how many calls are carried out at once: what these need on the
	// side is made ahead. More are possible; for them it is made when they
	// come.
	Calls int
	// MaxInodes is how many inodes stay in memory when nobody refers to them, each with
	// a descriptor: MinInodes or more, or 0 for the default.
	MaxInodes int
	// Holds, if not nil, reports whether the store may change the disk: another host may
	// have it otherwise. It is asked right before each change, which fails with EIO then.
	// It must not wait, nor allocate memory.
	Holds func() bool
	// Room bounds what the store brings into the kernel; nil for no bound.
	Room KernelRoom
	// Buffered writes out through the kernel's page cache, and starts the
	// kernel's own write-out at once: a world without the mechanism
	// "direct-io". By default O_DIRECT is used where the file system has it.
	Buffered bool
	// CopyWrites copies all that is written into pages of the store's own, which may have
	// to be reclaimed from others first; else whole pages that a WRITE brings are kept.
	CopyWrites bool
	// MaxFiles is how many descriptors stay open when nobody uses them, at
	// most half of RLIMIT_NOFILE; 0 for the default, or what MaxInodes wants.
	MaxFiles int
}

func (c *StoreConfig) setDefaults() {
	if c.MaxIO == 0 {
		c.MaxIO = MaxMaxIO
	}
	if c.Flushers == 0 {
		c.Flushers = DefaultFlushers
	}
	if c.MaxInodes == 0 {
		c.MaxInodes = DefaultMaxInodes
	}
	if c.MaxFiles == 0 {
		c.MaxFiles = max(DefaultMaxFiles, 2*c.MaxInodes)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

// Validate reports the first thing wrong with c, whose zero fields stand for
// the defaults.
func (c *StoreConfig) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("no directory to export is given")
	case c.StateDir == "":
		return errors.New("no state directory is given: the key of the file handles has to be kept somewhere")
	case c.Cache == nil:
		return errors.New("fusefs: no page cache")
	case c.Domain == nil:
		return errors.New("fusefs: no dirty limit")
	case c.MaxIO != 0 && (c.MaxIO%MinIO != 0 || c.MaxIO > MaxMaxIO):
		return fmt.Errorf("a largest READ and WRITE of %d bytes: want a multiple of %d, at most %d", c.MaxIO, MinIO, MaxMaxIO)
	case c.Flushers < 0 || c.Flushers > maxFlushers:
		return fmt.Errorf("%d flushers: want 1 to %d", c.Flushers, maxFlushers)
	case c.Calls < 0 || c.Calls > maxCalls:
		return fmt.Errorf("%d calls at once: want 0 to %d", c.Calls, maxCalls)
	case c.MaxInodes != 0 && c.MaxInodes < MinInodes:
		return fmt.Errorf("%d inodes in memory are too few: want at least %d", c.MaxInodes, MinInodes)
	case c.MaxFiles < 0:
		return fmt.Errorf("%d open files: want 1 or more", c.MaxFiles)
	}
	return nil
}
