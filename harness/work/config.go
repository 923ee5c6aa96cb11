package work

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Mode says what a worker does.
type Mode string

const (
	// Blocks overwrites the blocks of one file per job, with an fsync after
	// every few, and reads back what was acknowledged.
	Blocks Mode = "blocks"
	// Stream overwrites a file per job from beginning to end, with an fsync
	// only after the last block.
	Stream Mode = "stream"
	// Files creates, lists and removes small files in shared directories.
	Files Mode = "files"
)

// Config says what a worker does; it crosses to the worker process as JSON.
type Config struct {
	Mode Mode
	// Dir is on the mount, Log outside of it.
	Dir, Log string
	Jobs     int // concurrent writers, 1 to 64
	// Blocks is the number of blocks of a file, or of files per job.
	Blocks int
	// Rounds is how often each block is written, at least once.
	Rounds int
	Seed   int64
}

// Validate reports the first thing wrong with c.
func (c *Config) Validate() error {
	switch {
	case c.Mode != Blocks && c.Mode != Stream && c.Mode != Files:
		return fmt.Errorf("work: unknown mode %q", c.Mode)
	case !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.Log):
		return errors.New("work: the directory and the log need absolute paths")
	case c.Jobs < 1 || c.Jobs > 64:
		return fmt.Errorf("work: %d jobs: want 1 to 64", c.Jobs)
	case c.Blocks < 1 || c.Rounds < 1:
		return errors.New("work: at least one block and one round")
	}
	return nil
}

// Progress is what a worker reports while it runs, as a line of JSON.
type Progress struct {
	Acked        int64 // operations acknowledged
	Bytes        int64 // bytes acknowledged
	Written      int64 // bytes accepted by write(2); of Stream
	MaxLatencyMs int64 // longest operation of a job; of Stream, the longest write(2)
}
