package lease

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Durations of a lease.
const (
	DefaultDuration = 5 * time.Second
	MinDuration     = 200 * time.Millisecond
	MaxDuration     = 5 * time.Minute

	// settlePart of the duration of the record that is replaced is how long whoever takes
	// a lease waits to see whether somebody else does; the part of a free record is that
	// of the default. The decision and the write that follows may take half of that.
	settlePart = 10
	// holdPart of its duration a lease is heeded by its holder: others, who wait for all
	// of it, come later, whatever is on its way to the disk.
	holdPart, holdOf = 3, 4
	// renewPart of its duration is between renewals, retryPart after one that failed.
	renewPart, retryPart = 4, 16
	// maxSlow is how many writes in a row may be too slow to take a lease.
	maxSlow = 5
)

// Config says how to take a lease.
type Config struct {
	// Path is a file, which is made if it is not there, or a block device.
	Path string
	// Duration is for how long nobody else may take it after a renewal; the same on all
	// hosts, or the longest counts. It is rounded to milliseconds.
	Duration time.Duration
	// Lost is called once, by a goroutine of its own, when the lease may not be relied
	// upon any more: the process has to end without writing. Nothing of the lease is
	// waited for then.
	Lost func(error)

	Logger *slog.Logger // nil: slog.Default

	late func() // of the disk
}

