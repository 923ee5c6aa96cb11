// Package waitq provides a wait queue in the manner of the kernel's
// wait_queue_head_t: wait for a condition that somebody else makes true, with
// cancellation and a time limit, without allocating once warm.
//
// The waiter queues itself first and looks at the condition second, so a wake
// between the two is not lost:
//
//	w := q.Prepare()
//	for !condition() && w.Wait(cancel) {
//	}
//	q.Finish(w)
//
// Lock order: Queue.mu is a leaf. Wake may be called under any lock.
package waitq

import (
	"sync"
	"sync/atomic"
	"time"
)

// Waiter is one queued task. It belongs to the task from Prepare to Finish.
type Waiter struct {
	ch    chan struct{} // holds one token after a wake
	timer *time.Timer
	pos   int
}

// Queue is a set of waiters. The zero value is an empty queue.
type Queue struct {
	n       atomic.Int32 // len(waiters), to make Wake of nobody free
	mu      sync.Mutex
	waiters []*Waiter
	idle    []*Waiter
}

// Prepare queues the caller: every later Wake is noticed.
func (q *Queue) Prepare() *Waiter {
	q.mu.Lock()
	defer q.mu.Unlock()
	var w *Waiter
	if n := len(q.idle); n > 0 {
		w, q.idle = q.idle[n-1], q.idle[:n-1]
	} else {
		w = &Waiter{ch: make(chan struct{}, 1)}
	}
	w.pos = len(q.waiters)
	q.waiters = append(q.waiters, w)
	q.n.Add(1)
	return w
}

// Finish takes the caller out of the queue.
func (q *Queue) Finish(w *Waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	last := q.waiters[len(q.waiters)-1]
	q.waiters[w.pos], last.pos = last, w.pos
	q.waiters = q.waiters[:len(q.waiters)-1]
	q.n.Add(-1)
	select {
	case <-w.ch:
	default:
	}
	q.idle = append(q.idle, w)
}

// Wake wakes every waiter. It never blocks.
func (q *Queue) Wake() {
	if q.n.Load() == 0 {
		return
	}
	q.mu.Lock()
	for _, w := range q.waiters {
		select {
		case w.ch <- struct{}{}:
		default:
		}
	}
	q.mu.Unlock()
}

// Len returns the number of waiters.
func (q *Queue) Len() int { return int(q.n.Load()) }

// Wait blocks until a Wake since Prepare or the last Wait. It returns false if
// cancel, which may be nil, was closed instead.
func (w *Waiter) Wait(cancel <-chan struct{}) bool {
	select {
	case <-w.ch:
		return true
	case <-cancel:
		return false
	}
}

// WaitFor is Wait for at most d; it returns when the time is over, too.
func (w *Waiter) WaitFor(d time.Duration) {
	if w.timer == nil {
		w.timer = time.NewTimer(d)
	} else {
		w.timer.Reset(d)
	}
	select {
	case <-w.ch:
	case <-w.timer.C:
	}
	w.timer.Stop()
}
