package pressure

import (
	"errors"
	"runtime"
	"sync/atomic"
	"time"
)

// interval is how often memory is looked at: starvation comes within a second.
const interval = 100 * time.Millisecond

// exhaustedFor is how long there must be nothing but the reserve before help is called.
const exhaustedFor = 2 * time.Second

// Source tells the state of memory. The methods are called by one goroutine and
// allocate nothing.
type Source interface {
	// Wait returns after d, or earlier if tasks have stalled for want of
	// memory, and reports whether they have.
	Wait(d time.Duration) (stalled bool)
	Read(s *Sample) error
	Close() error
}

// Stats counts what a watcher has seen.
type Stats struct {
	Short   bool   // now
	Entered uint64 // times that memory became short
	Failed  uint64 // samples that could not be read
}

// Watcher knows whether memory is short. Its methods may be called concurrently.
type Watcher struct {
	src    Source
	judge  judge
	sample Sample

	// onExhausted is called in the watcher's thread; since is when the present
	// exhaustion began, or help was called last, zero if there is none.
	onExhausted atomic.Pointer[func()]
	since       time.Time

	short           atomic.Bool
	spare           atomic.Int64
	entered, failed atomic.Uint64
	stop            atomic.Bool
	stopped         chan struct{}
	err             error // of closing the source; valid after stopped
}

// Start watches this host.
func Start() (*Watcher, error) {
	src, err := openProc("/proc")
	if err != nil {
		return nil, err
	}
	w, err := Watch(src, DefaultLimits())
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return w, nil
}

// ShortNow looks once whether this host is short of memory. It is if nobody can tell.
func ShortNow() bool {
	src, err := openProc("/proc")
	if err != nil {
		return true
	}
	defer src.Close()
	w := Watcher{judge: judge{limits: DefaultLimits()}}
	return src.Read(&w.sample) != nil || w.judge.step(time.Now(), w.sample, false)
}

// Watch watches src, which it closes in Stop. It fails if src cannot be read.
func Watch(src Source, limits Limits) (*Watcher, error) {
	w := &Watcher{src: src, judge: judge{limits: limits}, stopped: make(chan struct{})}
	if err := src.Read(&w.sample); err != nil {
		return nil, err
	}
	w.set(w.judge.step(time.Now(), w.sample, false))
	go w.run()
	return w, nil
}

// WhenExhausted has f called when nothing could be allocated for two seconds, and every
// two seconds for as long as that lasts. f runs in a thread of the watcher's own, and must
// not wait.
func (w *Watcher) WhenExhausted(f func()) { w.onExhausted.Store(&f) }

// Short reports whether memory is short.
func (w *Watcher) Short() bool { return w.short.Load() }

// Spare returns how many bytes can be taken before memory is short; less than 0
// if it is.
func (w *Watcher) Spare() int64 { return w.spare.Load() }

// Stats returns the counters.
func (w *Watcher) Stats() Stats {
	return Stats{Short: w.Short(), Entered: w.entered.Load(), Failed: w.failed.Load()}
}

// Stop ends the watcher, if there is one. Short keeps its last answer.
func (w *Watcher) Stop() error {
	if w == nil {
		return nil
	}
	w.stop.Store(true)
	<-w.stopped
	return w.err
}

func (w *Watcher) run() {
	runtime.LockOSThread() // nobody else may need it when it has to run
	defer runtime.UnlockOSThread()
	defer close(w.stopped)
	for !w.stop.Load() {
		w.look(w.src.Wait(interval))
	}
	w.err = w.src.Close()
}

// look takes one sample. One that cannot be read counts as a stall.
func (w *Watcher) look(stalled bool) {
	if w.src.Read(&w.sample) != nil {
		w.failed.Add(1)
		stalled = true
	}
	now := time.Now()
	w.set(w.judge.step(now, w.sample, stalled))
	w.callHelp(now)
}

// callHelp calls for help if memory has been exhausted for long.
func (w *Watcher) callHelp(now time.Time) {
	switch f := w.onExhausted.Load(); {
	case !w.sample.exhausted():
		w.since = time.Time{}
	case w.since.IsZero():
		w.since = now
	case f != nil && now.Sub(w.since) >= exhaustedFor:
		w.since = now
		(*f)()
	}
}

func (w *Watcher) set(short bool) {
	w.spare.Store(w.sample.Free() - w.judge.limits.enter(&w.sample))
	if short && !w.short.Load() {
		w.entered.Add(1)
	}
	w.short.Store(short)
}
