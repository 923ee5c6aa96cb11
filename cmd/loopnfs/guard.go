package main

import (
	"runtime"

	"loopnfs/fusefs"
	"loopnfs/internal/doctor"
	"loopnfs/internal/hostguard"
)

const (
	// runtimeThreads are those that the Go runtime has for itself, and some to
	// spare: the monitor, the garbage collector, the watcher of memory.
	runtimeThreads = 8
	// fuseThreads is how many FUSE requests block in the kernel at once, or
	// nearly so.
	fuseThreads = 16
)

// coldCode is what a process that serves does not run, or can wait for: parsing
// the command line, metrics, drills. This package is not: it ends the process.
var coldCode = []string{
	"loopnfs/harness", "github.com/BurntSushi/", "github.com/spf13/", "github.com/prometheus/", "google.golang.org/protobuf/",
	"net/http", "net/textproto", "net/url", "crypto", "vendor/golang.org/x/", "encoding/", "compress/",
	"text/", "regexp", "math/big", "mime", "html", "runtime/pprof", "go/", "hash/adler32", "hash/fnv", "flag.",
}

// guardConfig returns the protection of a process in which so many calls can be
// carried out at once.
func guardConfig(calls int) hostguard.Config {
	return hostguard.Config{Threads: calls + runtime.GOMAXPROCS(0) + runtimeThreads, Cold: coldCode}
}

// guardConfig returns the protection of the server.
func (o *serveOptions) guardConfig(exports int, keep *hostguard.Keep) hostguard.Config {
	calls := o.threads + exports*fusefs.DefaultFlushers
	if o.fuse != "" {
		calls += fuseThreads
	}
	cfg := guardConfig(calls)
	if !keep.Restarted() { // else the one before has seen to it
		cfg.KernelWaits = doctor.ThisHost().KernelMayWait()
	}
	return cfg
}
