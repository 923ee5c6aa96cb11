package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// The flags of include/linux/sched.h that PR_SET_IO_FLUSHER sets.
	pfMemallocNoIO  = 0x00080000
	pfLocalThrottle = 0x00100000
	ioFlusher       = pfMemallocNoIO | pfLocalThrottle
)

// threadFlags looks at the flags of every thread of the server under load.
func (r *run) threadFlags() error {
	var all, without int
	for r.pause(500 * time.Millisecond) {
		n, m, err := countThreads(r.server.servingPID())
		if err != nil {
			return err
		}
		all, without = max(all, n), max(without, m)
	}
	r.note("%d threads, %d of them without PR_SET_IO_FLUSHER", all, without)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.server.servingPID()))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "VmLck") || strings.HasPrefix(line, "VmSwap") {
			r.note("%s", strings.Join(strings.Fields(line), " "))
		}
	}
	switch {
	case all == 0:
		return errors.New("the load ended before the threads could be looked at")
	case without > 0:
		return fmt.Errorf("%d of %d threads of the server can enter reclaim of the mount", without, all)
	}
	return nil
}

// countThreads returns how many threads a process has, and how many of them
// lack the flags.
func countThreads(pid int) (all, without int, err error) {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		return 0, 0, fmt.Errorf("no threads of process %d", pid)
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		flags, err := taskFlags(stat)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", path, err)
		}
		all++
		if flags&ioFlusher != ioFlusher {
			without++
		}
	}
	return all, without, nil
}

// taskFlags returns the flags (PF_*) in a /proc/PID/stat.
func taskFlags(stat []byte) (uint64, error) {
	_, _, rest, err := parseStat(stat)
	if err != nil {
		return 0, err
	}
	// state ppid pgrp session tty_nr tpgid flags
	words := strings.Fields(rest)
	if len(words) < 7 {
		return 0, errors.New("it has no flags")
	}
	return strconv.ParseUint(words[6], 10, 64)
}
