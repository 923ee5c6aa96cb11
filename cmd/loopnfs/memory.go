package main

import (
	"log/slog"
	"runtime/debug"

	"loopnfs/alloc"
	"loopnfs/internal/stack"
)

const (
	defaultMemory = 64 << 20
	// goHeap is what the Go runtime may use besides the arena: requests in
	// flight, connections, inodes.
	goHeap = 24 << 20
	// perPage is what the records of one page of the arena take.
	perPage = 96
)

// newMemory makes an arena of the given size and starts its managers; the rest
// of the process is kept small.
func newMemory(size byteSize, log *slog.Logger) (*stack.Memory, error) {
	mem, err := stack.NewMemory(stack.DefaultMemory(int64(size)))
	if err != nil {
		return nil, usageError{err}
	}
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(goHeap + int64(mem.Arena.Total())*perPage)
	if !mem.Arena.Locked() {
		log.Warn("the memory is not locked, so the kernel may swap it out: raise the limit (ulimit -l) or run as root",
			"size", formatSize(int64(mem.Arena.Total())<<alloc.PageShift))
	}
	mem.Start()
	return mem, nil
}
