package writeback

import (
	"errors"
	"fmt"
	"sync/atomic"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/waitq"
)

// Counter says why a page cannot be freed at once (enum wb_stat_item).
type Counter int

// The counters of a BDI.
const (
	Dirty     Counter = iota // newer than the device
	Writeback                // on its way to the device
	Unstable                 // written to a server, not committed (NR_UNSTABLE_NFS)
	numCounters
)

// Config holds the limits of a domain.
type Config struct {
	// Pages is the memory the limits are a part of, and Dirtyable, if not
	// nil, how much of it can hold file data now, because it does or is free
	// (global_dirtyable_memory). What others hold cannot be cleaned.
	Pages     int
	Dirtyable func() int
	// DirtyRatio is the hard limit and BackgroundRatio the point where the
	// flushers start, in percent of that memory
	// (vm.dirty_ratio, vm.dirty_background_ratio);
	// 0 < BackgroundRatio < DirtyRatio <= 50.
	DirtyRatio, BackgroundRatio int
	// BackgroundPages, if not 0, is where the flushers start if that is earlier
	// (vm.dirty_background_bytes).
	BackgroundPages int
	Throttle        Throttle
}

// Validate reports the first thing wrong with c.
func (c *Config) Validate() error {
	switch {
	case c.Pages < 64:
		return fmt.Errorf("writeback: %d pages are too few", c.Pages)
	case c.BackgroundRatio <= 0 || c.BackgroundRatio >= c.DirtyRatio || c.DirtyRatio > 50:
		return fmt.Errorf("writeback: dirty ratio %d%% and background ratio %d%%: want 0 < background < dirty <= 50",
			c.DirtyRatio, c.BackgroundRatio)
	case c.BackgroundPages < 0:
		return fmt.Errorf("writeback: background limit of %d pages: want at least 0", c.BackgroundPages)
	case c.Throttle == nil:
		return errors.New("writeback: no throttle policy")
	}
	return nil
}

// Domain is the memory that a dirty limit is for (struct wb_domain).
type Domain struct {
	cfg       Config
	nr        atomic.Int64 // all pages of all devices that become clean sooner or later
	stuck     atomic.Int64 // those that cannot be written for now
	coming    atomic.Int64 // those that are about to become dirty
	throttled atomic.Uint64
	closed    atomic.Bool
	wq        waitq.Queue // throttled writers
	room      waitq.Queue // those who wait to reserve
}

// NewDomain returns a domain without devices.
func NewDomain(cfg Config) (*Domain, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Domain{cfg: cfg}, nil
}

// dirtyable returns how many pages can hold file data now.
func (d *Domain) dirtyable() int {
	if d.cfg.Dirtyable == nil {
		return d.cfg.Pages
	}
	return min(d.cfg.Pages, d.cfg.Dirtyable())
}

// minThresh lets somebody write however little memory is left, in pages.
const minThresh = 16

// Thresholds returns the hard and the background limit of this moment, in pages
// (global_dirty_limits). Pages that are stuck are not there to be dirty.
func (d *Domain) Thresholds() (thresh, background int) {
	pages := max(d.dirtyable()-d.Stuck(), 0)
	thresh = max(pages*d.cfg.DirtyRatio/100, minThresh)
	background = pages * d.cfg.BackgroundRatio / 100
	if d.cfg.BackgroundPages > 0 {
		background = min(background, d.cfg.BackgroundPages)
	}
	background = max(background, minThresh/2)
	return thresh, background
}

// Pages returns how many pages count towards the limit now.
func (d *Domain) Pages() int { return int(d.nr.Load()) }

// Stuck returns how many pages cannot be written for now. They do not count towards the
// limit, as nobody who waits for them to become clean would be served; who makes pages dirty
// bounds them.
func (d *Domain) Stuck() int { return int(d.stuck.Load()) }

// Throttled returns how many writers wait now, and how many ever waited.
func (d *Domain) Throttled() (now int, total uint64) {
	return d.wq.Len() + d.room.Len(), d.throttled.Load()
}

// Close lets every throttled writer go and throttles no more.
func (d *Domain) Close() {
	d.closed.Store(true)
	d.wake()
}

// wake has all who wait look again.
func (d *Domain) wake() {
	d.wq.Wake()
	d.room.Wake()
}

// BDI accounts for one backing device (struct bdi_writeback).
type BDI struct {
	dom      *Domain
	name     string
	nr       [numCounters]atomic.Int64
	all      atomic.Int64  // their sum, which a page that goes from one to another is always in
	streamed atomic.Int64  // pages of large writes since stream was poked
	kick     chan struct{} // wakes a flusher
	stream   chan struct{} // wakes a flusher, to write only
	written  atomic.Uint64
	stuck    atomic.Int64 // of all, those that cannot be written for now
}

// NewBDI adds a device to the domain.
func (d *Domain) NewBDI(name string) *BDI {
	return &BDI{dom: d, name: name, kick: make(chan struct{}, 1), stream: make(chan struct{}, 1)}
}

// Name returns the name given to NewBDI.
func (b *BDI) Name() string { return b.name }

// Counts is a number of pages for each counter.
type Counts [numCounters]int

// Sum returns how many pages they are together.
func (c *Counts) Sum() (sum int) {
	for _, n := range c {
		sum += n
	}
	return sum
}

// Add counts so many more pages, or fewer where by is negative, of a file that is stuck or not.
// Those who are throttled look again when there are fewer, or when some were written: what is
// then left may be a COMMIT.
func (b *BDI) Add(by *Counts, stuck bool) {
	for c, n := range by {
		if n != 0 {
			b.nr[c].Add(int64(n))
		}
	}
	sum := by.Sum()
	if sum != 0 {
		b.all.Add(int64(sum))
		if stuck {
			b.stuck.Add(int64(sum))
			b.dom.stuck.Add(int64(sum))
		} else if b.dom.nr.Add(int64(sum)) < 0 {
			panic("writeback: more pages became clean than were dirty")
		}
	}
	if sum < 0 || by[Writeback] < 0 {
		b.dom.wake()
	}
}

