package nfsserver

import (
	"bytes"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"loopnfs/alloc"
	"loopnfs/fusefs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/reclaim"
	"loopnfs/reclaim/writeback"
)

// storeServer serves a directory on disk through the real store, with all its
// memory in an arena of the given size.
type storeServer struct {
	addr, dir string
	arena     *alloc.Arena
	srv       *Server
	stop      func()
}

func serveStore(t testing.TB, dir, state string, bytes int64, listen string, change ...func(*Config)) *storeServer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the store opens file handles and impersonates users")
	}
	arena, err := alloc.New(alloc.Config{Bytes: bytes, Policy: alloc.DefaultPolicy()})
	check(t, err)
	dom, err := writeback.NewDomain(writeback.Config{
		Pages: arena.Total(), DirtyRatio: 20, BackgroundRatio: 10, Throttle: writeback.LocalThrottle{},
	})
	check(t, err)
	rec, graph := reclaim.New(arena), waitfor.New()
	cache := pagecache.New(arena, rec)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store, err := fusefs.NewStore(fusefs.StoreConfig{Dir: dir, StateDir: state, Cache: cache, Domain: dom, Graph: graph, Logger: log})
	check(t, err)
	rec.Start(cache, graph, store.BDI())
	store.Start()
	cfg := Config{
		Exports: []Export{{Name: "/data", FS: store, Squash: SquashNone}},
		Arena:   arena, Graph: graph, Logger: log,
	}
	for _, f := range change {
		f(&cfg)
	}
	srv, err := New(cfg)
	check(t, err)
	l, err := net.Listen("tcp", listen)
	check(t, err)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	var once sync.Once
	s := &storeServer{addr: l.Addr().String(), dir: dir, arena: arena, srv: srv}
	s.stop = func() {
		once.Do(func() {
			if err := srv.Close(); err != nil {
				t.Error(err)
			}
			<-served
			if err := store.Shutdown(); err != nil {
				t.Error(err)
			}
			dom.Close()
			arena.Close()
			rec.Stop()
		})
	}
	t.Cleanup(s.stop)
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// diskDirs returns a directory to serve and one for state, on a disk.
func diskDirs(t testing.TB) (dir, state string) {
	t.Helper()
	top, err := os.MkdirTemp("/var/tmp", "nfsserver-test-")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(top) })
	dir, state = filepath.Join(top, "data"), filepath.Join(top, "state")
	check(t, os.Mkdir(dir, 0o777))
	check(t, os.Mkdir(state, 0o700))
	check(t, os.Chmod(dir, 0o777))
	return dir, state
}

// Several clients write much more than there is memory, as unstable WRITEs with
// many outstanding, commit it, and find it in the directory and by READ.
func TestStoreUnderPressure(t *testing.T) {
	dir, state := diskDirs(t)
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0")
	var wg sync.WaitGroup
	for i := range uint64(3) {
		wg.Go(func() { copyThroughStore(t, s, i) })
	}
	wg.Wait()
	if st := s.arena.Stats(); st.SlowPath == 0 {
		t.Error("memory was never short: the test tests nothing")
	}
	s.stop()
	if free, total := s.arena.Free(), s.arena.Total(); free != total {
		t.Errorf("%d pages are still in use", total-free)
	}
}

func copyThroughStore(t *testing.T, s *storeServer, seed uint64) {
	const size, chunk = 24 << 20, 128 << 10
	want := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{byte(seed)})
	rnd.Read(want)
	name := string(rune('a' + seed))
	c := dial(t, s.addr)
	var made nfs3.CreateResult
	c.call(nfs3.ProcCreate, &nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: c.root(), Name: []byte(name)},
		Set: vfs.SetAttr{SetMode: true, Mode: 0o600}}, &made)
	if made.Status != nfs3.StatusOK {
		t.Error("CREATE:", made.Status)
		return
	}
	h := made.Handle.Handle
	verf, ok := writeAll(c, h, want, chunk)
	var com nfs3.CommitResult
	c.call(nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, &com)
	if !ok || com.Status != nfs3.StatusOK || com.Verf != verf {
		t.Errorf("COMMIT: %+v, verifier of WRITE %v", com, verf)
	}
	if got, err := os.ReadFile(filepath.Join(s.dir, name)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes on disk after COMMIT, %v", name, len(got), err)
	}
	for off := 0; off < size; off += chunk {
		if _, got := c.read(h, uint64(off), chunk); !bytes.Equal(got, want[off:off+chunk]) {
			t.Errorf("%s: READ at %d differs", name, off)
			return
		}
	}
}

