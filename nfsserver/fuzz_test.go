package nfsserver

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// rawArgs are arguments that are sent as they are.
type rawArgs []byte

func (a rawArgs) Encode(e *xdr.Encoder) { e.FixedOpaque(a) }

// someArgs returns good arguments for every procedure of NFS but NULL, on the root and a
// file in it.
func someArgs(root, file nfs3.FileHandle) [nfs3.NumProcs]encoder {
	h, in := nfs3.HandleArgs{Handle: root}, nfs3.DirOpArgs{Dir: root, Name: []byte("new")}
	set := vfs.SetAttr{SetMode: true, Mode: 0o640, SetMtime: vfs.SetToClientTime}
	return [nfs3.NumProcs]encoder{
		nfs3.ProcGetAttr:     &h,
		nfs3.ProcSetAttr:     &nfs3.SetAttrArgs{Handle: file, Set: set},
		nfs3.ProcLookup:      &in,
		nfs3.ProcAccess:      &nfs3.AccessArgs{Handle: file, Access: 0x3f},
		nfs3.ProcReadlink:    &h,
		nfs3.ProcRead:        &nfs3.ReadArgs{Handle: file, Count: 100},
		nfs3.ProcWrite:       &nfs3.WriteArgs{Handle: file, Count: 0},
		nfs3.ProcCreate:      &nfs3.CreateArgs{Where: in, How: vfs.Exclusive, Set: set},
		nfs3.ProcMkdir:       &nfs3.MkdirArgs{Where: in, Set: set},
		nfs3.ProcSymlink:     &nfs3.SymlinkArgs{Where: in, Set: set, Target: []byte("file")},
		nfs3.ProcMknod:       &nfs3.MknodArgs{Where: in, Type: vfs.TypeFIFO, Set: set},
		nfs3.ProcRemove:      &in,
		nfs3.ProcRmdir:       &in,
		nfs3.ProcRename:      &nfs3.RenameArgs{From: in, To: nfs3.DirOpArgs{Dir: root, Name: []byte("newer")}},
		nfs3.ProcLink:        &nfs3.LinkArgs{Handle: file, To: in},
		nfs3.ProcReaddir:     &nfs3.ReaddirArgs{Handle: root, Count: 4096},
		nfs3.ProcReaddirplus: &nfs3.ReaddirplusArgs{Handle: root, DirCount: 4096, MaxCount: 4096},
		nfs3.ProcFSStat:      &h,
		nfs3.ProcFSInfo:      &h,
		nfs3.ProcPathConf:    &h,
		nfs3.ProcCommit:      &nfs3.CommitArgs{Handle: file},
	}
}

// FuzzCall damages what comes behind the first file handle of a call to the real store:
// it ends in a reply, never in a panic, and nothing is kept.
func FuzzCall(f *testing.F) {
	x := serveHostile(f)
	handles := []nfs3.FileHandle{x.root, x.file, x.dir, x.link}
	for proc, args := range someArgs(x.root, x.root) {
		if args != nil {
			var e xdr.Encoder
			args.Encode(&e)
			f.Add(uint32(proc), uint8(0), e.Buf[4+(len(x.root.Bytes())+3)&^3:])
		}
	}
	f.Fuzz(func(t *testing.T, proc uint32, which uint8, rest []byte) {
		if len(rest) > 100_000 {
			return
		}
		var e xdr.Encoder
		handles[int(which)%len(handles)].Encode(&e)
		proc %= nfs3.NumProcs
		d, err := x.c.wait(x.c.start(nfs3.Program, proc, rawArgs(append(e.Buf, rest...)), nil))
		if err != nil && !errors.Is(err, sunrpc.GarbageArgs) {
			t.Error(err)
		}
		if err == nil && proc != nfs3.ProcNull && d.Remaining() < 4 {
			t.Error("a reply without a status")
		}
		if st := x.srv.Stats(); st.Panics != 0 || st.InFlight > 1 {
			t.Errorf("%+v", st)
		}
	})
}

// FuzzRecords sends bytes as they are, as one record and what follows it: calls of any
// program, damaged in any way. The server answers or closes that connection; another one
// goes on.
func FuzzRecords(f *testing.F) {
	arena := newArena(f, 16<<20)
	fs := newMemFS(arena)
	fs.put(f, rootNode, "file", pattern(100))
	s, addr := start(f, Config{Exports: []Export{{Name: "/data", FS: fs}}, Arena: arena, Locks: newLocks(f)})
	good := dial(f, addr)
	root := good.root()
	add := func(prog, proc uint32, args encoder) {
		head := sunrpc.Call{XID: 1, Prog: prog, Vers: 3, Proc: proc, Cred: rootCred()}
		if prog == nlm4.Program {
			head.Vers = nlm4.Version
		}
		f.Add(callRecord(&head, args, nil)[4:], []byte(nil))
	}
	for proc, args := range someArgs(root, good.file("file")) {
		add(nfs3.Program, uint32(proc), args)
	}
	for proc := range uint32(6) {
		add(nfs3.MountProgram, proc, &nfs3.MntArgs{Path: []byte("/data")})
	}
	for proc := range uint32(24) {
		add(nlm4.Program, proc, &nlm4.LockArgs{Cookie: []byte("c"), Lock: nlm4.Lock{Caller: []byte("here"), Handle: root.Bytes(), Owner: []byte("o")}})
	}
	f.Fuzz(func(t *testing.T, rec, more []byte) {
		if len(rec)+len(more) > 1<<20 {
			return
		}
		nc, err := net.Dial("tcp", addr)
		check(t, err)
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		nc.Write(append(append(binary.BigEndian.AppendUint32(nil, 1<<31|uint32(len(rec))), rec...), more...))
		nc.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, nc); errTimeout(err) == err && err != nil {
			t.Error("neither a reply nor an end")
		}
		d, err := good.wait(good.start(nfs3.Program, nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: root}, nil))
		if err != nil || nfs3.Status(d.Uint32()) != nfs3.StatusOK {
			t.Errorf("GETATTR of another client: %v", err)
		}
		if st := s.Stats(); st.Panics != 0 {
			t.Error("a panic")
		}
	})
}
