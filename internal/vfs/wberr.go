package vfs

import "sync"

// File is what an FS remembers for somebody who has a file open (struct file). It is the
// door's, which passes it from Open to Close and never looks into it.
type File struct {
	seen    uint64 // errors of write-back that Advance has told of
	refused uint64 // those that Refuse has
	opened  bool   // by WbErr.Open, which is not called for directories
}

// WbErr is what became of the data of one file that was written back: everybody who has the
// file open is told of an error, once (errseq_t, lib/errseq.c). A nil *File, and one
// that Open was not called for, is somebody who has not opened it: of those, the first one is
// told. The zero value has no error. It may be
// used concurrently.
type WbErr struct {
	mu   sync.Mutex
	n    uint64 // errors, ever
	told uint64 // of which somebody was told
	err  error  // the last
}

// Set says that data was lost.
func (e *WbErr) Set(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n++
	e.err = err
}

// Open says that f is open from now on: it is told of what comes, and of what nobody was
// told of yet (errseq_sample).
func (e *WbErr) Open(f *File) {
	if f == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	*f = File{seen: e.told, refused: e.told, opened: true}
}

// Count returns how many errors there were.
func (e *WbErr) Count() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n
}

// Advance is for fsync: it returns an error that f was not told of, and one that came after
// Count had returned since, whoever was told (errseq_check_and_advance).
func (e *WbErr) Advance(f *File, since uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := &e.told
	if f != nil && f.opened {
		seen = &f.seen
	}
	return e.tell(seen, min(*seen, since))
}

// Check is Advance for close(2), but f is told again by fsync: who closes may be a child that
// knows nothing of what was written (errseq_check).
func (e *WbErr) Check(f *File, since uint64) error {
	if f == nil {
		return e.Advance(f, since)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := f.seen
	return e.tell(&seen, min(seen, since))
}

// Refuse is for write(2), which is to fail rather than to take more data that will be lost:
// it returns an error that f was not told of in any way, and fsync tells of it again.
func (e *WbErr) Refuse(f *File) error {
	if f == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tell(&f.refused, max(f.refused, f.seen))
}

// tell returns the last error if there were more than after, and notes in seen that it was
// told. mu is held.
func (e *WbErr) tell(seen *uint64, after uint64) error {
	if e.n <= after {
		return nil
	}
	*seen, e.told = e.n, e.n
	return e.err
}