// Stick says that pages of the device that were counted cannot be written for now or, if
// it is negative, that so many can again. Nobody is made to wait for pages that do not
// become clean; their file system refuses more of them, with the reason.
func (b *BDI) Stick(pages int) {
	b.stuck.Add(int64(pages))
	b.dom.stuck.Add(int64(pages))
	b.dom.nr.Add(-int64(pages))
	if pages > 0 {
		b.dom.wake()
	}
}

// Nr returns the number of pages under c.
func (b *BDI) Nr(c Counter) int { return int(b.nr[c].Load()) }

// Pages returns the number of pages of this device that are not clean.
func (b *BDI) Pages() int { return int(b.all.Load()) }

// Stuck returns how many of them cannot be written for now.
func (b *BDI) Stuck() int { return int(b.stuck.Load()) }

// moving returns how many can.
func (b *BDI) moving() int { return int(b.all.Load() - b.stuck.Load()) }

// Reserve says that so many pages are about to become dirty, until Unreserve, and reports
// whether they may: together with all that are not clean, or about to be, they must leave half
// of the memory that can hold file data. So memory can be had, however many write at once, and
// whatever the disks do. A device that has little takes an eighth besides. Those whom others
// wait for (LocalThrottle) are not refused.
func (b *BDI) Reserve(sc gfp.Scope, pages int) bool {
	for {
		coming := b.dom.coming.Load()
		if !b.mayCome(sc, pages, coming) {
			b.WakeFlusher()
			return false
		}
		if b.dom.coming.CompareAndSwap(coming, coming+int64(pages)) {
			return true
		}
	}
}

// mayCome reports whether so many pages may become dirty besides those that are coming.
func (b *BDI) mayCome(sc gfp.Scope, pages int, coming int64) bool {
	d := b.dom
	total := int(coming) + pages + d.Pages() + d.Stuck()
	if total <= d.cfg.Pages/4 || total == pages || sc.IsLocalThrottle() || d.closed.Load() {
		return true
	}
	most := d.dirtyable()
	if b.moving()+pages <= most/16 {
		return total <= most/8*5
	}
	return total <= most/2
}

// Unreserve ends Reserve: the pages are dirty now, or are not after all.
func (b *BDI) Unreserve(pages int) {
	b.dom.coming.Add(-int64(pages))
	b.dom.room.Wake()
}

// AwaitReserve waits, if Reserve would refuse, until something has changed. It returns false
// when cancel is closed.
func (b *BDI) AwaitReserve(sc gfp.Scope, pages int, cancel <-chan struct{}) bool {
	d := b.dom
	w := d.room.Prepare()
	defer d.room.Finish(w)
	if b.mayCome(sc, pages, d.coming.Load()) {
		return true
	}
	d.throttled.Add(1)
	task := sc.Task()
	task.Wait("", "dirty pages to fall below half of the memory", 0, DirtyResource)
	defer task.Done()
	return w.Wait(cancel)
}

// DirtyResource is what a throttled writer waits for. Tasks that clean pages
// hold it while they do.
var DirtyResource = waitfor.Resource{Kind: waitfor.DirtyLimit, ID: 1}

// BalanceDirtyPages waits while there are too many pages that are not clean
// (balance_dirty_pages). It is called after making pages dirty, with no lock
// held, and returns early when cancel, which may be nil, is closed.
func (b *BDI) BalanceDirtyPages(sc gfp.Scope, cancel <-chan struct{}) {
	d := b.dom
	if !b.Exceeded(sc) {
		return
	}
	d.throttled.Add(1)
	task := sc.Task()
	task.Wait("", "dirty pages to fall below the limit", 0, DirtyResource)
	defer task.Done()
	w := d.wq.Prepare()
	defer d.wq.Finish(w)
	for b.Exceeded(sc) && w.Wait(cancel) {
	}
}

// Exceeded reports whether BalanceDirtyPages would wait. Above the background limit it
// has the flusher begin.
func (b *BDI) Exceeded(sc gfp.Scope) bool {
	d := b.dom
	l := Load{Pages: d.Pages(), DevicePages: b.moving()}
	l.Thresh, l.Background = d.Thresholds()
	if l.Pages > l.Background {
		b.WakeFlusher()
	}
	return !d.closed.Load() && d.cfg.Throttle.Exceeded(l, sc)
}

const (
	// largeWrite is from how many pages on a write is taken for a part of a stream.
	largeWrite = 16
	// minStream is how many pages of a stream come together at least before the flusher
	// is woken for them.
	minStream = 256
)

// Streamed tells of a write of so many pages. Above the background limit the flusher works
// anyway; for large writes it begins after an eighth of that, and asks for no COMMIT. Nothing
// would be gained if they waited, as such pages are seldom written twice, and much lost: who
// syncs them or commits them would find a device that had nothing to do so far. It never
// blocks.
func (b *BDI) Streamed(pages int) {
	if pages < largeWrite {
		return
	}
	_, background := b.dom.Thresholds()
	if b.streamed.Add(int64(pages)) >= int64(max(background/8, minStream)) {
		b.streamed.Store(0)
		poke(b.stream)
	}
}

// WakeFlusher asks the flusher of the device to write something. It never
// blocks.
func (b *BDI) WakeFlusher() { poke(b.kick) }

// poke leaves a word in c, unless there is one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
