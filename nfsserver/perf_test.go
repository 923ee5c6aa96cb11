package nfsserver

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"testing"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/xdr"
)

// pipeline sends a call over and over with many outstanding, each with an XID of
// its own, and allocates nothing.
type pipeline struct {
	nc    net.Conn
	xid   uint32
	call  []byte
	reply int // size of each reply record with its mark
	buf   []byte
	out   int
}

// next returns the record of the next call.
func (p *pipeline) next() []byte {
	p.xid++
	binary.BigEndian.PutUint32(p.call[4:], p.xid)
	return p.call
}

func (p *pipeline) send(t testing.TB) {
	if _, err := p.nc.Write(p.next()); err != nil {
		t.Fatal(err)
	}
	p.out++
}

func (p *pipeline) receive(t testing.TB) {
	if _, err := io.ReadFull(p.nc, p.buf[:p.reply]); err != nil {
		t.Fatal(err)
	}
	p.out--
}

// newPipeline makes the call once to learn the size of the reply.
func newPipeline(t testing.TB, addr string, proc uint32, args encoder, payload []byte) *pipeline {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	h := sunrpc.Call{XID: 1, Prog: nfs3.Program, Vers: nfs3.Version, Proc: proc, Cred: rootCred()}
	p := &pipeline{nc: nc, xid: h.XID, call: callRecord(&h, args, payload), buf: make([]byte, 2<<20)}
	if _, err := nc.Write(p.call); err != nil {
		t.Fatal(err)
	}
	rec, err := readRecord(nc)
	if err != nil {
		t.Fatal(err)
	}
	d := xdr.NewDecoder(rec)
	if _, err := sunrpc.DecodeReply(&d); err != nil {
		t.Fatal(err)
	}
	if st := nfs3.Status(d.Uint32()); st != nfs3.StatusOK {
		t.Fatal(st)
	}
	p.reply = 4 + len(rec)
	return p
}

// perfCalls are the calls of the data path.
func perfCalls(t testing.TB, addr string, size int) map[string]func() *pipeline {
	c := dial(t, addr)
	root, h := c.root(), c.file("file")
	return map[string]func() *pipeline{
		"GETATTR": func() *pipeline {
			return newPipeline(t, addr, nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, nil)
		},
		"LOOKUP": func() *pipeline {
			return newPipeline(t, addr, nfs3.ProcLookup, &nfs3.LookupArgs{Dir: root, Name: []byte("file")}, nil)
		},
		"READ": func() *pipeline {
			return newPipeline(t, addr, nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Count: uint32(size)}, nil)
		},
		"WRITE": func() *pipeline {
			return newPipeline(t, addr, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: uint32(size)}, pattern(size))
		},
	}
}

func perfServer(t testing.TB, size int) string {
	arena := newArena(t, 64<<20)
	fs := newMemFS(arena)
	fs.put(t, rootNode, "file", pattern(size))
	_, addr := start(t, Config{
		Exports: []Export{{Name: "/data", FS: fs, Squash: SquashNone}}, Arena: arena,
		Graph: waitfor.New(), Holds: func() bool { return true }, Logger: slog.New(slog.DiscardHandler),
	})
	return addr
}

// The data path allocates nothing from the Go heap, whatever the number of
// calls. Allocations of the whole process are counted: client and server.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const size, window = 64 << 10, 8
	for name, connect := range perfCalls(t, perfServer(t, size), size) {
		p := connect()
		round := func() {
			for range window {
				p.send(t)
			}
			for p.out > 0 {
				p.receive(t)
			}
		}
		for range 50 {
			round() // every slot and every stack has its size
		}
		if n := testing.AllocsPerRun(200, round) / window; n >= 0.01 {
			t.Errorf("%s: %.3f allocations per call", name, n)
		}
	}
}

func benchmark(b *testing.B, name string, size, window int) {
	benchmarkAt(b, perfServer(b, size), name, size, window)
}

func benchmarkAt(b *testing.B, addr, name string, size, window int) {
	p := perfCalls(b, addr, size)[name]()
	if name == "READ" || name == "WRITE" {
		b.SetBytes(int64(size))
	}
	b.ReportAllocs()
	sent := make(chan struct{}, window)
	go func() {
		for range b.N {
			sent <- struct{}{}
			if _, err := p.nc.Write(p.next()); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	b.ResetTimer()
	for range b.N {
		p.receive(b)
		<-sent
	}
}

func BenchmarkGetAttr(b *testing.B)   { benchmark(b, "GETATTR", 4096, 32) }
func BenchmarkGetAttr1(b *testing.B)  { benchmark(b, "GETATTR", 4096, 1) }
func BenchmarkLookup(b *testing.B)    { benchmark(b, "LOOKUP", 4096, 32) }
func BenchmarkRead4K(b *testing.B)    { benchmark(b, "READ", 4096, 32) }
func BenchmarkRead256K(b *testing.B)  { benchmark(b, "READ", 256<<10, 16) }
func BenchmarkRead1M(b *testing.B)    { benchmark(b, "READ", 1<<20, 8) }
func BenchmarkWrite4K(b *testing.B)   { benchmark(b, "WRITE", 4096, 32) }
func BenchmarkWrite256K(b *testing.B) { benchmark(b, "WRITE", 256<<10, 16) }
func BenchmarkWrite1M(b *testing.B)   { benchmark(b, "WRITE", 1<<20, 8) }
