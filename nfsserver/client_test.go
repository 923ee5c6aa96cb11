package nfsserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"loopnfs/alloc"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/xdr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a server with one export, /data, on memFS.
type fixture struct {
	*testing.T
	srv   *Server
	fs    *memFS
	arena *alloc.Arena
	graph *waitfor.Graph
	addr  string
	logs  *logBuffer
}

// serve starts a server; change may change its configuration.
func serve(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{T: t, arena: newArena(t, 32<<20), graph: waitfor.New(), logs: &logBuffer{}}
	f.fs = newMemFS(f.arena)
	cfg := Config{
		Exports: []Export{{Name: "/data", FS: f.fs, Squash: SquashNone}},
		Arena:   f.arena, Graph: f.graph, Logger: f.logs.logger(),
	}
	if change != nil {
		change(&cfg)
	}
	f.srv, f.addr = start(t, cfg)
	t.Cleanup(f.checkNothingKept)
	return f
}

func start(t testing.TB, cfg Config) (*Server, string) {
	t.Helper()
	return startOn(t, cfg, "127.0.0.1:0")
}

func startOn(t testing.TB, cfg Config, listen string) (*Server, string) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, l.Addr().String()
}

// checkNothingKept is run before the server is closed.
func (f *fixture) checkNothingKept() {
	eventually(f, "no request is in flight", func() bool {
		st := f.srv.Stats()
		return st.InFlight == 0 && st.PayloadBytes == 0
	})
	if n := f.fs.references(); n != 0 {
		f.Errorf("%d nodes are still referenced", n)
	}
	if used, pages := f.arena.Total()-f.arena.Free(), f.fs.pages(); used != pages {
		f.Errorf("%d pages are in use, the files have %d", used, pages)
	}
}

// rpcClient calls procedures, many at once, over one connection.
type rpcClient struct {
	t    testing.TB
	nc   net.Conn
	cred sunrpc.Cred

	sendMu sync.Mutex

	mu      sync.Mutex
	xid     uint32
	waiting map[uint32]chan []byte
	err     error // why there will be no more replies
	ended   chan struct{}
}

func rootCred() sunrpc.Cred {
	return sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: sunrpc.AuthSysCred{Machine: []byte("here")}}
}

func dial(t testing.TB, addr string) *rpcClient {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newRPCClient(t, nc)
}

func newRPCClient(t testing.TB, nc net.Conn) *rpcClient {
	c := &rpcClient{t: t, nc: nc, cred: rootCred(), xid: rand.Uint32(), waiting: map[uint32]chan []byte{}, ended: make(chan struct{})}
	go c.receive()
	t.Cleanup(c.close)
	return c
}

func (c *rpcClient) close() {
	c.nc.Close()
	<-c.ended
}

func (c *rpcClient) receive() {
	defer close(c.ended)
	for {
		rec, err := readRecord(c.nc)
		c.mu.Lock()
		if err != nil {
			c.err = err
			for _, ch := range c.waiting {
				close(ch)
			}
			c.mu.Unlock()
			return
		}
		ch := c.waiting[binary.BigEndian.Uint32(rec)]
		delete(c.waiting, binary.BigEndian.Uint32(rec))
		c.mu.Unlock()
		if ch != nil {
			ch <- rec
		}
	}
}

func readRecord(r io.Reader) ([]byte, error) {
	var rec []byte
	for {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(mark[:])
		frag := make([]byte, n&^(1<<31))
		if _, err := io.ReadFull(r, frag); err != nil {
			return nil, err
		}
		rec = append(rec, frag...)
		if n&(1<<31) != 0 {
			return rec, nil
		}
	}
}

type encoder interface{ Encode(*xdr.Encoder) }
type decoder interface{ Decode(*xdr.Decoder) error }

// callRecord returns a complete record with a call.
func callRecord(h *sunrpc.Call, args encoder, payload []byte) []byte {
	var e xdr.Encoder
	mark := sunrpc.BeginRecord(&e)
	sunrpc.EncodeCall(&e, h)
	if args != nil {
		args.Encode(&e)
	}
	e.FixedOpaque(payload)
	sunrpc.EndRecord(&e, mark, 0)
	return e.Buf
}

