package nfsserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// gate holds calls up until it is opened.
type gate struct {
	entered chan struct{} // gets a value for each call that arrives
	open    chan struct{}
	once    sync.Once
}

func newGate(t *testing.T) *gate {
	g := &gate{entered: make(chan struct{}, 1000), open: make(chan struct{})}
	t.Cleanup(g.release)
	return g
}

func (g *gate) wait(*vfs.Op) error {
	g.entered <- struct{}{}
	<-g.open
	return nil
}

func (g *gate) release() { g.once.Do(func() { close(g.open) }) }

// must returns the decoder of a reply that has to come.
func (c *rpcClient) must(ch chan []byte) *xdr.Decoder {
	c.t.Helper()
	d, err := c.wait(ch)
	if err != nil {
		c.t.Fatal(err)
	}
	return d
}

func (c *rpcClient) startGetattr(h nfs3.FileHandle) chan []byte {
	return c.start(nfs3.Program, nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, nil)
}

func (c *rpcClient) startRead(h nfs3.FileHandle, n uint32) chan []byte {
	return c.start(nfs3.Program, nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Count: n}, nil)
}

func (c *rpcClient) startWrite(h nfs3.FileHandle, data []byte) chan []byte {
	return c.start(nfs3.Program, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: uint32(len(data))}, data)
}

// One call that takes its time holds up no other of its connection.
func TestRepliesOutOfOrder(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", pattern(10))
	c := dial(t, f.addr)
	h := c.file("file")
	g := newGate(t)
	f.fs.onRead.set(g.wait)
	read := c.startRead(h, 10)
	<-g.entered
	var others []chan []byte
	for range 8 {
		others = append(others, c.startGetattr(h))
	}
	for _, ch := range others {
		c.must(ch)
	}
	select {
	case <-read:
		t.Error("READ was answered before it could be")
	default:
	}
	g.release()
	c.must(read)
}

// dialFrom connects from one of this host's many loop-back addresses.
func dialFrom(t *testing.T, from, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// Connections that send a byte now and then hold up nobody else, however many.
func TestDribble(t *testing.T) {
	f := serve(t, func(c *Config) { c.Slots, c.Workers = 16, 4 })
	f.fs.put(t, rootNode, "file", pattern(10))
	c := dial(t, f.addr)
	h := c.file("file")
	head := sunrpc.Call{XID: 7, Prog: nfs3.Program, Vers: nfs3.Version, Proc: nfs3.ProcGetAttr, Cred: rootCred()}
	rec := callRecord(&head, &nfs3.GetAttrArgs{Handle: h}, nil)
	var slow []net.Conn
	for range 3 * 16 {
		nc := dialFrom(t, "127.0.0.1", f.addr)
		slow = append(slow, nc)
	}
	for i := range len(rec) - 1 {
		for _, nc := range slow {
			nc.Write(rec[i : i+1])
		}
		c.getattr(h)
	}
	eventually(t, "no slot is taken by a call that is not complete", func() bool { return f.srv.Stats().InFlight == 0 })
	for _, nc := range slow {
		nc.Write(rec[len(rec)-1:])
		if _, err := readRecord(nc); err != nil {
			t.Error(err)
		}
	}
}

// only127001 takes clients for local that come from 127.0.0.1.
type only127001 struct{}

func (only127001) IsLocal(peer, _ netip.Addr) bool { return peer.String() == "127.0.0.1" }

// WRITEs whose data does not come take no more than their share of the memory,
// and none of what is kept for clients on this host; then they are given up.
func TestDribbledPayload(t *testing.T) {
	const size = 512 << 10
	f := serve(t, func(c *Config) {
		c.Locality = only127001{}
		c.ReceiveTimeout = 500 * time.Millisecond
	})
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	head := sunrpc.Call{XID: 7, Prog: nfs3.Program, Vers: nfs3.Version, Proc: nfs3.ProcWrite, Cred: rootCred()}
	rec := callRecord(&head, &nfs3.WriteArgs{Handle: h, Count: size}, pattern(size))
	var slow []net.Conn
	for range 40 {
		nc := dialFrom(t, "127.0.0.2", f.addr)
		nc.Write(rec[:headLimit+100])
		slow = append(slow, nc)
	}
	limit := f.srv.adm.limit.bytes
	eventually(t, "the ordinary share is used up", func() bool { return f.srv.Stats().PayloadBytes > limit/4*3-size })
	if n := f.srv.Stats().PayloadBytes; n > limit/4*3 {
		t.Errorf("%d bytes of payload, the limit for ordinary clients is %d", n, limit/4*3)
	}
	if res := c.write(nfs3.WriteArgs{Handle: h}, pattern(size)); res.Status != nfs3.StatusOK {
		t.Errorf("WRITE of a local client: %v", res.Status)
	}
	for _, nc := range slow {
		nc.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := readRecord(nc); err == nil || errors.Is(err, errTimeout(err)) {
			t.Errorf("a slow WRITE was not given up: %v", err)
		}
	}
	eventually(t, "all are counted", func() bool { return f.srv.Stats().Timeouts == uint64(len(slow)) })
}

// errTimeout returns err if it is a missed deadline.
func errTimeout(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return err
	}
	return errors.New("something else")
}

