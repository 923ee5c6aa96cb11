package billyfs_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"syscall"

	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-billy/v5/util"
	nfsclient "github.com/willscott/go-nfs-client/nfs"
	"github.com/willscott/go-nfs-client/nfs/rpc"
	nfshelper "github.com/willscott/go-nfs/helpers"

	"loopnfs/billyfs"
)

// A program that embeds go-nfs, with one line changed: the one that serves.
func ExampleServe() {
	fs := memfs.New()
	if err := util.WriteFile(fs, "hello.txt", []byte("hello"), 0o644); err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	handler := nfshelper.NewCachingHandler(nfshelper.NewNullAuthHandler(fs), 1024)
	served := make(chan error)
	go func() { served <- billyfs.Serve(l, handler) }() // was nfs.Serve(l, handler)

	data, err := read(l.Addr().String(), "hello.txt")
	fmt.Println(data, err)
	l.Close() // ends Serve
	<-served
	// Output: hello <nil>
}

// read returns what is in a file of the server at addr.
func read(addr, name string) (string, error) {
	client, err := rpc.DialTCP("tcp", addr, false)
	for errors.Is(err, syscall.EADDRINUSE) { // it takes a port at random
		client, err = rpc.DialTCP("tcp", addr, false)
	}
	if err != nil {
		return "", err
	}
	mount := nfsclient.Mount{Client: client}
	v, err := mount.Mount("/mount", rpc.NewAuthUnix("host", 0, 0).Auth())
	if err != nil {
		client.Close()
		return "", err
	}
	defer v.Close()
	f, err := v.Open(name)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(f)
	return string(data), err
}
