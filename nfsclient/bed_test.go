package nfsclient

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/fusefs"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/nfsserver"
	"loopnfs/reclaim"
	"loopnfs/reclaim/writeback"
)

// serveEnv makes the test binary a server of its own: directory, state, address.
const serveEnv = "NFSCLIENT_TEST_SERVE"

func TestMain(m *testing.M) {
	if args := os.Getenv(serveEnv); args != "" {
		serveProcess(strings.Split(args, "|"))
		return
	}
	os.Exit(m.Run())
}

// memory is an arena and all that manages it.
type memory struct {
	arena *alloc.Arena
	cache *pagecache.Cache
	dom   *writeback.Domain
	rec   *reclaim.Reclaimer
	graph *waitfor.Graph
}

func newMemory(bytes int64) (*memory, error) {
	arena, err := alloc.New(alloc.Config{Bytes: bytes, Policy: alloc.DefaultPolicy()})
	if err != nil {
		return nil, err
	}
	dom, err := writeback.NewDomain(writeback.Config{Pages: arena.Total(), DirtyRatio: 20, BackgroundRatio: 10, Throttle: writeback.LocalThrottle{}})
	if err != nil {
		return nil, err
	}
	soil(arena)
	rec := reclaim.New(arena)
	return &memory{arena: arena, cache: pagecache.New(arena, rec), dom: dom, rec: rec, graph: waitfor.New()}, nil
}

// soil leaves something in every page, as a long run does.
func soil(a *alloc.Arena) {
	for i := range a.Total() {
		b := a.Bytes(a.Folio(uint32(i + 1)))
		for k := range b {
			b[k] = 0xdb
		}
	}
}

