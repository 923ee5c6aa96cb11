package nfsserver

import (
	"log/slog"
	"sync"
	"time"
)

const (
	logBurst = 10          // lines at once
	logEvery = time.Second // a further one
)

// throttledLog passes on what strangers can provoke, at a bounded rate.
type throttledLog struct {
	log *slog.Logger

	mu      sync.Mutex
	left    int
	refill  time.Time
	dropped int
}

func newThrottledLog(l *slog.Logger) *throttledLog {
	return &throttledLog{log: l, left: logBurst}
}

// warn logs msg unless there was too much lately; then the next line that comes
// through says how many are missing.
func (t *throttledLog) warn(msg string, args ...any) {
	dropped, ok := t.take(time.Now())
	if !ok {
		return
	}
	if dropped > 0 {
		args = append(args, "suppressed", dropped)
	}
	t.log.Warn(msg, args...)
}

// take reports whether a line may be written, and how many were dropped before.
func (t *throttledLog) take(now time.Time) (dropped int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := int(now.Sub(t.refill) / logEvery); n > 0 {
		t.left, t.refill = min(t.left+n, logBurst), now
	}
	if t.left == 0 {
		t.dropped++
		return 0, false
	}
	t.left--
	dropped, t.dropped = t.dropped, 0
	return dropped, true
}