// writeAll writes data with 16 WRITEs outstanding; false if one failed.
func writeAll(c *rpcClient, h nfs3.FileHandle, data []byte, chunk int) (verf vfs.Verifier, ok bool) {
	ok = true
	var replies []chan []byte
	finish := func() {
		var res nfs3.WriteResult
		d := c.must(replies[0])
		replies = replies[1:]
		if err := res.Decode(d); err != nil || res.Status != nfs3.StatusOK || int(res.Count) != chunk {
			c.t.Errorf("WRITE: %v, %v, %d bytes", err, res.Status, res.Count)
			ok = false
		}
		verf = res.Verf
	}
	for off := 0; off < len(data); off += chunk {
		replies = append(replies, c.start(nfs3.Program, nfs3.ProcWrite,
			&nfs3.WriteArgs{Handle: h, Offset: uint64(off), Count: uint32(chunk)}, data[off:off+chunk]))
		if len(replies) == 16 {
			finish()
		}
	}
	for len(replies) > 0 {
		finish()
	}
	return verf, ok
}

// A handle means the same file after the server has been started again.
func TestHandlesOutliveTheServer(t *testing.T) {
	dir, state := diskDirs(t)
	check(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644))
	one := serveStore(t, dir, state, 16<<20, "127.0.0.1:0")
	c := dial(t, one.addr)
	root, file := c.root(), c.file("file")
	c.close()
	one.stop()
	two := serveStore(t, dir, state, 16<<20, one.addr)
	c = dial(t, two.addr)
	if _, got := c.read(file, 0, 100); string(got) != "content" {
		t.Errorf("READ with the old handle: %q", got)
	}
	if got := c.root(); got != root {
		t.Error("the root has another handle")
	}
	if res := c.lookup(root, "file"); res.Handle != file {
		t.Error("the file has another handle")
	}
}

// Users are who they say, as far as the kernel lets them.
func TestStoreRights(t *testing.T) {
	dir, state := diskDirs(t)
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0")
	c := dial(t, s.addr)
	c.cred = sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: sunrpc.AuthSysCred{UID: 1234, GID: 2345}}
	root := c.root()
	var made nfs3.CreateResult
	c.call(nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: nfs3.DirOpArgs{Dir: root, Name: []byte("mine")},
		Set: vfs.SetAttr{SetMode: true, Mode: 0o700}}, &made)
	if made.Status != nfs3.StatusOK || made.Attr.Attr.UID != 1234 || made.Attr.Attr.GID != 2345 {
		t.Fatalf("MKDIR: %+v", made)
	}
	c.cred.Sys.UID = 99
	if res := c.lookup(made.Handle.Handle, "x"); res.Status != nfs3.StatusAcces {
		t.Errorf("LOOKUP by somebody else: %v", res.Status)
	}
	if names, _, st := c.listPlus(root, 8192, 8192); st != nfs3.StatusOK || len(names) != 3 {
		t.Errorf("READDIRPLUS: %v, %q", st, names)
	}
}

func BenchmarkStoreRead256K(b *testing.B)  { benchmarkStore(b, "READ", 256<<10) }
func BenchmarkStoreWrite256K(b *testing.B) { benchmarkStore(b, "WRITE", 256<<10) }
func BenchmarkStoreWrite4K(b *testing.B)   { benchmarkStore(b, "WRITE", 4096) }
func BenchmarkStoreGetAttr(b *testing.B)   { benchmarkStore(b, "GETATTR", 4096) }
func BenchmarkStoreLookup(b *testing.B)    { benchmarkStore(b, "LOOKUP", 4096) }

// benchmarkStore is benchmark on the real store; the pages stay in its cache.
func benchmarkStore(b *testing.B, name string, size int) {
	dir, state := diskDirs(b)
	check(b, os.WriteFile(filepath.Join(dir, "file"), pattern(size), 0o666))
	s := serveStore(b, dir, state, 64<<20, "127.0.0.1:0")
	benchmarkAt(b, s.addr, name, size, 16)
}