func testMemory(t testing.TB, bytes int64) *memory {
	t.Helper()
	m, err := newMemory(bytes)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// server is our own server over a directory, in this process.
type server struct {
	addr  string
	dir   string
	store *fusefs.Store
	srv   *nfsserver.Server
	mem   *memory
}

func startServer(mem *memory, dir, state, addr string) (*server, error) {
	store, err := fusefs.NewStore(fusefs.StoreConfig{Dir: dir, StateDir: state, Cache: mem.cache, Domain: mem.dom, Graph: mem.graph, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	store.Start()
	srv, err := nfsserver.New(nfsserver.Config{
		Exports: []nfsserver.Export{{Name: "/data", FS: store}}, Arena: mem.arena, Graph: mem.graph,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	go srv.Serve(l)
	return &server{addr: l.Addr().String(), dir: dir, store: store, srv: srv, mem: mem}, nil
}

// testServer starts a server with an arena of its own.
func testServer(t testing.TB, bytes int64) *server {
	t.Helper()
	mem := testMemory(t, bytes)
	s, err := startServer(mem, tempDir(t), tempDir(t), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mem.rec.Start(mem.cache, mem.graph, s.store.BDI())
	t.Cleanup(func() {
		s.srv.Close()
		if err := s.store.Shutdown(); err != nil {
			t.Errorf("store: %v", err)
		}
		mem.stop()
	})
	return s
}

func (m *memory) stop() {
	m.dom.Close()
	m.arena.Close()
	m.rec.Stop()
}

// tempDir is a directory on a real disk.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "nfsclient")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o777)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// mountFor mounts addr on mem and unmounts at the end of the test.
func mountFor(t testing.TB, mem *memory, addr, export string, change func(*Config)) *Client {
	t.Helper()
	cfg := Config{Addr: addr, Export: export, Cache: mem.cache, Domain: mem.dom, Graph: mem.graph}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := Mount(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bed is a client, and the memory it lives in.
type bed struct {
	t   testing.TB
	c   *Client
	mem *memory
	op  vfs.Op
}

// newBed mounts addr with an arena of its own.
func newBed(t testing.TB, bytes int64, addr, export string, change func(*Config)) *bed {
	t.Helper()
	mem := testMemory(t, bytes)
	b := &bed{t: t, mem: mem, c: mountFor(t, mem, addr, export, change), op: rootOp(mem)}
	mem.rec.Start(mem.cache, mem.graph, b.c.BDI())
	t.Cleanup(func() {
		b.unmount()
		mem.stop()
		if n := mem.arena.Total() - mem.arena.Free(); n != 0 {
			t.Errorf("%d pages leaked", n)
		}
	})
	return b
}

func (b *bed) unmount() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := b.c.Unmount(ctx); err != nil && !b.t.Failed() {
		b.t.Errorf("unmount: %v", err)
	}
}

func rootOp(mem *memory) vfs.Op { return vfs.Op{Scope: gfp.For(nil)} }

// create makes a file in the root.
func (b *bed) create(name string) vfs.NodeID {
	b.t.Helper()
	e, _, err := b.c.Create(&b.op, vfs.RootID, name, vfs.Unchecked, &vfs.SetAttr{SetMode: true, Mode: 0o644}, vfs.Verifier{})
	if err != nil {
		b.t.Fatalf("create %s: %v", name, err)
	}
	return e.Node
}

func (b *bed) write(n vfs.NodeID, off int, data []byte) {
	b.t.Helper()
	if err := writeAt(b.c, &b.op, n, off, data); err != nil {
		b.t.Fatalf("write at %d: %v", off, err)
	}
}

func writeAt(c *Client, op *vfs.Op, n vfs.NodeID, off int, data []byte) error {
	for len(data) > 0 {
		k := min(len(data), int(c.MaxIO()))
		v := vfs.Vec{Bufs: [][]byte{data[:k]}}
		var res vfs.WriteResult
		if err := c.Write(op, n, uint64(off), &v, vfs.Unstable, &res); err != nil {
			return err
		}
		off += int(res.Count)
		data = data[res.Count:]
	}
	return nil
}

func (b *bed) read(n vfs.NodeID, off, count int) []byte {
	b.t.Helper()
	data, err := readAt(b.c, &b.op, n, off, count)
	if err != nil {
		b.t.Fatalf("read at %d: %v", off, err)
	}
	return data
}

func readAt(c *Client, op *vfs.Op, n vfs.NodeID, off, count int) ([]byte, error) {
	var all []byte
	for count > 0 {
		var v vfs.Vec
		eof, err := c.Read(op, n, uint64(off), uint32(min(count, 1<<30)), &v, nil)
		if err != nil {
			return all, err
		}
		k := v.Len()
		for _, b := range v.Bufs {
			all = append(all, b...)
		}
		v.Release()
		off += k
		count -= k
		if eof {
			break
		}
	}
	return all, nil
}

func (b *bed) sync(n vfs.NodeID) {
	b.t.Helper()
	if err := b.c.Sync(&b.op, n); err != nil {
		b.t.Fatalf("sync: %v", err)
	}
}

func (b *bed) attr(n vfs.NodeID) vfs.Attr {
	b.t.Helper()
	var a vfs.Attr
	if err := b.c.GetAttr(&b.op, n, &a); err != nil {
		b.t.Fatalf("getattr: %v", err)
	}
	return a
}

// eventually waits until cond is true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// pattern fills n bytes that say where they belong.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((i+seed)*7 + (i+seed)>>8)
	}
	return b
}

// serveProcess is the server as a process of its own, to be killed.
func serveProcess(args []string) {
	mem, err := newMemory(32 << 20)
	if err == nil {
		var s *server
		if s, err = startServer(mem, args[0], args[1], args[2]); err == nil {
			mem.rec.Start(mem.cache, mem.graph, s.store.BDI())
			fmt.Println("ready", s.addr)
			select {}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// process is a server that can be killed.
type process struct {
	t                testing.TB
	dir, state, addr string
	cmd              *exec.Cmd
}

func startProcess(t testing.TB) *process {
	t.Helper()
	p := &process{t: t, dir: tempDir(t), state: tempDir(t), addr: "127.0.0.1:0"}
	p.start()
	t.Cleanup(p.kill)
	return p
}

func (p *process) start() {
	p.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(exe)
	p.cmd.Env = append(os.Environ(), serveEnv+"="+strings.Join([]string{p.dir, p.state, p.addr}, "|"))
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready ") {
		p.t.Fatalf("server did not start: %q %v", line, err)
	}
	p.addr = strings.TrimSpace(strings.TrimPrefix(line, "ready "))
}

func (p *process) kill() {
	if p.cmd != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.cmd = nil
	}
}

func (p *process) path(name string) string { return filepath.Join(p.dir, name) }
