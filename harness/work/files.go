package work

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// sharedDirs is how many directories all jobs create their files in, and
	// keepFiles how many files of a job stay in each.
	sharedDirs = 2
	keepFiles  = 150
	fileBytes  = 1024
	listEvery  = 2 // creations
)

func (c *Config) filesDir(num int) string {
	return filepath.Join(c.Dir, fmt.Sprintf("dir-%02d", num%sharedDirs))
}

func (c *Config) fileName(job, num int) string {
	// Long names fill directory pages faster.
	return fmt.Sprintf("file-of-job-%03d-number-%06d-%0150d", job, num, 0)
}

// files creates files in directories that other jobs use too, lists them, and
// removes the oldest.
func (w *worker) files(ctx context.Context, job int) error {
	for d := range sharedDirs {
		if err := os.MkdirAll(w.cfg.filesDir(d), 0o755); err != nil {
			return err
		}
	}
	for n := 0; n < w.cfg.Blocks*w.cfg.Rounds && ctx.Err() == nil; n++ {
		if err := w.create(job, n); err != nil {
			return err
		}
		if old := n - sharedDirs*keepFiles; old >= 0 {
			if err := w.remove(job, old); err != nil {
				return err
			}
		}
		if n%listEvery == 0 {
			if err := w.list(job, n); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// create makes a small file; a successful close has made it stable.
func (w *worker) create(job, num int) error {
	start := time.Now()
	r := record{kind: 'c', job: job, num: num, version: 1}
	if err := w.journal.add(r); err != nil {
		return err
	}
	buf := make([]byte, fileBytes)
	fillPage(buf, w.cfg.Seed, job, num, 1)
	if err := os.WriteFile(filepath.Join(w.cfg.filesDir(num), w.cfg.fileName(job, num)), buf, 0o644); err != nil {
		return err
	}
	r.acked = true
	w.ack(start, 1, fileBytes)
	return w.journal.add(r)
}

func (w *worker) remove(job, num int) error {
	start := time.Now()
	r := record{kind: 'r', job: job, num: num, version: 1}
	if err := w.journal.add(r); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(w.cfg.filesDir(num), w.cfg.fileName(job, num))); err != nil {
		return err
	}
	r.acked = true
	w.ack(start, 1, 0)
	return w.journal.add(r)
}

// list reads the directory that file num, the job's latest, is in, and reports a
// file of this job that should be there and is not.
func (w *worker) list(job, num int) error {
	d, err := os.Open(w.cfg.filesDir(num))
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for i := num; i >= 0 && i > num-sharedDirs*keepFiles; i -= sharedDirs {
		if !slices.Contains(names, w.cfg.fileName(job, i)) {
			return fmt.Errorf("file %d is not in the listing of its directory, which has %d names", i, len(names))
		}
	}
	return nil
}