// Whatever comes instead of a record closes that connection and no other.
func TestDamagedRecords(t *testing.T) {
	word := func(vs ...uint32) []byte {
		var b []byte
		for _, v := range vs {
			b = binary.BigEndian.AppendUint32(b, v)
		}
		return b
	}
	const last = 1 << 31
	h := sunrpc.Call{XID: 1, Prog: nfs3.Program, Vers: 3}
	call := callRecord(&h, nil, nil)
	for name, bytes := range map[string][]byte{
		"too long":             word(last | 1<<30),
		"too long by one":      word(last | uint32(headLimit+2<<20+1)),
		"fragments too long":   append(append(word(1<<20), make([]byte, 1<<20)...), word(last|2<<20)...),
		"no length":            word(last),
		"empty fragment":       word(0),
		"many small fragments": bytesRepeat(append(word(1), 'x'), 100),
		"a reply":              word(last|24, 1, 1, 0, 0, 0, 0),
		"too short":            word(last|4, 1),
		"HTTP":                 []byte("GET / HTTP/1.1\r\nHost: example\r\n\r\n"),
		"another message type": word(last|24, 1, 2, 0, 0, 0, 0),
		"behind a good call":   append(call[:len(call):len(call)], word(last)...),
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, nil)
			c := dial(t, f.addr)
			root := c.root()
			bad := dialFrom(t, "127.0.0.1", f.addr)
			bad.Write(bytes)
			bad.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, err := io.Copy(io.Discard, bad)
			if err != nil && errTimeout(err) == err {
				t.Fatal("the connection stays open")
			}
			eventually(t, "the connection is counted", func() bool { return f.srv.Stats().BadRecords == 1 })
			eventually(t, "the log tells the peer and the reason", func() bool {
				got := f.logs.String()
				return strings.Contains(got, bad.LocalAddr().String()) && strings.Contains(got, "damaged record")
			})
			c.getattr(root)
		})
	}
}

func bytesRepeat(b []byte, n int) []byte { return bytes.Repeat(b, n) }