func (c *Config) validate() error {
	if c.Duration == 0 {
		c.Duration = DefaultDuration
	}
	if c.Duration = c.Duration.Round(time.Millisecond); c.Duration < MinDuration || c.Duration > MaxDuration {
		return fmt.Errorf("lease of %v: give %v to %v", c.Duration, MinDuration, MaxDuration)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// HeldError is the error of taking what somebody else has.
type HeldError struct {
	Path string
	Record
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("the lease %s is %v by process %d on %s (epoch %d), which serves this disk: "+
		"stop the server there, or wait until that host is fenced; loopnfs lease show %s tells more",
		e.Path, e.State, e.PID, e.Host, e.Epoch, e.Path)
}

// bootNow returns CLOCK_BOOTTIME, which goes on in a suspended host, in nanoseconds.
func bootNow() int64 {
	var ts unix.Timespec
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0) // it cannot fail, nor wait
	return ts.Nano()
}

// taking is a lease that is not held yet.
type taking struct {
	*disk
	cfg Config
	own Record
	// began is when the record was about to be written, looked when it was about to be read
	// and seen that nobody else has it.
	began, looked int64
}

// Take takes the lease, which it waits for if it cannot know that its holder is gone. A
// *HeldError says who has it.
func Take(ctx context.Context, cfg Config) (*Lease, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	d, err := openDisk(cfg.Path, unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	d.late = cfg.late
	t := &taking{disk: d, cfg: cfg}
	if err := t.take(ctx); err != nil {
		d.close()
		var held *HeldError
		if errors.As(err, &held) {
			return nil, err
		}
		return nil, fmt.Errorf("lease %s: %w", cfg.Path, err)
	}
	return t.hold(), nil
}

func (t *taking) take(ctx context.Context) error {
	var err error
	if t.own.Process, err = thisProcess(); err != nil {
		return fmt.Errorf("cannot say who is to hold it: %w; mount /proc", err)
	}
	if _, err := rand.Read(t.own.Holder[:]); err != nil {
		return err
	}
	for slow := 1; ; {
		old, err := t.takeable(ctx)
		if err != nil {
			return err
		}
		err = t.claim(ctx, old)
		var held *HeldError
		if errors.As(err, &held) && held.Epoch <= old.Epoch {
			continue // a late write of the holder before
		}
		if err != nil {
			return err
		}
		if err = t.confirm(&old); !errors.Is(err, errSlow) || slow == maxSlow {
			return err
		}
		slow++
		t.cfg.Logger.Warn("the lease is taken again", "lease", t.path, "error", err)
	}
}

// errSlow is returned for a lease that was written too late to rely on.
var errSlow = errors.New("the disk is too slow: give a longer --lease-duration, on all hosts")

// takeable returns the record that may be replaced; it decides how. The record is read
// before the events: who has the lease has had an event before its record. What comes after
// is seen by claim, as no two writes of a record are the same.
func (t *taking) takeable(ctx context.Context) (old Record, err error) {
	if old, err = t.readRecord(); err != nil {
		return old, t.foreign(err)
	}
	events, err := t.readEvents()
	if err != nil {
		return old, t.foreign(err)
	}
	last := newest(events)
	// Wiped, or written too late, by who had lost it or was too slow to take it: somebody else
	// may have it, who will write over that.
	outdated := old.Epoch < last.Epoch || old.Epoch == last.Epoch && old.Holder != last.Holder
	switch {
	case outdated:
		old.Epoch, old.Seq, old.Duration = last.Epoch, last.Seq+1, max(old.Duration, last.Duration)
	case old.State == Free:
		t.own.How = WasFree
		return old, nil
	case old.State == Released:
		t.own.How = WasReleased
		return old, nil
	case old.isDead(&t.own.Process):
		t.own.How = WasDead
		return old, nil
	}
	return t.watch(ctx, old)
}

// newest returns the last of the events of a ring.
func newest(events []Record) (last Record) {
	for _, e := range events {
		if e.Epoch > last.Epoch || e.Epoch == last.Epoch && e.Seq > last.Seq {
			last = e
		}
	}
	return last
}

// foreign says what to do about a disk that cannot be read as a lease.
func (t *taking) foreign(err error) error {
	switch err {
	case errForeign:
		return fmt.Errorf("%w: name another file or partition, or clear this one, if nobody needs it: dd if=/dev/zero of=%s bs=4096 count=%d conv=notrunc",
			err, t.path, 1+Events)
	case errDamaged:
		return fmt.Errorf("%w, and does not say who holds it: stop all servers of this disk, then dd if=/dev/zero of=%s bs=4096 count=1 conv=notrunc",
			err, t.path)
	}
	return err
}

// watch waits until who has written old, or who has the lease whatever that says, is known
// not to renew it.
func (t *taking) watch(ctx context.Context, old Record) (Record, error) {
	since := bootNow()
	if old.State == Claimed || old.State == Held {
		t.cfg.Logger.Info("the lease is "+old.State.String()+": it is taken if it is not renewed", "lease", t.path,
			"host", old.Host, "pid", old.PID, "epoch", old.Epoch, "wait", old.Duration)
	}
	for {
		if err := pause(ctx, old.Duration/settlePart); err != nil {
			return old, err
		}
		now, err := t.readRecord()
		if err != nil {
			return old, t.foreign(err)
		}
		watched := time.Duration(bootNow() - since)
		switch {
		case now.State == Released && !now.same(&old):
			return t.released(now)
		case now.State != old.State || now.Holder != old.Holder || now.Renewal != old.Renewal:
			return now, &HeldError{t.path, now}
		case watched >= old.Duration:
			t.own.How, t.own.Watched = WasExpired, watched
			return old, nil
		}
	}
}

// released returns now, which has come to be released, unless that was written too late:
// when somebody else had the lease already.
func (t *taking) released(now Record) (Record, error) {
	events, err := t.readEvents()
	if err != nil {
		return now, t.foreign(err)
	}
	if last := newest(events); last.Epoch > now.Epoch {
		return now, &HeldError{t.path, last}
	}
	t.own.How = WasReleased
	return now, nil
}

// pause waits for d, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// settleTime is how long who replaces r waits for others who do.
func settleTime(r *Record) time.Duration {
	return r.contended() / settlePart
}

// contended is the duration by which all those go who replace r.
func (r *Record) contended() time.Duration { return cmp.Or(r.Duration, DefaultDuration) }

// claim replaces old by a claim of ours, and returns when nobody else can have done so
// and not be seen.
//
// Whoever replaces a record does so within half of the settle time of having read it, or
// knows that it was too slow. So of two who do, the second write comes at most so long
// after the first: who was first looks again when both are there, and sees the other's.
// Who was too slow may have written over a lease that another one has meanwhile. That is
// renewed within its duration, and there is an event of it.
func (t *taking) claim(ctx context.Context, old Record) error {
	settle := settleTime(&old)
	t.own.State, t.own.Epoch, t.own.Seq = Claimed, old.Epoch+1, old.Seq
	if old.State == Claimed || old.State == Held {
		t.own.Seq++ // its holder may write an event yet, which must not take the place of ours
	}
	t.own.Duration = max(t.cfg.Duration, old.contended())
	t.own.PrevEpoch, t.own.PrevRenewal, t.own.PrevHost = old.Epoch, old.Renewal, old.Host
	for range maxSlow {
		read := bootNow()
		now, err := t.readRecord()
		if err != nil {
			return t.foreign(err)
		}
		if !now.same(&old) && now.Holder != t.own.Holder {
			return &HeldError{t.path, now}
		}
		t.stamp()
		t.began = bootNow()
		if err := t.write(0, &t.own); err != nil {
			return err
		}
		if took := time.Duration(bootNow() - read); took > settle/2 {
			t.cfg.Logger.Warn("the disk is slow: the lease is claimed again", "lease", t.path, "took", took, "limit", settle/2)
			if err := t.outwait(ctx, &old); err != nil {
				return err
			}
			continue
		}
		if err := pause(ctx, settle); err != nil {
			return err
		}
		t.looked = bootNow()
		if now, err = t.readRecord(); err != nil {
			return t.foreign(err)
		}
		if !now.same(&t.own) {
			return &HeldError{t.path, now}
		}
		return t.overtaken()
	}
	return fmt.Errorf("%w: no write within %v in %d tries", errSlow, settle/2, maxSlow)
}

// outwait waits until nobody else can have taken the lease before a claim of ours that was
// too slow.
func (t *taking) outwait(ctx context.Context, old *Record) error {
	if err := pause(ctx, old.contended()); err != nil {
		return err
	}
	return t.overtaken()
}

// overtaken returns an error if somebody else has taken the lease since we began to.
func (t *taking) overtaken() error {
	events, err := t.readEvents()
	for _, e := range events {
		if e.Epoch >= t.own.Epoch && e.Holder != t.own.Holder {
			return &HeldError{t.path, e}
		}
	}
	return err
}

// same reports whether r and o are one writing of one holder.
func (r *Record) same(o *Record) bool {
	if r.State == Free || o.State == Free {
		return r.State == o.State
	}
	return r.State == o.State && r.Holder == o.Holder && r.Renewal == o.Renewal
}

// stamp says that what is written is a new writing, and when.
func (t *taking) stamp() {
	t.own.Renewal++
	t.own.Wall, t.own.Boot = time.Now().UnixNano(), bootNow()
}

// confirm makes the claim, which nobody else has replaced, a lease, with an event.
func (t *taking) confirm(old *Record) error {
	t.own.State, t.own.Duration = Held, t.cfg.Duration
	t.stamp()
	t.own.TakenWall, t.own.TakenBoot = t.own.Wall, t.own.Boot
	if err := t.writeEvent(&t.own); err != nil {
		return err
	}
	if err := t.inTime(old); err != nil {
		return err
	}
	t.own.Seq++
	t.began = bootNow()
	if err := t.write(0, &t.own); err != nil {
		return err
	}
	// Others may have seen the record of before, written once more and too late over our claim.
	// What they read then, and write now, is no older than that, and they look for our event.
	return t.inTime(old)
}

// inTime returns an error if so much time has gone by since the claim was looked at that
// somebody else may have replaced it.
func (t *taking) inTime(old *Record) error {
	if took, limit := time.Duration(bootNow()-t.looked), settleTime(old)/2; took > limit {
		return fmt.Errorf("%w: it took %v to write it, and may take %v", errSlow, took, limit)
	}
	return nil
}

// heeded is for how long after a write its holder relies on it, in ns.
func (r *Record) heeded() int64 { return int64(r.Duration) * holdPart / holdOf }
