// Command gofuse mounts a directory with go-fuse's loopback file system, as its example
// does, so that other FUSE mounts have something to be compared with.
//
//	gofuse [-passthrough] MOUNTPOINT DIR
package main

import (
	"flag"
	"log"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	passthrough := flag.Bool("passthrough", false, "have the kernel read and write the files of DIR by itself, from Linux 6.9 on")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("usage: gofuse [-passthrough] MOUNTPOINT DIR")
	}
	root, err := fs.NewLoopbackRoot(flag.Arg(1))
	if err != nil {
		log.Fatal(err)
	}
	second := time.Second
	opts := &fs.Options{AttrTimeout: &second, EntryTimeout: &second, NullPermissions: true}
	opts.FsName, opts.Name = flag.Arg(1), "loopback"
	if !*passthrough {
		opts.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	}
	server, err := fs.Mount(flag.Arg(0), root, opts)
	if err != nil {
		log.Fatal(err)
	}
	server.Wait()
}
