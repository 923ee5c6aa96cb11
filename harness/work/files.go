package work

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// sharedDirs is how many directories all jobs create their files in.
	sharedDirs = 2
	fileBytes  = 1024
	listEvery  = 8 // creations
	removeLag  = 5 // every fifth file is removed again
)

func (c *Config) filesDir(job int) string {
	return filepath.Join(c.Dir, fmt.Sprintf("dir-%d", job%sharedDirs))
}

func (c *Config) fileName(job, num int) string {
	// Long names fill directory pages faster.
	return fmt.Sprintf("file-of-job-%03d-number-%06d-%0150d", job, num, 0)
}

// files creates files in a directory that other jobs use too, lists it, and
// removes some again.
func (w *worker) files(ctx context.Context, job int) error {
	dir := w.cfg.filesDir(job)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	live := map[string]bool{}
	for n := 0; n < w.cfg.Blocks*w.cfg.Rounds && ctx.Err() == nil; n++ {
		if err := w.create(dir, job, n); err != nil {
			return err
		}
		live[w.cfg.fileName(job, n)] = true
		if n%removeLag == removeLag-1 {
			if err := w.remove(dir, job, n-removeLag/2); err != nil {
				return err
			}
			delete(live, w.cfg.fileName(job, n-removeLag/2))
		}
		if n%listEvery == 0 {
			if err := list(dir, live); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// create makes a small file; a successful close has made it stable.
func (w *worker) create(dir string, job, num int) error {
	start := time.Now()
	r := record{kind: 'c', job: job, num: num, version: 1}
	if err := w.journal.add(r); err != nil {
		return err
	}
	buf := make([]byte, fileBytes)
	fillPage(buf, w.cfg.Seed, job, num, 1)
	if err := os.WriteFile(filepath.Join(dir, w.cfg.fileName(job, num)), buf, 0o644); err != nil {
		return err
	}
	r.acked = true
	w.ack(start, 1, fileBytes)
	return w.journal.add(r)
}

func (w *worker) remove(dir string, job, num int) error {
	start := time.Now()
	r := record{kind: 'r', job: job, num: num, version: 1}
	if err := w.journal.add(r); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, w.cfg.fileName(job, num))); err != nil {
		return err
	}
	r.acked = true
	w.ack(start, 1, 0)
	return w.journal.add(r)
}

// list reads a directory and reports a name of live that is not there.
func list(dir string, live map[string]bool) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	seen := 0
	for _, n := range names {
		if live[n] {
			seen++
		}
	}
	if seen != len(live) {
		return fmt.Errorf("listing of %s has %d of this job's %d files", dir, seen, len(live))
	}
	return nil
}
