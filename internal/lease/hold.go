package lease

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Lease is one that is held. Its methods may be called concurrently. A nil one is of a
// disk that nobody else can reach: it is always valid.
type Lease struct {
	cfg  Config
	disk *disk // of the thread that renews, until that has ended

	until    atomic.Int64 // by CLOCK_BOOTTIME; 0 when it is lost
	epoch    uint64
	renewals atomic.Uint64
	slowest  atomic.Int64 // of a renewal, in ns

	lost     sync.Once
	stop     chan struct{}
	stopping sync.Once
	renewing sync.WaitGroup // and watching

	own Record // as disk
}

// Stats are figures of a lease.
type Stats struct {
	Epoch, Renewals uint64
	Slowest         time.Duration // of a renewal
}

// ErrLost is the error of a lease that was held, and may be another's now.
var ErrLost = errors.New("the lease is lost")

// hold begins to renew what was taken.
func (t *taking) hold() *Lease {
	l := &Lease{cfg: t.cfg, disk: t.disk, epoch: t.own.Epoch, own: t.own, stop: make(chan struct{})}
	l.until.Store(t.began + l.own.heeded())
	if t.own.How == WasExpired {
		l.cfg.Logger.Warn("the lease has expired and is taken", "lease", l.disk.path, "epoch", l.epoch,
			"before", l.own.PrevHost, "unrenewed", l.own.Watched)
	} else {
		l.cfg.Logger.Info("the lease is taken", "lease", l.disk.path, "epoch", l.epoch, "it", l.own.How)
	}
	l.renewing.Go(l.renew)
	l.renewing.Go(l.watch)
	return l
}

// Valid reports whether nobody else can have the lease now. It costs a look at the clock.
func (l *Lease) Valid() bool { return l == nil || bootNow() < l.until.Load() }

// Stats returns the figures so far.
func (l *Lease) Stats() Stats {
	return Stats{l.epoch, l.renewals.Load(), time.Duration(l.slowest.Load())}
}

// lose has the process end.
func (l *Lease) lose(why error) {
	l.until.Store(0)
	l.lost.Do(func() {
		l.cfg.Lost(fmt.Errorf("%w: %s: %w", ErrLost, l.disk.path, why))
	})
}

// watch ends a process whose lease was not renewed: the thread that renews it may wait
// for the disk.
func (l *Lease) watch() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-timer.C:
		}
		left := time.Duration(l.until.Load() - bootNow())
		if left <= 0 {
			l.lose(fmt.Errorf("it could not be renewed within %v: the disk does not answer, or this process stood still", time.Duration(l.own.heeded())))
			return
		}
		timer.Reset(min(left, l.cfg.Duration/retryPart)) // a suspended host has slept through it
	}
}

// renew writes the record again and again, on a thread of its own.
func (l *Lease) renew() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	timer := time.NewTimer(l.cfg.Duration / renewPart)
	defer timer.Stop()
	failed := false
	for {
		select {
		case <-l.stop:
			return
		case <-timer.C:
		}
		began := bootNow()
		err := l.renewOnce()
		l.slowest.Store(max(l.slowest.Load(), bootNow()-began))
		switch {
		case errors.Is(err, ErrLost):
			return
		case err != nil:
			if !failed {
				l.cfg.Logger.Warn("the lease cannot be renewed", "lease", l.disk.path, "error", err,
					"left", time.Duration(l.until.Load()-bootNow()))
			}
			timer.Reset(l.cfg.Duration / retryPart)
		default:
			l.renewals.Add(1)
			timer.Reset(max(l.cfg.Duration/renewPart-time.Duration(bootNow()-began), 0))
		}
		failed = err != nil
	}
}

// renewOnce renews the lease, if it is still ours. It allocates nothing unless it fails.
func (l *Lease) renewOnce() error {
	if err := l.disk.read(l.disk.in, 0); err != nil {
		return err
	}
	now, err := l.disk.numbers()
	if !l.mayReplace(&now, err) {
		if err == nil {
			now, _ = decode(l.disk.in)
			err = &HeldError{l.disk.path, now}
		}
		l.lose(err)
		return ErrLost
	}
	l.own.Renewal++
	l.own.Wall, l.own.Boot = time.Now().UnixNano(), bootNow()
	began := l.own.Boot
	if err := l.disk.write(0, &l.own); err != nil {
		return err
	}
	return l.extend(began)
}

// extend has the lease heeded from began on, if it was until now: else somebody else may
// have been faster, and has not been seen.
func (l *Lease) extend(began int64) error {
	for {
		until := l.until.Load()
		if bootNow() >= until {
			l.lose(errors.New("the disk took too long to renew it"))
			return ErrLost
		}
		if l.until.CompareAndSwap(until, began+l.own.heeded()) {
			return nil
		}
	}
}

// mayReplace reports whether a holder writes over what it finds: its own record, a claim,
// which came to nothing if this lease is valid, and what somebody before has sent to the
// disk and lost the lease meanwhile. Who finds nothing leaves it: it was cleared for others.
func (l *Lease) mayReplace(now *Record, err error) bool {
	if err != nil || now.State == Free {
		return false
	}
	if now.Holder == l.own.Holder {
		return true
	}
	if now.State == Claimed || now.Epoch < l.own.Epoch {
		l.cfg.Logger.Warn("somebody else has written to the lease, too late", "lease", l.disk.path,
			"state", now.State.String(), "host", now.Host, "pid", now.PID, "epoch", now.Epoch)
		return true
	}
	return false
}

// renewed waits until nobody renews the lease any more, as long as it is heeded.
func (l *Lease) renewed() bool {
	ended := make(chan struct{})
	go func() { l.renewing.Wait(); close(ended) }()
	select {
	case <-ended:
		return true
	case <-time.After(time.Duration(l.until.Load() - bootNow())):
		return false
	}
}

// inTime writes to the disk if the lease is valid.
func (l *Lease) inTime(write func() error) error {
	if !l.Valid() {
		return fmt.Errorf("%w: %s: it is not given back", ErrLost, l.cfg.Path)
	}
	if err := write(); err != nil {
		return fmt.Errorf("the lease %s is not given back: %w", l.disk.path, err)
	}
	return nil
}

// Release gives the lease back, once all that its holder had to write is on the disk. The
// next one need not wait. What is lost is not given back.
func (l *Lease) Release() error {
	if l == nil {
		return nil
	}
	l.stopping.Do(func() { close(l.stop) })
	if !l.renewed() || !l.Valid() {
		return fmt.Errorf("%w: %s: it is not given back", ErrLost, l.cfg.Path)
	}
	defer l.disk.close()
	now, err := l.disk.readRecord()
	if err != nil || !l.mayReplace(&now, nil) {
		return fmt.Errorf("the lease %s is not given back: %w", l.disk.path, errors.Join(err, &HeldError{l.disk.path, now}))
	}
	l.own.State = Released
	l.own.Renewal++
	l.own.Wall, l.own.Boot = time.Now().UnixNano(), bootNow()
	// Each write is begun in time, so at most one of them can come too late.
	if err := l.inTime(func() error { return l.disk.writeEvent(&l.own) }); err != nil {
		return err
	}
	l.own.Seq++
	if err := l.inTime(func() error { return l.disk.write(0, &l.own) }); err != nil {
		return err
	}
	l.until.Store(0)
	return nil
}
