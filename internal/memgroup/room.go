package memgroup

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookEvery is how many files are brought in between two looks at the usage, which
	// cost 1 µs each.
	lookEvery = 32
	// perFile is what one file takes in the kernel, at most, bytes: an inode, its name,
	// and a part of what had to be read for it.
	perFile = 8 << 10
	// Who brings in a file waits below minFree, in bytes, and perFile for each call that
	// may be under way. The reclaimer is woken at twice as much, and has done enough at
	// four times as much.
	minFree = 4 << 20
	// leastFree is the least that this becomes where reclaim cannot get as much.
	leastFree = 1 << 20
	// patience is how long one call waits; despair how long when reclaim was in vain. It
	// is still a throttle then: what holds memory may be clean in a few seconds.
	patience, despair = time.Second, 50 * time.Millisecond
	// pause is between two looks of one who waits, settle how long after a reclaim the
	// kernel may need to count what was freed (RCU).
	pause, settle = time.Millisecond, 20 * time.Millisecond
)

// Stats counts what a Room has done.
type Stats struct {
	Free     int64 // bytes, at the last look: see Group.Free
	Reclaims uint64
	InVain   uint64 // reclaims that did not make room
	Waits    uint64
	Waited   time.Duration
}

// group is what a Room needs of a Group.
type group interface {
	Free(want int64) (int64, error)
	reclaim(n int64) error
	Close() error
}

// Room says whether there is room in the group for another file in the kernel, and makes
// room. Its methods may be called concurrently.
type Room struct {
	group group

	calls  atomic.Uint32 // of Enough
	short  atomic.Bool   // Enough is false
	vain   atomic.Bool   // the last reclaim was
	free   atomic.Int64  // at the last look
	enter  int64         // bytes: short below
	mark   atomic.Int64  // enter, or less if that cannot be had
	lookMu sync.Mutex

	// onExhausted is called in the reclaimer's thread.
	onExhausted atomic.Pointer[func()]

	wake   chan struct{}
	tid    atomic.Int32 // of the reclaimer while it reclaims, else 0
	stop   atomic.Bool
	wg     sync.WaitGroup
	closed error

	reclaims, inVain, waits, waited atomic.Uint64
}

