package nfsserver

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// bystander reads a file over and over, on a connection of its own, while others send
// what they like. The function that it returns ends that: every READ was right, and none
// took longer than most.
func bystander(t *testing.T, addr string, h nfs3.FileHandle, want []byte) (end func(most time.Duration)) {
	c := dial(t, addr)
	done, ended := make(chan struct{}), make(chan struct{})
	stop := sync.OnceFunc(func() { close(done); <-ended })
	t.Cleanup(stop)
	reads, worst := 0, time.Duration(0)
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			start := time.Now()
			if res, got := c.read(h, 0, uint32(len(want))); res.Status != nfs3.StatusOK || !bytes.Equal(got, want) {
				t.Errorf("somebody else's READ: %v, %d bytes", res.Status, len(got))
				return
			}
			reads, worst = reads+1, max(worst, time.Since(start))
		}
	}()
	return func(most time.Duration) {
		t.Helper()
		stop()
		if reads == 0 || worst > most {
			t.Errorf("somebody else had %d READs, the slowest took %v", reads, worst)
		}
	}
}

// hostile is a real store with some objects, and what the tests need of it.
type hostile struct {
	*storeServer
	c                     *rpcClient
	root, file, dir, link nfs3.FileHandle
}

func serveHostile(t testing.TB) *hostile {
	t.Helper()
	dir, state := diskDirs(t)
	check(t, os.WriteFile(filepath.Join(dir, "file"), pattern(5000), 0o666))
	check(t, os.Mkdir(filepath.Join(dir, "dir"), 0o777))
	check(t, os.Symlink("file", filepath.Join(dir, "link")))
	x := &hostile{storeServer: serveStore(t, dir, state, 16<<20, "127.0.0.1:0")}
	x.c = dial(t, x.addr)
	x.root, x.file, x.dir, x.link = x.c.root(), x.c.file("file"), x.c.file("dir"), x.c.file("link")
	return x
}

