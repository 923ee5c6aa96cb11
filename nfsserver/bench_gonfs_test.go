package nfsserver

import (
	"errors"
	"net"
	"testing"

	"github.com/go-git/go-billy/v5/memfs"
	gonfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
)

// The server of github.com/willscott/go-nfs does the same calls on a file system
// in memory, for comparison.
func benchmarkGoNFS(b *testing.B, name string, size, window int) {
	gonfs.Log.SetLevel(gonfs.PanicLevel)
	fs := memfs.New()
	f, err := fs.Create("/file")
	check(b, err)
	_, err = f.Write(pattern(size))
	check(b, errors.Join(err, f.Close()))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(b, err)
	served := make(chan error, 1)
	go func() { served <- gonfs.Serve(l, helpers.NewCachingHandler(helpers.NewNullAuthHandler(fs), 1024)) }()
	b.Cleanup(func() { l.Close(); <-served })
	benchmarkAt(b, l.Addr().String(), name, size, window)
}

func BenchmarkGoNFSGetAttr(b *testing.B)   { benchmarkGoNFS(b, "GETATTR", 4096, 32) }
func BenchmarkGoNFSLookup(b *testing.B)    { benchmarkGoNFS(b, "LOOKUP", 4096, 32) }
func BenchmarkGoNFSRead256K(b *testing.B)  { benchmarkGoNFS(b, "READ", 256<<10, 16) }
func BenchmarkGoNFSWrite256K(b *testing.B) { benchmarkGoNFS(b, "WRITE", 256<<10, 16) }