// start sends a call and returns where its reply will arrive; the channel is
// closed if there will be none.
func (c *rpcClient) start(prog, proc uint32, args encoder, payload []byte) chan []byte {
	ch := make(chan []byte, 1)
	c.mu.Lock()
	c.xid++
	h := sunrpc.Call{XID: c.xid, Prog: prog, Vers: nfs3.Version, Proc: proc, Cred: c.cred}
	if c.err != nil {
		close(ch)
	} else {
		c.waiting[h.XID] = ch
	}
	c.mu.Unlock()
	rec := callRecord(&h, args, payload)
	c.sendMu.Lock()
	c.nc.Write(rec)
	c.sendMu.Unlock()
	return ch
}

// wait waits for a reply and returns its results behind the header.
func (c *rpcClient) wait(ch chan []byte) (*xdr.Decoder, error) {
	select {
	case rec, ok := <-ch:
		if !ok {
			return nil, io.ErrUnexpectedEOF
		}
		d := xdr.NewDecoder(rec)
		_, err := sunrpc.DecodeReply(&d)
		return &d, err
	case <-time.After(20 * time.Second):
		c.t.Fatal("no reply")
		return nil, nil
	}
}

// try makes one NFS call; the error is that of the RPC.
func (c *rpcClient) try(proc uint32, args encoder, payload []byte, res decoder) (*xdr.Decoder, error) {
	d, err := c.wait(c.start(nfs3.Program, proc, args, payload))
	if err == nil && res != nil {
		err = res.Decode(d)
	}
	return d, err
}

// call makes one NFS call, which must work as far as RPC is concerned.
func (c *rpcClient) call(proc uint32, args encoder, res decoder) *xdr.Decoder {
	c.t.Helper()
	d, err := c.try(proc, args, nil, res)
	if err != nil {
		c.t.Fatalf("%s: %v", nfs3.ProcName(proc), err)
	}
	return d
}

// mount calls MNT.
func (c *rpcClient) mount(path string) (nfs3.FileHandle, nfs3.MountStatus) {
	c.t.Helper()
	d, err := c.wait(c.start(nfs3.MountProgram, nfs3.MountProcMnt, &nfs3.MntArgs{Path: []byte(path)}, nil))
	var res nfs3.MntResult
	if err == nil {
		err = res.Decode(d)
	}
	if err != nil {
		c.t.Fatal("MNT:", err)
	}
	return res.Handle, res.Status
}

// root returns the handle of /data.
func (c *rpcClient) root() nfs3.FileHandle {
	c.t.Helper()
	h, st := c.mount("/data")
	if st != nfs3.MountOK {
		c.t.Fatal("MNT:", st)
	}
	return h
}

func (c *rpcClient) lookup(dir nfs3.FileHandle, name string) nfs3.LookupResult {
	c.t.Helper()
	var res nfs3.LookupResult
	c.call(nfs3.ProcLookup, &nfs3.LookupArgs{Dir: dir, Name: []byte(name)}, &res)
	return res
}

// file returns the handle of a file in the root.
func (c *rpcClient) file(name string) nfs3.FileHandle {
	c.t.Helper()
	res := c.lookup(c.root(), name)
	if res.Status != nfs3.StatusOK {
		c.t.Fatalf("LOOKUP %s: %v", name, res.Status)
	}
	return res.Handle
}

func (c *rpcClient) read(h nfs3.FileHandle, off uint64, n uint32) (nfs3.ReadResult, []byte) {
	c.t.Helper()
	var res nfs3.ReadResult
	d := c.call(nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Offset: off, Count: n}, &res)
	data := d.FixedOpaque(int(res.DataLen))
	if d.Err() != nil || d.Remaining() != 0 {
		c.t.Fatalf("READ: data: %v, %d bytes left", d.Err(), d.Remaining())
	}
	return res, data
}

func (c *rpcClient) write(a nfs3.WriteArgs, data []byte) nfs3.WriteResult {
	c.t.Helper()
	a.Count = uint32(len(data))
	var res nfs3.WriteResult
	if _, err := c.try(nfs3.ProcWrite, &a, data, &res); err != nil {
		c.t.Fatal("WRITE:", err)
	}
	return res
}

func (c *rpcClient) getattr(h nfs3.FileHandle) nfs3.GetAttrResult {
	c.t.Helper()
	var res nfs3.GetAttrResult
	c.call(nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, &res)
	return res
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// logBuffer keeps what a server logs.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func sunrpcNone() sunrpc.Cred { return sunrpc.Cred{} }
