// Package peers lets tests use NFS clients that others wrote.
package peers

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// Libnfs runs one of the tools of libnfs-utils and returns its output. The test is
// skipped if it is not installed.
func Libnfs(t testing.TB, tool string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skip("libnfs-utils is not installed:", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", tool, strings.Join(args, " "), err, out, errs.Bytes())
	}
	return out
}

// LibnfsURL names path on the server at addr, which serves MOUNT on the same port.
func LibnfsURL(addr, path string) string {
	host, port, _ := net.SplitHostPort(addr)
	return fmt.Sprintf("nfs://%s%s?nfsport=%s&mountport=%s", host, path, port, port)
}

// Portmap is a portmapper on the address of a server, for clients that ask nobody else
// where NFS and MOUNT are: it answers every call with the server's port, which is what
// GETPORT returns. It ends with the test, which is skipped if it cannot be had.
func Portmap(t testing.TB, server string) {
	t.Helper()
	host, name, err := net.SplitHostPort(server)
	if err != nil {
		t.Fatal(err)
	}
	port, err := net.LookupPort("tcp", name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", host+":111")
	if err != nil {
		t.Skip("no portmapper can be run here:", err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			answer(nc, uint32(port))
		}
	})
}

func answer(nc net.Conn, port uint32) {
	defer nc.Close()
	for {
		call, err := rawnfs.ReadReply(nc)
		if err != nil || len(call) < 4 {
			return
		}
		var e xdr.Encoder
		mark := sunrpc.BeginRecord(&e)
		sunrpc.ReplySuccess(&e, binary.BigEndian.Uint32(call))
		e.Uint32(port)
		sunrpc.EndRecord(&e, mark, 0)
		if _, err := nc.Write(e.Buf); err != nil {
			return
		}
	}
}
