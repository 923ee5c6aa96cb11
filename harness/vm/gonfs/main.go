// A server that embeds go-nfs in the way its documentation shows, for comparison
// in the drills: a directory of the host, the null authentication, the caching
// handler.
package main

import (
	"flag"
	"log"
	"net"
	"os"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	nfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
)

// handles is how many file handles the caching handler keeps.
const handles = 1024

// changeable adds what the NFS server needs to change attributes.
type changeable struct {
	billy.Filesystem
	billy.Change
}

func main() {
	listen := flag.String("listen", "127.0.0.1:2049", "address")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: loopnfs-gonfs [-listen ADDRESS] DIRECTORY")
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	dir := osfs.New(flag.Arg(0))
	handler := helpers.NewNullAuthHandler(changeable{dir, change{flag.Arg(0)}})
	os.Stdout.WriteString("ready " + l.Addr().String() + "\n")
	log.Fatal(nfs.Serve(l, helpers.NewCachingHandler(handler, handles)))
}
