package nfsclient

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
	"loopnfs/reclaim/writeback"
)

const (
	// dirBytes is the largest directory listing asked for at a time, and
	// dirBuffers how many are received at once.
	dirBytes   = 32 << 10
	dirBuffers = 4
)

// Client is a mounted export. It is a vfs.FS; all methods may be called
// concurrently.
type Client struct {
	cfg     Config
	cache   *pagecache.Cache
	arena   *alloc.Arena
	bdi     *writeback.BDI
	back    *pagecache.Backing
	flusher *writeback.Flusher
	t       *transport
	tab     *table
	scratch scratchPool
	dirBufs chan []byte
	started time.Time
	verf    vfs.Verifier // of this client, for whoever writes through it
	id      uint64       // random: inodes of others have the same numbers
	mounter identity

	// The completions of calls, made once: a method value is an allocation.
	onRead, onWrite, onCommit func(*slot) bool

	rpages, wpages int // of one READ and one WRITE
	maxSize        uint64
	aheadLimit     int64
	aheadPages     atomic.Int64
	noReaddirplus  atomic.Bool
	sillySeq       atomic.Uint64

	seq        atomic.Uint64 // orders the beginnings of calls
	congested  atomic.Bool
	wantAll    atomic.Bool
	commitKick chan struct{}
	worker     sync.WaitGroup
	series     sync.WaitGroup // toTheEnd
	closed     atomic.Bool

	// listMu guards which inodes have unstable pages, and which the commit
	// worker was asked for.
	listMu   sync.Mutex
	unstable inodeList
	wanted   inodeList
}

// Stats counts what a client did.
type Stats struct {
	Calls      uint64 // calls made
	Resent     uint64 // calls sent again after a reconnect
	Reconnects uint64
	Discarded  uint64 // replies that belong to no call
	Nodes      int    // inodes known now
	Connected  bool
	// Pages by state, now.
	Dirty, Writeback, Unstable int
	RSize, WSize               uint32 // bytes of one READ and one WRITE
}

// Mount mounts an export. ctx limits the attempt.
func Mount(ctx context.Context, cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	root, err := mountExport(ctx, &cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot mount %s:%s: %w", cfg.Addr, cfg.Export, err)
	}
	c := newClient(cfg)
	if err := c.connect(ctx, root); err != nil {
		return nil, fmt.Errorf("cannot mount %s:%s: %w", cfg.Addr, cfg.Export, err)
	}
	c.flusher = writeback.StartFlusher(c.bdi, flusherSide{c}, cfg.Graph, cfg.Flushers)
	c.worker.Go(c.runCommits)
	return c, nil
}

func newClient(cfg Config) *Client {
	c := &Client{
		cfg: cfg, cache: cfg.Cache, arena: cfg.Cache.Arena(), tab: newTable(),
		bdi:     cfg.Domain.NewBDI("nfs " + cfg.Addr + ":" + cfg.Export),
		dirBufs: make(chan []byte, dirBuffers), commitKick: make(chan struct{}, 1),
		started: cfg.Now(), mounter: identity{uid: cfg.UID, gid: cfg.GID},
	}
	c.onRead, c.onWrite, c.onCommit = c.readDone, c.writeDone, c.commitDone
	c.back = c.cache.NewBacking(c.bdi, releaseSide{c})
	c.unstable.at = func(i *inode) *inodeLink { return &i.unstable }
	c.wanted.at = func(i *inode) *inodeLink { return &i.wantCommit }
	rand.Read(c.verf[:])
	c.id = binary.BigEndian.Uint64(c.verf[:])
	for range dirBuffers {
		c.dirBufs <- make([]byte, dirBytes+replyBytes)
	}
	return c
}

// connect starts the transport, asks for the sizes, and makes the root.
func (c *Client) connect(ctx context.Context, root *nfs3.FileHandle) error {
	addr, err := resolve(ctx, c.cfg.Addr)
	if err != nil {
		return err
	}
	conn, err := dial(addr, 0, connectTimeout, make([]byte, recvBuffer), func(closer) {})
	if err != nil {
		return err
	}
	limit := min(MaxIOBytes, c.arena.Total()*alloc.PageSize/arenaShare)
	c.t = newTransport(transportConfig{
		id: c.id, addr: addr, slots: c.cfg.Slots, arena: c.arena, maxPages: limit >> alloc.PageShift,
		maxRecord: max(limit, dirBytes) + replyBytes + 1024, machine: []byte(c.cfg.Machine),
		wireScope: c.cfg.WireScope, graph: c.cfg.Graph, log: c.cfg.Logger, now: c.cfg.Now,
	})
	c.t.start(conn)
	if err := c.ask(ctx, root); err != nil {
		c.t.close()
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer from %s: %w", addr, ctx.Err())
		}
		return err
	}
	return nil
}