// What is wrong with a call is said as RFC 5531 has it, and the connection stays.
func TestRefusedCalls(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	nc := dialFrom(t, "127.0.0.1", f.addr)
	good := sunrpc.Call{XID: 5, Prog: nfs3.Program, Vers: 3, Proc: nfs3.ProcNull, Cred: rootCred()}
	with := func(change func(*sunrpc.Call)) []byte {
		h := good
		change(&h)
		return callRecord(&h, nil, nil)
	}
	patch := func(off int, v uint32) []byte {
		b := callRecord(&good, nil, nil)
		binary.BigEndian.PutUint32(b[4+off:], v)
		return b
	}
	writeWith := func(change func([]byte) []byte) []byte {
		h2 := good
		h2.Proc = nfs3.ProcWrite
		b := change(callRecord(&h2, &nfs3.WriteArgs{Handle: h, Count: 8}, pattern(8)))
		binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
		return b
	}
	for _, x := range []struct {
		name string
		rec  []byte
		want error
	}{
		{"RPC version", patch(8, 3), sunrpc.ErrRPCMismatch},
		{"program", with(func(h *sunrpc.Call) { h.Prog = 100227 }), sunrpc.ProgUnavail},
		{"version", with(func(h *sunrpc.Call) { h.Vers = 4 }), sunrpc.ProgMismatch},
		{"MOUNT version", with(func(h *sunrpc.Call) { h.Prog, h.Vers = nfs3.MountProgram, 1 }), sunrpc.ProgMismatch},
		{"procedure", with(func(h *sunrpc.Call) { h.Proc = 22 }), sunrpc.ProcUnavail},
		{"MOUNT procedure", with(func(h *sunrpc.Call) { h.Prog, h.Proc = nfs3.MountProgram, 6 }), sunrpc.ProcUnavail},
		{"flavour", patch(24, 6), sunrpc.AuthTooWeak},
		{"credential length", patch(28, 401), sunrpc.AuthBadCred},
		{"credential body", patch(36, 256), sunrpc.AuthBadCred},
		{"no arguments", with(func(h *sunrpc.Call) { h.Proc = nfs3.ProcGetAttr }), sunrpc.GarbageArgs},
		{"MNT without path", with(func(h *sunrpc.Call) { h.Prog, h.Proc = nfs3.MountProgram, nfs3.MountProcMnt }), sunrpc.GarbageArgs},
		{"UMNT without path", with(func(h *sunrpc.Call) { h.Prog, h.Proc = nfs3.MountProgram, nfs3.MountProcUmnt }), sunrpc.GarbageArgs},
		{"WRITE with too little data", writeWith(func(b []byte) []byte { return b[:len(b)-4] }), sunrpc.GarbageArgs},
		{"WRITE with two counts", writeWith(func(b []byte) []byte { b[len(b)-9]++; return b }), sunrpc.GarbageArgs},
		{"nothing", callRecord(&good, nil, nil), nil},
	} {
		nc.Write(x.rec)
		rec, err := readRecord(nc)
		if err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		d := xdr.NewDecoder(rec)
		rep, err := sunrpc.DecodeReply(&d)
		if !errors.Is(err, x.want) || rep.XID != good.XID {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
		if err == sunrpc.ProgMismatch && (rep.Low != 3 || rep.High != 3) {
			t.Errorf("%s: versions %d to %d", x.name, rep.Low, rep.High)
		}
	}
}

// The time limit for the data of a WRITE ends with it, also if it was too little.
func TestTimeLimitEnds(t *testing.T) {
	const limit = 50 * time.Millisecond
	f := serve(t, func(c *Config) { c.ReceiveTimeout = limit })
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	_, err := c.try(nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: 9}, pattern(4), nil)
	if err != sunrpc.GarbageArgs {
		t.Errorf("WRITE with too little data: %v", err)
	}
	time.Sleep(2 * limit) // idle, which has no limit
	c.write(nfs3.WriteArgs{Handle: h}, pattern(4))
	time.Sleep(2 * limit)
	c.getattr(h)
}

// A record in many fragments is a call like any other.
func TestFragments(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	data := pattern(5000)
	head := sunrpc.Call{XID: 1, Prog: nfs3.Program, Vers: 3, Proc: nfs3.ProcWrite, Cred: rootCred()}
	rec := callRecord(&head, &nfs3.WriteArgs{Handle: h, Count: 5000}, data)[4:]
	var out []byte
	for len(rec) > 0 {
		n := min(97, len(rec))
		mark := uint32(n)
		if n == len(rec) {
			mark |= 1 << 31
		}
		out = append(binary.BigEndian.AppendUint32(out, mark), rec[:n]...)
		rec = rec[n:]
	}
	nc := dialFrom(t, "127.0.0.1", f.addr)
	nc.Write(out)
	if _, err := readRecord(nc); err != nil {
		t.Fatal(err)
	}
	if _, got := c.read(h, 0, 10000); !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived, not as they were sent", len(got))
	}
}

