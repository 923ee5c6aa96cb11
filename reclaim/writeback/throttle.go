package writeback

import "loopnfs/alloc/gfp"

// Load is the state a Throttle decides on, in pages.
type Load struct {
	Thresh, Background int // the limits of the domain
	Pages              int // what counts in the domain
	DevicePages        int // what of them belongs to the device written to
}

// FreeRun is the number of pages below which nobody is ever throttled
// (dirty_freerun_ceiling).
func (l Load) FreeRun() int { return (l.Thresh + l.Background) / 2 }

// Throttle decides whether a writer has to wait.
type Throttle interface {
	Exceeded(l Load, sc gfp.Scope) bool
}

// GlobalThrottle makes everybody wait when the domain is over its limit.
type GlobalThrottle struct{}

// Exceeded implements Throttle.
func (GlobalThrottle) Exceeded(l Load, _ gfp.Scope) bool { return l.Pages >= l.Thresh }

// LocalThrottle spares writers whose scope says LocalThrottle: they clean pages
// of another device of the same domain, so the only limit that may stop them is
// that of the device they write to (PF_LOCAL_THROTTLE). Its pages become clean
// without their help.
type LocalThrottle struct{}

// Exceeded implements Throttle.
func (LocalThrottle) Exceeded(l Load, sc gfp.Scope) bool {
	if sc.IsLocalThrottle() {
		return l.DevicePages >= l.FreeRun()
	}
	return l.Pages >= l.Thresh
}

// FairThrottle spares writers to a device that has little of what counts, for the one that has
// the rest may hang, or be slow (wb_thresh). All others are for the other Throttle.
type FairThrottle struct{ Throttle }

// share is the part of the limit that a device has whatever others do with the rest.
const share = 8

// Exceeded implements Throttle. What devices have above the limit is as much again, at most.
func (t FairThrottle) Exceeded(l Load, sc gfp.Scope) bool {
	fair := l.DevicePages < max(l.Thresh/share, 1) && l.Pages < 2*l.Thresh
	return !fair && t.Throttle.Exceeded(l, sc)
}

// Historical25 is what the kernel did from 2014 to 2020 (PF_LESS_THROTTLE):
// such writers may go a quarter over the limit. It is there for comparison.
type Historical25 struct{}

// Exceeded implements Throttle.
func (Historical25) Exceeded(l Load, sc gfp.Scope) bool {
	if sc.IsLocalThrottle() {
		l.Thresh += l.Thresh / 4
	}
	return l.Pages >= l.Thresh
}
