package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// What the servers get that are short of memory: an arena that the file of the rows does
// not fit into by far, or a control group with little more than what they have locked.
const (
	smallArena = "16MiB"
	groupLimit = 112 << 20
)

// memoryGroup is a control group with a limit of memory.
type memoryGroup struct {
	dir   string
	procs string // who writes its process ID there is in it
}

// newMemoryGroup makes a group with a limit in bytes, in either version of control groups.
func newMemoryGroup(limit int64) (*memoryGroup, error) {
	parent, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		parent, file = "/sys/fs/cgroup", "memory.max"
	}
	dir, err := os.MkdirTemp(parent, "loopnfs-bench-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a control group for memory: %w", err)
	}
	g := &memoryGroup{dir: dir, procs: filepath.Join(dir, "cgroup.procs")}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0); err != nil {
		g.remove()
		return nil, fmt.Errorf("cannot limit the memory of a control group: %w", err)
	}
	return g, nil
}

// remove waits until the last process of the group is gone.
func (g *memoryGroup) remove() {
	var err error
	for range 100 {
		if err = os.Remove(g.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
}