// names returns what the root has.
func (x *hostile) names(t *testing.T) []string {
	entries, err := os.ReadDir(x.storeServer.dir)
	check(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Names that are none, in every place where a name can stand.
func TestHostileNames(t *testing.T) {
	x := serveHostile(t)
	before := x.names(t)
	end := bystander(t, x.addr, x.file, pattern(5000))
	for name, want := range map[string][]nfs3.Status{
		"":                       {nfs3.StatusInval, nfs3.StatusAcces},
		"a/b":                    {nfs3.StatusInval, nfs3.StatusAcces},
		"/":                      {nfs3.StatusInval, nfs3.StatusAcces},
		"/etc/passwd":            {nfs3.StatusInval, nfs3.StatusAcces},
		"../file":                {nfs3.StatusInval, nfs3.StatusAcces},
		"a\x00b":                 {nfs3.StatusInval, nfs3.StatusAcces},
		"file\x00":               {nfs3.StatusInval, nfs3.StatusAcces},
		".":                      {nfs3.StatusInval, nfs3.StatusExist},
		"..":                     {nfs3.StatusInval, nfs3.StatusExist, nfs3.StatusNotEmpty},
		strings.Repeat("n", 256): {nfs3.StatusNameTooLong},
	} {
		bad, good := nfs3.DirOpArgs{Dir: x.root, Name: []byte(name)}, nfs3.DirOpArgs{Dir: x.root, Name: []byte("file")}
		for proc, args := range map[uint32][]encoder{
			nfs3.ProcLookup:  {&nfs3.LookupArgs{Dir: x.root, Name: []byte(name)}},
			nfs3.ProcCreate:  {&nfs3.CreateArgs{Where: bad}, &nfs3.CreateArgs{Where: bad, How: vfs.Exclusive}},
			nfs3.ProcMkdir:   {&nfs3.MkdirArgs{Where: bad}},
			nfs3.ProcSymlink: {&nfs3.SymlinkArgs{Where: bad, Target: []byte("x")}},
			nfs3.ProcMknod:   {&nfs3.MknodArgs{Where: bad, Type: vfs.TypeFIFO}},
			nfs3.ProcRemove:  {&nfs3.RemoveArgs{Dir: bad.Dir, Name: bad.Name}},
			nfs3.ProcRmdir:   {&nfs3.RmdirArgs{Dir: bad.Dir, Name: bad.Name}},
			nfs3.ProcRename:  {&nfs3.RenameArgs{From: bad, To: good}, &nfs3.RenameArgs{From: good, To: bad}},
			nfs3.ProcLink:    {&nfs3.LinkArgs{Handle: x.file, To: bad}},
		} {
			if proc == nfs3.ProcLookup && (name == "." || name == "..") {
				continue // these are names
			}
			for i, a := range args {
				st := nfs3.Status(x.c.call(proc, a, nil).Uint32())
				if !slices.Contains(want, st) {
					t.Errorf("%s %d of %.20q: %v, want one of %v", nfs3.ProcName(proc), i, name, st, want)
				}
			}
		}
	}
	end(5 * time.Second)
	if after := x.names(t); !slices.Equal(before, after) {
		t.Errorf("the directory has %q, had %q", after, before)
	}
}

// Handles that nobody was given, for every procedure.
func TestHostileHandles(t *testing.T) {
	x := serveHostile(t)
	end := bystander(t, x.addr, x.file, pattern(5000))
	random := make([]byte, 64)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	flipped := func(bit int) []byte {
		b := slices.Clone(x.file.Bytes())
		b[bit/8] ^= 1 << (bit % 8)
		return b
	}
	handles := [][]byte{{}, random, make([]byte, 64), bytes.Repeat([]byte{255}, 64), random[:1], x.file.Bytes()[:10],
		append(slices.Clone(x.file.Bytes()), 0), slices.Concat(x.root.Bytes(), x.file.Bytes()), random[:63], make([]byte, 65)}
	for bit := range 8 * len(x.file.Bytes()) {
		handles = append(handles, flipped(bit))
	}
	for _, h := range handles {
		for proc := range uint32(nfs3.NumProcs) {
			if proc == nfs3.ProcNull {
				continue
			}
			args := xdr.Encoder{}
			args.Opaque(h)
			args.FixedOpaque(make([]byte, 200)) // what comes behind it is never looked at
			d, err := x.c.try(proc, rawArgs(args.Buf), nil, nil)
			switch {
			case proc == nfs3.ProcWrite && errors.Is(err, sunrpc.GarbageArgs):
			case err != nil:
				t.Errorf("%s of handle %x: %v", nfs3.ProcName(proc), h, err)
			default:
				if st := nfs3.Status(d.Uint32()); st != nfs3.StatusBadHandle {
					t.Errorf("%s of handle %x: %v", nfs3.ProcName(proc), h, st)
				}
			}
		}
	}
	end(5 * time.Second)
}

// Numbers at the ends of their range.
func TestHostileNumbers(t *testing.T) {
	x := serveHostile(t)
	end := bystander(t, x.addr, x.file, pattern(5000))
	c, rest := x.c, rawArgs(make([]byte, 4))
	tooBig := []nfs3.Status{nfs3.StatusFBig, nfs3.StatusInval}
	status := func(what string, st nfs3.Status, want ...nfs3.Status) {
		t.Helper()
		if !slices.Contains(want, st) {
			t.Errorf("%s: %v, want one of %v", what, st, want)
		}
	}
	for _, off := range []uint64{5000, 1 << 40, math.MaxInt64 - 1, math.MaxInt64, 1 << 63, 1<<63 + 1, math.MaxUint64 - 4095, math.MaxUint64} {
		for _, n := range []uint32{0, 1, 4096, math.MaxInt32, math.MaxUint32} {
			res, got := c.read(x.file, off, n)
			if res.Status == nfs3.StatusOK && (len(got) > 0 || !res.EOF) {
				t.Errorf("READ of %d at %d: %d bytes", n, off, len(got))
			}
			status(fmt.Sprintf("READ of %d at %d", n, off), res.Status, nfs3.StatusOK, nfs3.StatusInval)
			var com nfs3.CommitResult
			c.call(nfs3.ProcCommit, &nfs3.CommitArgs{Handle: x.file, Offset: off, Count: n}, &com)
			status(fmt.Sprintf("COMMIT of %d at %d", n, off), com.Status, nfs3.StatusOK, nfs3.StatusInval)
		}
		if off >= math.MaxInt64-1 {
			status(fmt.Sprintf("WRITE at %d", off), c.write(nfs3.WriteArgs{Handle: x.file, Offset: off}, pattern(8)).Status, tooBig...)
		}
		if off > math.MaxInt64 {
			var set nfs3.WCCResult
			c.call(nfs3.ProcSetAttr, &nfs3.SetAttrArgs{Handle: x.file, Set: vfs.SetAttr{SetSize: true, Size: off}}, &set)
			status(fmt.Sprintf("SETATTR of size %d", off), set.Status, tooBig...)
		}
	}
	res, got := c.read(x.file, 0, math.MaxUint32)
	if res.Status != nfs3.StatusOK || !bytes.Equal(got, pattern(5000)) {
		t.Errorf("READ of 2^32-1 bytes: %v, %d bytes", res.Status, len(got))
	}
	for _, count := range []uint32{9, 4096, math.MaxInt32, math.MaxUint32} {
		if _, err := c.try(nfs3.ProcWrite, &nfs3.WriteArgs{Handle: x.file, Count: count}, pattern(8), nil); !errors.Is(err, sunrpc.GarbageArgs) {
			t.Errorf("WRITE of 8 bytes that says %d: %v", count, err)
		}
	}
	for _, cookie := range []uint64{1, 12345, 1 << 32, math.MaxInt64, 1 << 63, math.MaxUint64} {
		for _, verf := range []vfs.Verifier{{}, {1}, {255, 255, 255, 255, 255, 255, 255, 255}} {
			var list nfs3.ReaddirResult
			c.call(nfs3.ProcReaddir, &nfs3.ReaddirArgs{Handle: x.root, Cookie: cookie, Verf: verf, Count: math.MaxUint32}, &list)
			status(fmt.Sprintf("READDIR from %d", cookie), list.Status, nfs3.StatusOK, nfs3.StatusBadCookie)
			var plus nfs3.ReaddirplusResult
			c.call(nfs3.ProcReaddirplus, &nfs3.ReaddirplusArgs{Handle: x.root, Cookie: cookie, Verf: verf,
				DirCount: math.MaxUint32, MaxCount: math.MaxUint32}, &plus)
			status(fmt.Sprintf("READDIRPLUS from %d", cookie), plus.Status, nfs3.StatusOK, nfs3.StatusBadCookie)
		}
	}
	late := vfs.SetAttr{SetMtime: vfs.SetToClientTime, Mtime: vfs.Time{Sec: math.MaxUint32, Nsec: math.MaxUint32}}
	if _, err := c.try(nfs3.ProcSetAttr, &nfs3.SetAttrArgs{Handle: x.file, Set: late}, nil, nil); !errors.Is(err, sunrpc.GarbageArgs) {
		t.Errorf("SETATTR with 2^32-1 ns: %v", err)
	}
	if _, err := c.try(nfs3.ProcCommit, rest, nil, nil); !errors.Is(err, sunrpc.GarbageArgs) {
		t.Errorf("COMMIT without a range: %v", err)
	}
	end(5 * time.Second)
}

// Ten thousand connections that say nothing, and one that works.
func TestTenThousandIdleConnections(t *testing.T) {
	const most = 10_000
	var lim unix.Rlimit
	if check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)); lim.Cur < most+2000 {
		t.Skipf("the test may have %d files open, it needs %d: raise RLIMIT_NOFILE", lim.Cur, most+2000)
	}
	x := serveHostile(t)
	to, err := net.ResolveTCPAddr("tcp", x.addr)
	check(t, err)
	end := bystander(t, x.addr, x.file, pattern(5000))
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before, grown := heap(), uint64(0)
	for i := range most {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		defer unix.Close(fd)
		// From an address of their own: they would take ports that other tests want again.
		check(t, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
		check(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 99}}))
		check(t, unix.Connect(fd, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}))
		if i%1000 == 0 {
			now := heap()
			grown = max(grown, now-min(before, now))
		}
	}
	eventually(t, "who comes last gets in", func() bool {
		nc, err := net.Dial("tcp", x.addr)
		check(t, err)
		defer nc.Close()
		head := sunrpc.Call{XID: 1, Prog: nfs3.Program, Vers: 3, Proc: nfs3.ProcGetAttr, Cred: rootCred()}
		_, err = nc.Write(callRecord(&head, &nfs3.GetAttrArgs{Handle: x.file}, nil))
		if err == nil {
			_, err = readRecord(nc)
		}
		return err == nil
	})
	end(5 * time.Second)
	st := x.srv.Stats()
	t.Logf("%d connections at once, %d refused, %d MiB", st.Conns, st.Refused, grown>>20)
	if grown > 64<<20 {
		t.Errorf("they take %d MiB", grown>>20)
	}
}
