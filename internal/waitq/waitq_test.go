package waitq

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWakeBetweenPrepareAndWaitIsNotLost(t *testing.T) {
	var q Queue
	w := q.Prepare()
	q.Wake()
	if !w.Wait(nil) {
		t.Error("cancelled without a cancel channel")
	}
	q.Finish(w)
}

func TestAStaleWakeDoesNotReachTheNextUser(t *testing.T) {
	var q Queue
	w := q.Prepare()
	q.Wake()
	q.Finish(w)
	cancelled := make(chan struct{})
	close(cancelled)
	w = q.Prepare()
	defer q.Finish(w)
	select {
	case <-w.ch:
		t.Error("woken by a Wake from before Prepare")
	default:
	}
	if w.Wait(cancelled) {
		t.Error("Wait ignored its cancel channel")
	}
}

func TestEveryWaiterIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queue
		var open atomic.Bool
		var through atomic.Int32
		for range 50 {
			go func() {
				w := q.Prepare()
				for !open.Load() && w.Wait(nil) {
				}
				q.Finish(w)
				through.Add(1)
			}()
		}
		synctest.Wait()
		if q.Len() != 50 {
			t.Errorf("%d waiters, want 50", q.Len())
		}
		open.Store(true)
		q.Wake()
		synctest.Wait()
		if through.Load() != 50 || q.Len() != 0 {
			t.Errorf("%d got through, %d left waiting", through.Load(), q.Len())
		}
	})
}

func TestWaitForEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queue
		w := q.Prepare()
		defer q.Finish(w)
		start := time.Now()
		w.WaitFor(time.Second)
		w.WaitFor(time.Second)
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("waited %v, want 2 s", d)
		}
	})
}

func TestNoAllocationOnceWarm(t *testing.T) {
	var q Queue
	n := testing.AllocsPerRun(100, func() {
		w := q.Prepare()
		q.Wake()
		w.WaitFor(time.Hour)
		q.Finish(w)
	})
	if n != 0 {
		t.Errorf("%v allocations per wait", n)
	}
}
