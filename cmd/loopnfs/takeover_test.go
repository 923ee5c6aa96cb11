package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// lockClient is a host at an address of its own that has locks: its portmapper sends
// everybody to itself, and it hears when its server has started.
type lockClient struct {
	t     *testing.T
	addr  string
	heard chan uint32 // states
}

func startLockClient(t *testing.T, addr string) *lockClient {
	l, err := net.Listen("tcp", addr+":111")
	if err != nil {
		t.Skip("no port for a portmapper:", err)
	}
	t.Cleanup(func() { l.Close() })
	c := &lockClient{t, addr, make(chan uint32, 10)}
	go func() {
		for nc, err := l.Accept(); err == nil; nc, err = l.Accept() {
			go c.serve(nc)
		}
	}()
	return c
}

func (c *lockClient) serve(nc net.Conn) {
	defer nc.Close()
	for {
		var mark [4]byte
		if _, err := io.ReadFull(nc, mark[:]); err != nil {
			return
		}
		m := xdr.NewDecoder(mark[:])
		rec := make([]byte, m.Uint32()&^(1<<31))
		if _, err := io.ReadFull(nc, rec); err != nil {
			return
		}
		d := xdr.NewDecoder(rec)
		var call sunrpc.Call
		if err := sunrpc.DecodeCall(&d, &call); err != nil {
			return
		}
		var e xdr.Encoder
		at := sunrpc.BeginRecord(&e)
		sunrpc.ReplySuccess(&e, call.XID)
		switch {
		case call.Prog == nlm4.StatusProgram:
			var args nlm4.NotifyArgs
			if args.Decode(&d) == nil {
				c.heard <- args.State
			}
		default: // GETPORT
			e.Uint32(111)
		}
		sunrpc.EndRecord(&e, at, 0)
		if _, err := nc.Write(e.Buf); err != nil {
			return
		}
	}
}

// lock asks for the first byte of a file.
func (c *lockClient) lock(server string, h nfs3.FileHandle, reclaim bool) nlm4.Status {
	c.t.Helper()
	args := nlm4.LockArgs{Exclusive: true, Reclaim: reclaim, State: 3,
		Lock: nlm4.Lock{Caller: []byte(c.addr), Handle: h.Bytes(), Owner: []byte("me"), SVID: 1, Range: nlm4.Range{Len: 1}}}
	d := dialFrom(c.t, c.addr, server).call(nlm4.Program, nlm4.Version, nlm4.ProcLock, args.Encode)
	var res nlm4.Result
	check(c.t, res.Decode(&d))
	return res.Status
}

