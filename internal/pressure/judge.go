package pressure

import "time"

// Sample is the state of memory at one time, in bytes.
type Sample struct {
	Total     int64 // MemTotal
	Available int64 // MemAvailable
	Unclean   int64 // Dirty, Writeback, NFS_Unstable: available only after somebody has stored it
	Unused    int64 // MemFree
	Reserve   int64 // vm.min_free_kbytes; 0 if it is not known
}

// Free returns what can be had at once.
func (s *Sample) Free() int64 { return max(0, s.Available-s.Unclean) }

// exhausted reports whether nothing can be allocated but from the reserve, whatever may
// be available: those who could free it may be looking for a page themselves. With what
// zones keep from each other, allocations fail before only the reserve is left.
func (s *Sample) exhausted() bool { return s.Unused < s.Reserve+s.Reserve/2 }

// Limits say when memory is short. Both levels are parts of Total, and at most
// so many bytes: on a large host a small part is plenty.
type Limits struct {
	// Enter is the part, in percent, below which memory is short, and
	// EnterMost the most that is.
	Enter     int
	EnterMost int64 // bytes
	// Leave is how many times as much there has to be before it is no longer
	// short, for as long as Hold.
	Leave int
	Hold  time.Duration
}

// DefaultLimits are early: writers can use up what is left within a second.
func DefaultLimits() Limits {
	return Limits{Enter: 15, EnterMost: 512 << 20, Leave: 2, Hold: 5 * time.Second}
}

// enter returns the level in bytes.
func (l *Limits) enter(s *Sample) int64 { return min(s.Total/100*int64(l.Enter), l.EnterMost) }

// judge decides. Invariant: while short, since is when memory was good last
// began, or zero if it is not good.
type judge struct {
	limits Limits
	short  bool
	since  time.Time
}

// step takes in the state at now, and whether tasks have stalled for memory
// since the last step, and returns whether memory is short.
func (j *judge) step(now time.Time, s Sample, stalled bool) bool {
	enter := j.limits.enter(&s)
	switch free := s.Free(); {
	case stalled || free < enter:
		j.short, j.since = true, time.Time{}
	case !j.short:
	case free < enter*int64(j.limits.Leave):
		j.since = time.Time{}
	case j.since.IsZero():
		j.since = now
	case now.Sub(j.since) >= j.limits.Hold:
		j.short = false
	}
	return j.short
}