// ask makes the first calls: FSINFO, and GETATTR of the root.
func (c *Client) ask(ctx context.Context, root *nfs3.FileHandle) error {
	op := &vfs.Op{Scope: gfp.For(nil), Cred: vfs.Cred{UID: c.cfg.UID, GID: c.cfg.GID}, Cancel: ctx.Done()}
	s, err := c.begin(op, nfs3.ProcFSInfo)
	if err != nil {
		return err
	}
	args := nfs3.FSInfoArgs{Handle: *root}
	args.Encode(&s.enc)
	var res nfs3.FSInfoResult
	if _, err := c.call(op, s, 0, func(d *xdr.Decoder) error { return res.Decode(d) }); err != nil {
		return err
	}
	if err := nfs3.Errno(res.Status); err != nil {
		return fmt.Errorf("FSINFO: %w", err)
	}
	if err := c.setSizes(&res.Info); err != nil {
		return err
	}
	var attr vfs.Attr
	if err := c.getAttrOf(op, root, 0, &attr); err != nil {
		return fmt.Errorf("GETATTR of the root: %w", err)
	}
	ino := c.newInode(vfs.RootID, root, &attr)
	ino.refs = 1
	c.tab.last = vfs.RootID
	c.tab.byID[vfs.RootID], c.tab.byFH[*root] = ino, ino
	c.update(ino, &attr, c.seq.Add(1))
	return nil
}

func (c *Client) setSizes(info *nfs3.FSInfo) error {
	r, err := c.cfg.ioSize(c.cfg.RSize, info.RTPref, info.RTMax)
	if err != nil {
		return err
	}
	w, err := c.cfg.ioSize(c.cfg.WSize, info.WTPref, info.WTMax)
	if err != nil {
		return err
	}
	c.rpages, c.wpages = r>>alloc.PageShift, w>>alloc.PageShift
	c.scratch.size = max(c.rpages, c.wpages) + 1
	c.maxSize = info.MaxFileSize
	c.aheadLimit = int64(c.arena.Total() / readAheadShare)
	return nil
}

// Unmount writes everything back, commits it, unmounts and stops. If ctx ends
// first, what was not written is lost, and the error says how much. Nobody may
// use the client meanwhile.
func (c *Client) Unmount(ctx context.Context) error {
	if c.closed.Swap(true) {
		return nil
	}
	op := &vfs.Op{Scope: gfp.For(nil), Cancel: ctx.Done(), Cred: vfs.Cred{UID: c.cfg.UID, GID: c.cfg.GID}}
	err := c.syncAll(op)
	c.awaitSeries(ctx)
	c.unhideAll(ctx.Done())
	if n := c.bdi.Pages(); n > 0 {
		err = errors.Join(err, fmt.Errorf("nfsclient: %d pages were not written to %s", n, c.cfg.Addr))
	}
	c.t.close()
	c.flusher.Stop()
	c.worker.Wait()
	c.series.Wait()
	c.dropAll()
	return errors.Join(err, c.unmountExport(ctx))
}

// awaitSeries waits for those whose callers were killed.
func (c *Client) awaitSeries(ctx context.Context) {
	over := make(chan struct{})
	go func() {
		c.series.Wait()
		close(over)
	}()
	select {
	case <-over:
	case <-ctx.Done():
	}
}

// syncAll writes back and commits every file.
func (c *Client) syncAll(op *vfs.Op) error {
	var errs []error
	for _, ino := range c.inodes() {
		if ino.isFile() && ino.unwritten() {
			errs = append(errs, c.sync(op, ino))
		}
	}
	return errors.Join(errs...)
}

func (c *Client) inodes() []*inode {
	c.tab.mu.RLock()
	defer c.tab.mu.RUnlock()
	all := make([]*inode, 0, len(c.tab.byID))
	for _, ino := range c.tab.byID {
		all = append(all, ino)
	}
	return all
}

// dropAll gives every page back. Nothing is in flight any more, but a door may
// still give back what it had open: whoever takes an inode out of the table
// drops its pages.
func (c *Client) dropAll() {
	t := c.tab
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.byID))
	clear(t.byID)
	clear(t.byFH)
	t.mu.Unlock()
	for _, ino := range all {
		if ino.isFile() {
			ino.m.Truncate(0)
			ino.m.Close()
		}
	}
}

// BDI returns the device that the client's pages are accounted to.
func (c *Client) BDI() *writeback.BDI { return c.bdi }

// Stats returns the counters.
func (c *Client) Stats() Stats {
	c.t.mu.Lock()
	connected := c.t.conn != nil
	c.t.mu.Unlock()
	c.tab.mu.RLock()
	nodes := len(c.tab.byID)
	c.tab.mu.RUnlock()
	return Stats{
		Calls: c.t.calls.Load(), Resent: c.t.resent.Load(),
		Reconnects: c.t.reconnects.Load(), Discarded: c.t.discarded.Load(),
		Nodes: nodes, Connected: connected,
		Dirty: c.bdi.Nr(writeback.Dirty), Writeback: c.bdi.Nr(writeback.Writeback), Unstable: c.bdi.Nr(writeback.Unstable),
		RSize: uint32(c.rpages << alloc.PageShift), WSize: uint32(c.wpages << alloc.PageShift),
	}
}

// MaxIO returns the largest Read and Write, in bytes.
func (c *Client) MaxIO() uint32 { return uint32(max(c.rpages, c.wpages) << alloc.PageShift) }

// ticks returns the time since the mount, in nanoseconds, from 1.
func (c *Client) ticks() int64 { return int64(c.cfg.Now().Sub(c.started)) + 1 }

// now returns the time for local time stamps.
func (c *Client) now() vfs.Time { return vfs.TimeOf(c.cfg.Now()) }

var _ vfs.FS = (*Client)(nil)
