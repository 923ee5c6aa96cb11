package main

import (
	"runtime"

	"loopnfs/fusefs"
	"loopnfs/internal/doctor"
	"loopnfs/internal/hostguard"
	"loopnfs/nfsserver"
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
	"net/http", "net/textproto", "net/url", "vendor/golang.org/x/", "encoding/", "compress/",
	// Of crypto all but what SHA-256 and HMAC need, which check file handles.
	"crypto/aes", "crypto/cipher", "crypto/des", "crypto/dsa", "crypto/ecdh", "crypto/ecdsa", "crypto/ed25519", "crypto/elliptic",
	"crypto/hkdf", "crypto/hpke", "crypto/md5", "crypto/mlkem", "crypto/rc4", "crypto/rsa", "crypto/sha1", "crypto/sha3", "crypto/sha512",
	"crypto/tls", "crypto/x509", "crypto/internal/fips140/aes", "crypto/internal/fips140/bigmod", "crypto/internal/fips140/ec",
	"crypto/internal/fips140/ed", "crypto/internal/fips140/hkdf", "crypto/internal/fips140/ml", "crypto/internal/fips140/nistec",
	"crypto/internal/fips140/pbkdf2", "crypto/internal/fips140/rsa", "crypto/internal/fips140/sha3", "crypto/internal/fips140/sha512",
	"crypto/internal/fips140/ssh", "crypto/internal/fips140/tls", "crypto/internal/hpke",
	"text/", "regexp", "math/big", "mime", "html", "runtime/pprof", "go/", "hash/adler32", "hash/fnv", "flag.",
}

// guardConfig returns the protection of a process in which so many calls can be
// carried out at once.
func guardConfig(calls int) hostguard.Config {
	return hostguard.Config{Threads: calls + runtime.GOMAXPROCS(0) + runtimeThreads, Cold: coldCode}
}

// guardConfig returns the protection of the server.
func (o *serveOptions) guardConfig(exports int, keep *hostguard.Keep) hostguard.Config {
	calls := o.threads + nfsserver.MaxLate + exports*fusefs.DefaultFlushers
	if o.fuse != "" {
		calls += fuseThreads
	}
	cfg := guardConfig(calls)
	if !keep.Restarted() { // else the one before has seen to it
		cfg.KernelWaits = doctor.ThisHost().KernelMayWait()
	}
	return cfg
}