// Start watches g, which must be one that can be reclaimed, for a process that carries
// out so many calls at once. The reclaimer has a thread of its own, in which prepare is
// called first: it must end there what keeps the thread's allocations out of file
// systems, since the kernel reclaims a group as its thread may. g is closed in Stop,
// or if this fails.
func Start(g *Group, calls int, prepare func() error) (*Room, error) {
	if err := g.CannotReclaim(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return start(g, calls, prepare)
}

func start(g group, calls int, prepare func() error) (*Room, error) {
	r := &Room{group: g, wake: make(chan struct{}, 1), enter: minFree + int64(calls)*perFile}
	r.mark.Store(r.enter)
	ready := make(chan error, 1)
	r.wg.Go(func() { r.run(prepare, ready) })
	if err := <-ready; err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

// Enough counts a file that is about to be brought in, and reports whether there is room
// for it. It waits for nothing but another look.
func (r *Room) Enough() bool {
	if r.calls.Add(1)%lookEvery == 0 {
		r.look()
	}
	return !r.short.Load()
}

// Wait waits until there is room, or for a second at most, and reports whether there is.
func (r *Room) Wait() bool {
	began := time.Now()
	defer func() {
		r.waits.Add(1)
		r.waited.Add(uint64(time.Since(began)))
	}()
	for {
		r.look()
		if !r.short.Load() {
			return true
		}
		limit := patience
		if r.vain.Load() {
			limit = despair
		}
		if time.Since(began) >= limit {
			return false
		}
		time.Sleep(pause)
	}
}

// WhenExhausted has f called after each reclaim that does not make the room that there
// should be: somebody has to give up memory that cannot be reclaimed. f must not wait.
func (r *Room) WhenExhausted(f func()) { r.onExhausted.Store(&f) }

// Spare returns how many bytes can be taken for good without a reclaim for it; less than
// 0 if none. A nil Room has all that there is.
func (r *Room) Spare() int64 {
	if r == nil {
		return Unlimited
	}
	r.look()
	return r.free.Load() - 4*r.enter
}

// Stats returns the counters. A nil Room has none.
func (r *Room) Stats() Stats {
	if r == nil {
		return Stats{}
	}
	return Stats{Free: r.free.Load(), Reclaims: r.reclaims.Load(), InVain: r.inVain.Load(),
		Waits: r.waits.Load(), Waited: time.Duration(r.waited.Load())}
}

// errStuck is what Stop leaves behind.
var errStuck = errors.New("the control group is still being reclaimed: the thread that does it stays")

// Stop ends the reclaimer, if there is one. There is always room afterwards. It waits for a
// second at most: the kernel may wait for what only the rest of this process can end.
func (r *Room) Stop() error {
	if r == nil {
		return nil
	}
	r.stop.Store(true)
	r.kick()
	ended := make(chan struct{})
	go func() { r.wg.Wait(); close(ended) }()
	for end := time.Now().Add(patience); ; {
		r.interrupt() // again, as it may have come just before the system call
		select {
		case <-ended:
			return r.closed
		case <-time.After(pause):
		}
		if time.Now().After(end) {
			return errStuck
		}
	}
}

// look reads how much is free, and wakes the reclaimer, or has it stop. Who looks while
// another does waits for that one: it may not be running, and what it saw be out of date.
func (r *Room) look() {
	r.lookMu.Lock()
	defer r.lookMu.Unlock()
	if r.stop.Load() {
		r.short.Store(false)
		return
	}
	mark := r.mark.Load()
	free, err := r.group.Free(4 * mark)
	if err != nil { // nobody can tell: as without a limit
		free = Unlimited
	}
	r.free.Store(free)
	r.short.Store(free < mark)
	switch {
	case free < 2*mark:
		r.kick()
	case free >= 4*mark:
		r.interrupt()
	}
}

// kick wakes the reclaimer.
func (r *Room) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// interrupt ends a reclaim that is under way: version 1 goes on while there is anything.
// The runtime sends itself this signal, too, and ignores it.
func (r *Room) interrupt() {
	if tid := r.tid.Load(); tid != 0 {
		_ = unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
	}
}

// run is the life of the reclaimer. Its thread is like no other, and ends with it: it is
// not unlocked.
func (r *Room) run(prepare func() error, ready chan<- error) {
	runtime.LockOSThread()
	ready <- prepare()
	for !r.stop.Load() { // looked at after drain, which may take what Stop has sent
		if <-r.wake; !r.stop.Load() {
			r.makeRoom()
		}
	}
	r.lookMu.Lock()
	defer r.lookMu.Unlock()
	r.short.Store(false)
	r.closed = r.group.Close()
}

// makeRoom reclaims once. What that leaves decides how much is tried to be kept free.
func (r *Room) makeRoom() {
	r.reclaims.Add(1)
	r.tid.Store(int32(unix.Gettid()))
	err := r.group.reclaim(max(4*r.enter-r.free.Load(), 0))
	r.tid.Store(0)
	free := r.settled()
	r.mark.Store(min(r.enter, max(free/4, leastFree)))
	r.vain.Store(err != nil || free < r.enter)
	if r.vain.Load() {
		r.inVain.Add(1)
		if f := r.onExhausted.Load(); f != nil {
			(*f)()
		}
		time.Sleep(despair) // looked at again later, not at once
	}
	r.drain()
}

// settled returns the most that is free after a reclaim, before others take it again.
func (r *Room) settled() (most int64) {
	for began := time.Now(); ; time.Sleep(pause) {
		r.look()
		most = max(most, r.free.Load())
		if most >= 4*r.enter || time.Since(began) >= settle {
			return most
		}
	}
}

// drain forgets who woke the reclaimer while it was at work, if there is room.
func (r *Room) drain() {
	r.look()
	if r.free.Load() < 2*r.mark.Load() {
		return
	}
	select {
	case <-r.wake:
	default:
	}
}