// A client that does not read its replies holds up no worker, and is closed
// after a time.
func TestSlowReader(t *testing.T) {
	f := serve(t, func(c *Config) { c.Workers, c.SendTimeout = 1, 3*time.Second })
	f.fs.put(t, rootNode, "file", pattern(1<<20))
	c := dial(t, f.addr)
	h := c.file("file")
	deaf := dialFrom(t, "127.0.0.1", f.addr)
	for i := range 40 {
		head := sunrpc.Call{XID: uint32(i), Prog: nfs3.Program, Vers: 3, Proc: nfs3.ProcRead, Cred: rootCred()}
		deaf.Write(callRecord(&head, &nfs3.ReadArgs{Handle: h, Count: 1 << 20}, nil))
	}
	// A call may be in the queue at any one look: what is stuck stays.
	var last Stats
	eventually(t, "replies are stuck", func() bool {
		st := f.srv.Stats()
		same := st.InFlight == last.InFlight && st.PayloadBytes == last.PayloadBytes
		last = st
		return same && st.PayloadBytes > 0 && st.Busy == 0
	})
	if limit := f.srv.adm.limit.bytes; last.PayloadBytes > limit {
		t.Errorf("%d bytes are held for replies, the limit is %d", last.PayloadBytes, limit)
	}
	began := time.Now()
	for range 100 {
		c.getattr(h)
	}
	if f.srv.Stats().InFlight == 0 {
		t.Fatal("no reply was stuck any more")
	}
	if d := time.Since(began); d > 2500*time.Millisecond {
		t.Errorf("100 calls took %v while another client did not read", d)
	}
	eventually(t, "the slow connection is closed", func() bool { return f.srv.Stats().Conns == 1 })
	eventually(t, "it is counted", func() bool { return f.srv.Stats().Timeouts == 1 })
	c.getattr(h)
}

// A connection takes its share of slots and memory and then is not read.
func TestBackPressure(t *testing.T) {
	const size = 256 << 10
	f := serve(t, func(c *Config) { c.Workers, c.Slots, c.Locality = 48, 64, NeverLocal{} })
	f.fs.put(t, rootNode, "file", pattern(size))
	g := newGate(t)
	limit := f.srv.adm.limit.bytes
	for i := range int64(3) {
		c := dial(t, f.addr)
		h := c.file("file")
		f.fs.onWrite.set(g.wait)
		go func() { // the kernel's buffers do not hold them all
			for range 40 {
				c.startWrite(h, pattern(size))
			}
		}()
		eventually(t, "writes are in progress", func() bool { return len(g.entered) >= int(i+1)*6 })
	}
	if n := f.srv.Stats().PayloadBytes; n > limit/4*3 {
		t.Errorf("%d bytes of payload are in flight, the limit is %d", n, limit)
	}
	eventually(t, "a reader is seen to wait", func() bool {
		return slices.Contains(f.graph.Waits(), "server: WRITE waits for room for its data")
	})
	f.srv.mu.Lock()
	f.srv.adm.mu.Lock()
	for c := range f.srv.conns {
		if c.usage.bytes > limit/2 {
			t.Errorf("a connection has %d of %d bytes", c.usage.bytes, limit)
		}
	}
	f.srv.adm.mu.Unlock()
	f.srv.mu.Unlock()
	other := dial(t, f.addr)
	for range 100 {
		other.getattr(other.root()) // nobody else is disturbed
	}
	g.release()
	eventually(t, "all is written", func() bool { return f.srv.Stats().Calls[nfs3.ProcWrite] == 120 })
}

func TestSlotShare(t *testing.T) {
	f := serve(t, func(c *Config) { c.Workers, c.Slots = 4, 16 })
	root := dial(t, f.addr).root()
	g := newGate(t)
	f.fs.onGetAttr.set(g.wait)
	a, b := dial(t, f.addr), dial(t, f.addr)
	var replies []chan []byte
	for range 100 {
		replies = append(replies, a.startGetattr(root))
	}
	eventually(t, "half of the slots are used", func() bool { return f.srv.Stats().InFlight == 8 })
	replies = append(replies, b.startGetattr(root))
	eventually(t, "another connection gets a slot", func() bool { return f.srv.Stats().InFlight == 9 })
	g.release()
	for _, ch := range replies {
		a.must(ch)
	}
}

