package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"loopnfs/alloc"
	"loopnfs/fusefs"
	"loopnfs/internal/hostguard"
	"loopnfs/internal/stack"
)

const (
	defaultMemory = 64 << 20
	// One of inodeShare bytes of --memory is for inodes: those that stay are a cache.
	inodeShare = 8
	// inodeBytes is what an inode takes, with its part in tables and in what the garbage
	// collector leaves lying about; maxInodes bounds what all of them pin in the kernel,
	// another 1.5 KiB each.
	inodeBytes = 1536
	maxInodes  = 1 << 17
	// goHeap is what the Go runtime may use besides the arena and inodes: requests in
	// flight, connections.
	goHeap = 24 << 20
	// storeInode and clientInode are what an inode takes, with its part in tables, and
	// half as much again: the garbage collector must not come near the limit, or it
	// runs all the time.
	storeInode, clientInode = 2048, 2048
	// perPage is what the records of one page of the arena take.
	perPage = 96
)

// shareOut divides the memory of a server between the arena, in whole pages, and inodes,
// of which files may have a descriptor. With a door the kernel refers to more.
func shareOut(memory int64, door bool, files int) (arena int64, inodes int) {
	each := int64(inodeBytes)
	if door {
		each = int64(fusefs.NodesFor(inodeBytes))
	}
	n := min(memory/inodeShare/each, maxInodes, int64(files))
	arena = max(memory-n*each, min(memory, alloc.MinBytes))
	return arena >> alloc.PageShift << alloc.PageShift, int(n)
}

// newMemory makes an arena and starts its managers; the rest of the process is
// kept small. The arena is touched and locked by alloc, in a process that is
// guarded. inodes is how many bytes inodes may take.
func newMemory(cfg stack.MemoryConfig, guard *hostguard.Guard, inodes int) (*stack.Memory, error) {
	cfg.Lock = guard != nil
	mem, err := stack.NewMemory(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(goHeap + int64(inodes) + int64(mem.Arena.Total())*perPage)
	if !mem.Arena.Locked() {
		guard.Miss(hostguard.Missing{
			What:   fmt.Sprintf("locked memory for data (%s)", formatSize(int64(mem.Arena.Total())<<alloc.PageShift)),
			Why:    errors.New("mlock failed"),
			Costs:  "the kernel may swap the cache out",
			Remedy: "run as root, give the process CAP_IPC_LOCK, or raise the limit (ulimit -l unlimited)",
		})
	}
	mem.Start()
	return mem, nil
}

// spareProcessors lets goroutines run although as many as there are processors are in
// system calls: the runtime would notice only some time later, and write-out, syncs and a
// FUSE door are system calls all the time. What a control group or the environment allows
// is left alone.
func spareProcessors() {
	n := runtime.NumCPU()
	if n < 4 && n == runtime.GOMAXPROCS(0) && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(min(2*n, 4))
	}
}