// What another host needs to go on is on the disk: it has other devices, another path,
// another name, and has never seen the clients.
func TestTakeover(t *testing.T) {
	disk := newSharedDisk(t)
	serve := func(host string) *node {
		dir := disk.mount()
		check(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
		return startNode(t, host, "--export", filepath.Join(dir, "data")+":/data", "--state", filepath.Join(dir, ".loopnfs"),
			"--locks")
	}
	locker, other := startLockClient(t, "127.0.0.9"), startLockClient(t, "127.0.0.10")

	a := serve("node-a")
	c := dialFrom(t, "127.0.0.8", a.addr)
	root := c.root("/data")
	var made nfs3.CreateResult
	c.nfs(nfs3.ProcCreate, &nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: root, Name: []byte("file")}}, nil, &made)
	file := made.Handle.Handle
	c.nfs(nfs3.ProcCreate, &nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: root, Name: []byte("gone")}}, nil, &made)
	write := func(c *caller, off uint64, how vfs.Stable) (res nfs3.WriteResult) {
		c.nfs(nfs3.ProcWrite, &nfs3.WriteArgs{Handle: file, Offset: off, Count: 4, Stable: how}, []byte("data"), &res)
		return res
	}
	write(c, 0, vfs.FileSync)
	verf := write(c, 4, vfs.Unstable).Verf
	var before, after nfs3.GetAttrResult
	c.nfs(nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: root}, nil, &before)
	if st := locker.lock(a.addr, file, false); st != nlm4.Granted {
		t.Fatalf("LOCK: %v", st)
	}
	remove := nfs3.RemoveArgs{Dir: root, Name: []byte("gone")}
	var removed nfs3.RemoveResult
	removeXID := c.xid
	if c.nfs(nfs3.ProcRemove, &remove, nil, &removed); removed.Status != nfs3.StatusOK {
		t.Fatalf("REMOVE: %v", removed.Status)
	}
	firstLoop := disk.loop
	a.kill()
	disk.umount()

	b := serve("node-b")
	if disk.loop == firstLoop {
		t.Errorf("the disk is at %s again: the test shows nothing", firstLoop)
	}
	c = dialFrom(t, "127.0.0.8", b.addr)
	c.xid = removeXID
	if c.nfs(nfs3.ProcRemove, &remove, nil, &removed); removed.Status != nfs3.StatusOK {
		t.Errorf("the REMOVE that is sent again: %v", removed.Status)
	}
	if again := c.root("/data"); string(again.Bytes()) != string(root.Bytes()) {
		t.Error("the root has another handle")
	}
	c.nfs(nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: root}, nil, &after)
	if before.Attr.FSID != after.Attr.FSID || before.Attr.Ino != after.Attr.Ino {
		t.Errorf("the file system was %x, file %d, and is %x, file %d", before.Attr.FSID, before.Attr.Ino, after.Attr.FSID, after.Attr.Ino)
	}
	var read nfs3.ReadResult
	d := c.nfs(nfs3.ProcRead, &nfs3.ReadArgs{Handle: file, Count: 4}, nil, &read)
	if read.Status != nfs3.StatusOK || string(d.FixedOpaque(int(read.Count))) != "data" {
		t.Errorf("READ by the old handle: %v", read.Status)
	}
	if v := write(c, 4, vfs.Unstable).Verf; v == verf {
		t.Error("the write verifier is the same: the client would not send again what was lost")
	}
	select {
	case state := <-locker.heard:
		if state%2 == 0 {
			t.Errorf("SM_NOTIFY has state %d", state)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the client with a lock is not told: %s", b.err)
	}
	if st := other.lock(b.addr, file, false); st != nlm4.DeniedGracePeriod {
		t.Errorf("LOCK of another client in the grace period: %v", st)
	}
	if st := locker.lock(b.addr, file, true); st != nlm4.Granted {
		t.Errorf("reclaim: %v", st)
	}
	b.stop()
}

// Clients must not reach the state directory, however the export is named.
func TestStateInExport(t *testing.T) {
	disk := newSharedDisk(t)
	dir := disk.mount()
	data, bind := filepath.Join(dir, "data"), t.TempDir()
	check(t, os.MkdirAll(filepath.Join(data, "sub"), 0o755))
	shell(t, "mount", "--bind", data, bind)
	t.Cleanup(func() { shell(t, "umount", bind) })
	check(t, os.Symlink(data, filepath.Join(dir, "link")))
	for _, c := range []struct{ export, state string }{
		{data, filepath.Join(data, ".loopnfs")},
		{data, filepath.Join(dir, "link", "new", "deep")},
		{bind, filepath.Join(data, "sub")},
		{data, filepath.Join(bind, ".loopnfs")},
		{dir, filepath.Join(bind, ".loopnfs")},
	} {
		n, ready := tryNode(t, "node-a", "--export", c.export+":/data", "--state", c.state)
		<-n.done
		if said := n.err.String(); ready != "" || !contains(said, "lies in the export", "--state") {
			t.Errorf("%s with the state in %s: %q %s", c.export, c.state, ready, said)
		}
		if _, err := os.Stat(filepath.Join(data, ".loopnfs")); err == nil {
			t.Errorf("%s with the state in %s: the directory was made in the export", c.export, c.state)
		}
	}
	startNode(t, "node-a", "--export", bind+":/data", "--state", filepath.Join(dir, ".loopnfs")).stop()
}
