package fusefs

import (
	"sync"

	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// inodeLock is the lock of one inode (i_rwsem). A task that has to block for it
// is shown in the wait-for graph; a free lock costs nothing but the note that it
// is held.
type inodeLock struct {
	mu  sync.RWMutex
	res waitfor.Resource
	dir bool
}

func (l *inodeLock) init(ino uint64, dir bool) {
	l.res = waitfor.Resource{Kind: waitfor.InodeLock, ID: ino}
	l.dir = dir
}

func (l *inodeLock) what() string {
	if l.dir {
		return "the lock of directory inode"
	}
	return "the lock of inode"
}

// Lock takes the lock exclusively; who waits is task, or what it is doing now.
func (l *inodeLock) Lock(task *waitfor.Task, who string) {
	if !l.mu.TryLock() {
		task.Wait(who, l.what(), l.res.ID, l.res)
		l.mu.Lock()
		task.Done()
	}
	task.Hold(l.res)
}

// TryLock takes the lock exclusively if it is free.
func (l *inodeLock) TryLock(task *waitfor.Task) bool {
	if !l.mu.TryLock() {
		return false
	}
	task.Hold(l.res)
	return true
}

func (l *inodeLock) Unlock(task *waitfor.Task) {
	task.Release(l.res)
	l.mu.Unlock()
}

// RLock takes the lock shared. No task takes it twice.
func (l *inodeLock) RLock(task *waitfor.Task) {
	if !l.mu.TryRLock() {
		task.Wait("", l.what(), l.res.ID, l.res)
		l.mu.RLock()
		task.Done()
	}
	task.Hold(l.res)
}

// LockFor takes the lock exclusively for op; false if op may not wait for it.
func (l *inodeLock) LockFor(op *vfs.Op) bool {
	if op.NoWait {
		return l.TryLock(op.Scope.Task()) || !op.MustWait()
	}
	l.Lock(op.Scope.Task(), "")
	return true
}

// TryRLock takes the lock shared if nobody has it exclusively, or waits to.
func (l *inodeLock) TryRLock(task *waitfor.Task) bool {
	if !l.mu.TryRLock() {
		return false
	}
	task.Hold(l.res)
	return true
}

func (l *inodeLock) RUnlock(task *waitfor.Task) {
	task.Release(l.res)
	l.mu.RUnlock()
}