// A client that has sent its last call still gets its replies.
func TestHalfClose(t *testing.T) {
	f := serve(t, nil)
	f.fs.put(t, rootNode, "file", pattern(100))
	h := dial(t, f.addr).file("file")
	g := newGate(t)
	f.fs.onRead.set(g.wait)
	nc := dialFrom(t, "127.0.0.1", f.addr)
	for i := range 5 {
		head := sunrpc.Call{XID: uint32(i), Prog: nfs3.Program, Vers: 3, Proc: nfs3.ProcRead, Cred: rootCred()}
		nc.Write(callRecord(&head, &nfs3.ReadArgs{Handle: h, Count: 100}, nil))
	}
	nc.(*net.TCPConn).CloseWrite()
	for range 5 {
		<-g.entered
	}
	g.release()
	for range 5 {
		if _, err := readRecord(nc); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readRecord(nc); err != io.EOF {
		t.Errorf("after the last reply: %v", err)
	}
}

func TestTooManyConnections(t *testing.T) {
	f := serve(t, func(c *Config) { c.MaxConns = 2 })
	a, b := dial(t, f.addr), dial(t, f.addr)
	a.root()
	b.root()
	third := dialFrom(t, "127.0.0.1", f.addr)
	if _, err := readRecord(third); err == nil || errTimeout(err) == err {
		t.Errorf("a third connection: %v", err)
	}
	if st := f.srv.Stats(); st.Refused != 1 || st.Conns != 2 {
		t.Errorf("%+v", st)
	}
	if !strings.Contains(f.logs.String(), "too many") {
		t.Error("nothing in the log")
	}
	b.close()
	eventually(t, "there is room again", func() bool { return f.srv.Stats().Conns == 1 })
	dial(t, f.addr).root()
}

// Idle connections, however many, keep nobody out, and nobody who works is closed.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	f := serve(t, func(c *Config) { c.MaxConns = 8 })
	f.fs.put(t, rootNode, "file", pattern(10))
	busy := dial(t, f.addr)
	h := busy.file("file")
	g := newGate(t)
	f.fs.onRead.set(g.wait)
	read := busy.startRead(h, 10)
	<-g.entered
	for range 7 {
		dialFrom(t, "127.0.0.1", f.addr).Write([]byte{0x80})
	}
	eventually(t, "all are there", func() bool { return f.srv.Stats().Conns == 8 })
	time.Sleep(minIdle)
	for range 20 {
		c := dial(t, f.addr)
		c.getattr(h)
		c.close()
	}
	g.release()
	busy.must(read)
	if st := f.srv.Stats(); st.Refused != 0 {
		t.Errorf("%+v", st)
	}
	if !strings.Contains(f.logs.String(), "to make room") {
		t.Error("nothing in the log")
	}
}

// A panic costs one call.
func TestPanic(t *testing.T) {
	f := serve(t, func(c *Config) { c.Workers = 1 })
	f.fs.put(t, rootNode, "file", nil)
	c := dial(t, f.addr)
	h := c.file("file")
	f.fs.onWrite.set(func(*vfs.Op) error { panic("oh no") })
	if _, err := c.try(nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: 9}, pattern(9), nil); err != sunrpc.SystemErr {
		t.Errorf("WRITE: %v", err)
	}
	if got := f.logs.String(); !strings.Contains(got, "oh no") || !strings.Contains(got, "memfs_test.go") {
		t.Errorf("the log has no stack: %s", got)
	}
	c.getattr(h)
	if n := f.srv.Stats().Panics; n != 1 {
		t.Errorf("%d panics counted", n)
	}
}

// What the kernel keeps for a client on this host does not grow with what it sends.
func TestBuffersOfLocalClients(t *testing.T) {
	f := serve(t, nil)
	dial(t, f.addr).root()
	f.srv.mu.Lock()
	defer f.srv.mu.Unlock()
	for c := range f.srv.conns {
		raw, err := c.nc.SyscallConn()
		check(t, err)
		for opt, limit := range map[int]string{unix.SO_SNDBUF: "wmem_max", unix.SO_RCVBUF: "rmem_max"} {
			text, err := os.ReadFile("/proc/sys/net/core/" + limit)
			check(t, err)
			unforced, err := strconv.Atoi(strings.TrimSpace(string(text)))
			check(t, err)
			n := 0
			check(t, raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, opt) }))
			if err != nil || n != 2*localBuffer && n != 2*min(localBuffer, unforced) {
				t.Errorf("option %d is %d: %v", opt, n, err)
			}
		}
	}
}

// batchFS tells what numbers the calls have.
type batchFS struct {
	*memFS
	seen chan uint64
}

