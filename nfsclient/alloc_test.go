package nfsclient

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"loopnfs/internal/vfs"
)

func listenAgain(addr string) (net.Listener, error) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		l, err := net.Listen("tcp", addr)
		if err == nil || time.Now().After(end) {
			return l, err
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := testServer(t, 32<<20)
	b := newBed(t, 16<<20, s.addr, "/data", func(c *Config) { c.AttrTimeout = time.Hour; c.ReadAhead = -1 })
	n := b.create("f")
	data := pattern(1, 64<<10)
	b.write(n, 0, data)
	b.sync(n)
	ino, _ := b.c.tab.get(n)
	var v vfs.Vec
	in := vfs.Vec{Bufs: [][]byte{data}}
	var res vfs.WriteResult
	var attr vfs.Attr
	off := uint64(0)
	cases := map[string]func(){
		"cached read": func() {
			if _, err := b.c.Read(&b.op, n, 4096, 32<<10, &v, &attr); err != nil || v.Len() != 32<<10 {
				t.Fatal(err, v.Len())
			}
			v.Release()
		},
		"write into cached pages": func() { must(t, b.c.Write(&b.op, n, 0, &in, vfs.Unstable, &res)) },
		"cached getattr":          func() { must(t, b.c.GetAttr(&b.op, n, &attr)) },
		"getattr": func() {
			ino.expire()
			must(t, b.c.GetAttr(&b.op, n, &attr))
		},
		"lookup": func() {
			e, err := b.c.Lookup(&b.op, vfs.RootID, "f")
			must(t, err)
			b.c.Forget(e.Node, 1)
		},
		"write and sync": func() {
			must(t, b.c.Write(&b.op, n, off%(8<<20), &in, vfs.Unstable, &res))
			must(t, b.c.Sync(&b.op, n))
			off += uint64(len(data))
		},
		"read from the server": func() {
			ino.m.InvalidateClean()
			if _, err := b.c.Read(&b.op, n, 0, 32<<10, &v, nil); err != nil || v.Len() != 32<<10 {
				t.Fatal(err, v.Len())
			}
			v.Release()
		},
	}
	for name, f := range cases {
		for range 20 {
			f() // warm
		}
		// The server runs in this process and is measured with us: the store
		// makes a path for each COMMIT.
		ours := testing.AllocsPerRun(200, f)
		if name == "write and sync" {
			ours--
		}
		if a := ours; a >= 1 {
			t.Errorf("%s: %v allocations", name, a)
		}
	}
}

func BenchmarkCachedRead(b *testing.B) {
	s := testServer(b, 32<<20)
	bd := newBed(b, 16<<20, s.addr, "/data", func(c *Config) { c.AttrTimeout = time.Hour })
	n := bd.create("f")
	bd.write(n, 0, pattern(1, 128<<10))
	bd.sync(n)
	var v vfs.Vec
	b.SetBytes(128 << 10)
	b.ReportAllocs()
	for b.Loop() {
		bd.c.Read(&bd.op, n, 0, 128<<10, &v, nil)
		v.Release()
	}
}

func BenchmarkGetAttr(b *testing.B) {
	s := testServer(b, 32<<20)
	bd := newBed(b, 16<<20, s.addr, "/data", func(c *Config) { c.AttrTimeout = -1 })
	n := bd.create("f")
	var a vfs.Attr
	b.ReportAllocs()
	for b.Loop() {
		must(b, bd.c.GetAttr(&bd.op, n, &a))
	}
}

func BenchmarkSequentialWrite(b *testing.B) {
	s := testServer(b, 128<<20)
	bd := newBed(b, 64<<20, s.addr, "/data", nil)
	n := bd.create("f")
	data := pattern(1, 1<<20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	off := 0
	for b.Loop() {
		bd.write(n, off%(512<<20), data)
		off += len(data)
	}
	bd.sync(n)
}

func BenchmarkSequentialRead(b *testing.B) {
	s := testServer(b, 256<<20)
	bd := newBed(b, 64<<20, s.addr, "/data", nil)
	const size = 128 << 20
	must(b, os.WriteFile(filepath.Join(s.dir, "f"), make([]byte, size), 0o666))
	e, err := bd.c.Lookup(&bd.op, vfs.RootID, "f")
	must(b, err)
	var v vfs.Vec
	b.SetBytes(128 << 10)
	b.ReportAllocs()
	off := uint64(0)
	for b.Loop() {
		_, err := bd.c.Read(&bd.op, e.Node, off%size, 128<<10, &v, nil)
		must(b, err)
		v.Release()
		off += 128 << 10
	}
}

func TestMountErrorsSayWhat(t *testing.T) {
	s := testServer(t, 16<<20)
	mem := testMemory(t, 8<<20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close() // accepts and never answers
	closed := l.Addr().String()
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Export = "/nothing" }, "/nothing"},
		{func(c *Config) { c.Export = "" }, "no export"},
		{func(c *Config) { c.Addr = "nowhere" }, "host:port"},
		{func(c *Config) { c.Slots = 1 }, "slots"},
		{func(c *Config) { c.RSize = 100 }, "rsize 100"},
		{func(c *Config) { c.Cache = nil }, "Cache"},
		{func(c *Config) { c.Addr = "127.0.0.1:1" }, "connection refused"},
		{func(c *Config) { c.MountAddr = closed }, "MNT"},
		{func(c *Config) { c.Addr, c.MountAddr = closed, s.addr }, "no answer"},
	} {
		cfg := Config{Addr: s.addr, Export: "/data", Cache: mem.cache, Domain: mem.dom}
		c.change(&cfg)
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		_, err := Mount(ctx, cfg)
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want something with %q", err, c.want)
		}
	}
}

func TestUnmountWithoutServer(t *testing.T) {
	f := startFake(t)
	mem := testMemory(t, 8<<20)
	c := mountFor(t, mem, f.addr(), "/x", nil)
	mem.rec.Start(mem.cache, mem.graph, c.BDI())
	b := &bed{t: t, c: c, mem: mem}
	n := b.create("f")
	b.write(n, 0, pattern(1, 10000))
	f.l.Close()
	f.cutAll()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	err := c.Unmount(ctx)
	if !errors.Is(err, syscall.EINTR) || !strings.Contains(err.Error(), "3 pages were not written") {
		t.Fatalf("error %v", err)
	}
	mem.stop()
	if mem.arena.Free() != mem.arena.Total() {
		t.Fatalf("%d pages leaked", mem.arena.Total()-mem.arena.Free())
	}
}