func (*batchFS) HeedsNoWait() {}

func (b *batchFS) GetAttr(op *vfs.Op, node vfs.NodeID, a *vfs.Attr) error {
	b.seen <- op.Batch
	return b.memFS.GetAttr(op, node, a)
}

// What arrives together has one number, what is sent later a larger one, on any connection.
func TestBatches(t *testing.T) {
	b := &batchFS{seen: make(chan uint64, 8)}
	f := serve(t, func(c *Config) {
		b.memFS = c.Exports[0].FS.(*memFS)
		c.Exports[0].FS = b
	})
	root := dial(t, f.addr).root()
	last := uint64(0)
	for range 3 {
		nc := dialFrom(t, "127.0.0.1", f.addr)
		for xid := uint32(1); xid < 9; xid += 4 {
			var calls []byte
			for i := range uint32(4) {
				calls = append(calls, nfsCall(xid+i, nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: root}, nil)...)
			}
			_, err := nc.Write(calls)
			check(t, err)
			number := <-b.seen
			for range 3 {
				if n := <-b.seen; n != number {
					t.Errorf("calls of one segment have the numbers %d and %d", number, n)
				}
			}
			if number <= last {
				t.Errorf("number %d after %d", number, last)
			}
			last = number
		}
	}
}

// slowFS takes some time for each GETATTR, on the reader, and for the last waits until done.
type slowFS struct {
	*memFS
	calls atomic.Int32
	last  atomic.Int32
	done  chan struct{}
}

func (*slowFS) HeedsNoWait() {}

func (s *slowFS) GetAttr(op *vfs.Op, node vfs.NodeID, a *vfs.Attr) error {
	time.Sleep(10 * earlyAfter)
	if s.calls.Add(1) == s.last.Load() {
		select {
		case <-s.done:
		case <-time.After(10 * time.Second):
			return vfs.ErrJukebox
		}
	}
	return s.memFS.GetAttr(op, node, a)
}

// Replies leave while the reader carries out what came with their calls.
func TestRepliesLeaveEarly(t *testing.T) {
	s := &slowFS{done: make(chan struct{})}
	f := serve(t, func(c *Config) {
		s.memFS = c.Exports[0].FS.(*memFS)
		c.Exports[0].FS = s
	})
	root := dial(t, f.addr).root()
	s.last.Store(s.calls.Load() + 4)
	nc := dialFrom(t, "127.0.0.1", f.addr)
	var calls []byte
	for i := range uint32(4) {
		calls = append(calls, nfsCall(1+i, nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: root}, nil)...)
	}
	_, err := nc.Write(calls)
	check(t, err)
	check(t, nc.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err = nc.Read(make([]byte, 1))
	check(t, err)
	close(s.done)
}

func TestWhenRepliesLeave(t *testing.T) {
	for _, a := range []struct {
		name  string
		since int64
		data  int
		early bool
	}{
		{"the first", 0, earlyData - 1, false},
		{"little data, not for long", 100, earlyData - 1, false},
		{"much data", 100, earlyData, true},
		{"long at work", 100 - 1, 0, true},
	} {
		c := &conn{unsentSince: a.since, unsentData: a.data, early: earlyAfter}
		c.sendEarly(100 + earlyAfter)
		if got := c.unsentData == 0 && c.unsentSince == 100+earlyAfter; got != a.early {
			t.Errorf("%s: replies leave: %v", a.name, got)
		}
	}
}

// Calls that take long each are not answered one by one, until the reader has rested.
func TestRepliesWaitLongerEachTime(t *testing.T) {
	c := &conn{srv: &Server{}, early: earlyAfter}
	leave := func(now int64) bool {
		c.unsentData = 1
		c.sendEarly(now)
		return c.unsentData == 0
	}
	for range 2 {
		now := int64(1)
		leave(now)
		for _, wait := range []int64{1, 2, 4, 8, 8} {
			if leave(now + wait*earlyAfter) {
				t.Errorf("sent after %d ns", wait*earlyAfter)
			}
			if now += wait*earlyAfter + 1; !leave(now) {
				t.Errorf("not sent after %d ns", wait*earlyAfter+1)
			}
		}
		c.rest()
	}
}
