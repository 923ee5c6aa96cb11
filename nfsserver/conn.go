package nfsserver

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/xdr"
)

var (
	// errDrain ends a reader that has to stop because the server closes.
	errDrain = errors.New("nfsserver: server closes")
	// errNotCall ends a connection that sends something else than calls.
	errNotCall = fmt.Errorf("%w: not a call", sunrpc.ErrBadRecord)
	// errReplaced ends a reader that was late: there is another.
	errReplaced = errors.New("nfsserver: the connection has another reader")
)

// conn is one connection. Its reader receives calls and queues them; replies are
// sent by whoever has one, see send.go.
type conn struct {
	srv    *Server
	client *client
	nc     *net.TCPConn
	stream *sunrpc.Stream
	peer   netip.AddrPort
	here   netip.Addr // what the client has connected to
	place  place

	done      chan struct{} // closed when nobody waits for replies any more
	abortOnce sync.Once
	inflight  sync.WaitGroup // requests that have a slot
	lastCall  atomic.Int64   // or its start, in ns since the server's

	usage  usage // guarded by admission.mu
	remote bool  // it is counted so, since usage was idle; guarded by admission.mu

	// Owned by the reader.
	own       []byte // its read buffer, while it has a larger one
	recordLen int    // bytes of the last record, or its first fragment
	batch     uint64 // of the calls that arrived with the last
	reads     uint64 // Stream.Reads when it began
	pause     int    // calls that it must not be lent to
	lentFor   int64  // ns that it was lent, since it rested
	lends     uint64 // those that it was lent to

	unsentSince int64 // when it began with calls whose replies may not be sent, or 0
	unsentData  int   // bytes of data in these replies, but for large ones
	early       int64 // how long after unsentSince they are, in ns

	lent atomic.Uint64 // the one that it is lent to, or 0: see lending

	// Owned by the reader: the call that it receives.
	task   *waitfor.Task
	call   sunrpc.Call
	in     *receipt // nil while there is none
	charge int64    // bytes that admission has counted for it

	out sendQueue
}

func newConn(s *Server, nc *net.TCPConn) (*conn, error) {
	stream, err := sunrpc.NewStream(nc, make([]byte, streamBuf))
	if err != nil {
		return nil, err
	}
	stream.Gate(s.cfg.Holds)
	peer, here := addrPort(nc.RemoteAddr()), addrPort(nc.LocalAddr())
	c := &conn{
		srv: s, nc: nc, stream: stream, peer: peer,
		client: &client{id: s.count.accepted.Add(1), addr: identity(peer.Addr(), here.Addr()), port: peer.Port(), nc: nc},
		here:   here.Addr(),
		early:  earlyAfter,
		done:   make(chan struct{}),
		task:   s.cfg.Graph.NewTask("server"),
		out:    sendQueue{wake: make(chan struct{}, 1)},
	}
	c.lastCall.Store(s.uptime())
	gen := s.generation()
	c.place.set(gen, s.cfg.Locality.IsLocal(peer.Addr(), here.Addr()))
	return c, c.setOptions()
}

// setOptions has the kernel notice peers that are gone.
func (c *conn) setOptions() error {
	err := c.nc.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4,
	})
	if err != nil {
		return err
	}
	ms := int(c.srv.cfg.SendTimeout / time.Millisecond)
	ctlErr := c.control(func(fd int) {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms)
		if c.isLocal() {
			boundBuffers(fd)
		}
	})
	return errors.Join(ctlErr, err)
}

// localBuffer is how many bytes of calls, and of replies, the kernel keeps for a client
// on this host at most; it takes twice that for its own records. Left to itself, TCP lets
// them grow to 4 MiB and 6 MiB: memory that is not there when a client's pages fill it.
const localBuffer = 512 << 10

// boundBuffers gives the socket buffers of a fixed size. Without CAP_NET_ADMIN they are
// smaller (net.core.wmem_max), which is as good.
func boundBuffers(fd int) {
	for force, plain := range map[int]int{unix.SO_SNDBUFFORCE: unix.SO_SNDBUF, unix.SO_RCVBUFFORCE: unix.SO_RCVBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, localBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, localBuffer)
		}
	}
}

// run serves the connection until it ends, or the reader is replaced: then it returns
// false. After an orderly end the requests in progress get their replies.
func (c *conn) run() bool {
	c.flush() // what the reader before has left
	err := c.receiveAll()
	if err == errReplaced {
		return false
	}
	c.rest()
	c.returnBuffer()
	if err != io.EOF && err != errDrain {
		c.abort(err)
	}
	c.inflight.Wait()
	c.srv.dups.ends(c.client)
	c.abort(nil)
	close(c.out.wake)
	return true
}

// abort ends the connection at once: nobody waits for replies any more. err is
// the reason, nil if there is nothing to say.
func (c *conn) abort(err error) {
	c.abortOnce.Do(func() {
		close(c.done)
		c.nc.Close()
		c.report(err)
	})
}

// report tells the operator of connections that end for a reason that the peer
// is to blame for.
func (c *conn) report(err error) {
	switch {
	case err == nil:
	case errors.Is(err, sunrpc.ErrBadRecord):
		c.srv.count.badRecords.Add(1)
		c.srv.noise.warn("connection closed: damaged record", "peer", c.peer.String(), "err", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.srv.count.timeouts.Add(1)
		c.srv.noise.warn("connection closed: the peer is too slow", "peer", c.peer.String(), "err", err)
	default:
		c.srv.cfg.Logger.Debug("connection lost", "peer", c.peer.String(), "err", err)
	}
}

// receiveAll receives calls until the connection or the server ends.
func (c *conn) receiveAll() error {
	for {
		if !c.stream.Ready() {
			c.rest()
			c.fitBuffer()
		}
		if c.srv.closing.Load() {
			return errDrain
		}
		if err := c.stream.BeginRecord(c.srv.recordLimit); err != nil {
			return c.drained(err)
		}
		now := c.srv.uptime()
		c.lastCall.Store(now)
		c.sendEarly(now)
		c.recordLen, _ = c.stream.RecordRemaining()
		if c.in == nil {
			c.in = c.srv.receipts.take()
		}
		if err := c.receive(); err != nil {
			return c.drained(err)
		}
	}
}

// rest gives up what the reader needs for calls only. The replies are on their way.
func (c *conn) rest() {
	c.flush()
	c.unsentSince, c.unsentData, c.early = 0, 0, earlyAfter
	c.lentFor = 0
	if c.in != nil {
		c.srv.receipts.put(c.in)
		c.in = nil
	}
}

// Replies leave before the reader rests if it has been at work for longer than earlyAfter, in
// ns, or if there are more than earlyData bytes of data with them: a client with many calls
// outstanding goes on while we carry out the rest of them. It has something to do then, so the
// next wait is twice as long, up to earlyMax: calls that take long would be answered one by one.
const (
	earlyAfter = 50_000
	earlyMax   = 8 * earlyAfter
	earlyData  = 32 << 10
)

// sendEarly sends the replies that are there if it is time. now is the time of the server.
func (c *conn) sendEarly(now int64) {
	switch {
	case c.unsentSince == 0:
		c.unsentSince = now
	case now-c.unsentSince > c.early || c.unsentData >= earlyData:
		c.flush()
		c.unsentSince, c.unsentData, c.early = now, 0, min(2*c.early, earlyMax)
	}
}

// minIdle is how long a connection must have had nothing to do before it is closed for
// another one.
const minIdle = time.Second

// idleTime returns how long ago a call began to arrive.
func (c *conn) idleTime() time.Duration {
	return time.Duration(c.srv.uptime() - c.lastCall.Load())
}

// drained turns the error of a reader that Close has interrupted into errDrain.
func (c *conn) drained(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && c.srv.closing.Load() {
		return errDrain
	}
	return err
}

// receive takes one call from the record that has begun and queues it. It waits
// for the peer, for memory and for a slot in this order, so that a peer which
// sends slowly occupies nothing but its own connection and, for the data of one
// WRITE, its share of the memory for a limited time.
func (c *conn) receive() error {
	head, err := c.stream.Peek(headLimit)
	if err != nil && err != sunrpc.ErrRecordEnd {
		return err
	}
	d := xdr.NewDecoder(head)
	headerErr := sunrpc.DecodeCall(&d, &c.call)
	if headerErr == sunrpc.ErrNotCall {
		return errNotCall
	}
	c.call.Cred.Sys.Machine = nil // borrowed from the stream
	n, args := len(head), d.Offset()
	var need demand
	if headerErr == nil {
		need = c.srv.demandOf(&c.call, d)
	}
	if need.payload > 0 {
		n = need.head
	}
	if err := c.stream.ReadFull(c.in.args[:n]); err != nil {
		return err
	}
	c.beginTask()
	if !c.take(need.bytes) {
		return errDrain
	}
	var dataErr error
	if need.payload > 0 {
		if dataErr, err = c.receiveData(need.payload); err != nil {
			return err
		}
	}
	r := c.srv.adm.slot(c)
	if r == nil {
		c.drop()
		return errDrain
	}
	r.headerErr, r.dataErr = headerErr, dataErr
	return c.handOver(r, args, n)
}

// beginTask says that the reader works for the call it has received: it holds
// the reply until a slot's task does, and keeps what comes behind the call on
// this connection from being read.
func (c *conn) beginTask() {
	c.task.Begin(procName(&c.call))
	c.task.Hold(c.reply())
	c.task.Hold(waitfor.Resource{Kind: waitfor.Stream, ID: uint64(c.peer.Port())})
}

func (c *conn) reply() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Reply, ID: waitfor.ReplyID(c.peer.Port(), c.call.XID)}
}

// take waits until the connection may hold n more bytes of the arena, and counts
// them; false if the connection ends.
func (c *conn) take(n int) bool {
	if n == 0 {
		return true
	}
	if !c.srv.adm.bytes(c, int64(n)) {
		return false
	}
	c.charge = int64(n)
	c.task.Hold(c.srv.adm.dataResource())
	return true
}

// receiveData receives n bytes of payload into pages. dataErr is what the call
// has to be answered with, err the end of the connection.
func (c *conn) receiveData(n int) (dataErr, err error) {
	if !c.allocData(n) {
		return vfs.ErrJukebox, nil
	}
	err = c.readData()
	if err == sunrpc.ErrRecordEnd {
		c.in.data.Release()
		return xdr.ErrShort, nil
	}
	if err != nil {
		c.drop()
	}
	return nil, err
}

// allocData takes pages for n bytes of payload. The reader enters no file
// system to get them, for the COMMIT that would make pages clean may be the next
// call on this connection. For a client on this host it may use half of the
// reserve; the other half is for where the data will go.
func (c *conn) allocData(n int) bool {
	sc, flags := gfp.For(c.task), gfp.NoFS
	if c.isLocal() {
		flags |= gfp.High
	}
	c.in.data.Pins = c.in.data.Pins[:0]
	fs := c.in.folios[:alloc.Pages(n)]
	if c.srv.cfg.Arena.AllocInto(sc, flags&^gfp.NoFS, fs) != nil {
		c.flush() // clients wait for those replies, and they pin pages
		if c.srv.cfg.Arena.AllocInto(sc, flags, fs) != nil {
			return false
		}
	}
	c.in.data.Owner = c.srv.cfg.Arena
	for _, f := range fs {
		b := c.srv.cfg.Arena.Bytes(f)
		b = b[:min(n, len(b))]
		n -= len(b)
		c.in.data.Bufs = append(c.in.data.Bufs, b)
		c.in.data.Pins = append(c.in.data.Pins, f.Num())
	}
	return true
}

// readData fills the pages within the time that the peer has for it. Close, which
// ends readers with a deadline of its own, comes before that deadline is set or
// after it.
func (c *conn) readData() error {
	// What is buffered beyond the fragment may be the mark of another, and not enough.
	if n, _ := c.stream.RecordRemaining(); min(n, c.stream.Buffered()) >= c.in.data.Len() {
		return c.stream.ReadVec(c.in.data.Bufs)
	}
	if err := c.nc.SetReadDeadline(time.Now().Add(c.srv.cfg.ReceiveTimeout)); err != nil {
		return err
	}
	if c.srv.closing.Load() {
		return errDrain
	}
	err := c.stream.ReadVec(c.in.data.Bufs)
	if err != nil && err != sunrpc.ErrRecordEnd {
		return err
	}
	if clearErr := c.nc.SetReadDeadline(time.Time{}); clearErr != nil {
		return clearErr
	}
	return err
}

// drop gives up what was taken for a call that is not queued.
func (c *conn) drop() {
	c.in.data.Release()
	if c.charge > 0 {
		c.srv.adm.putBytes(c, c.charge)
		c.charge = 0
	}
}

// handOver gives the call, with arguments from offset args to n of its head, to
// the workers, unless it is carried out at once.
func (c *conn) handOver(r *request, args, n int) error {
	r.conn, r.call = c, c.call
	r.args, c.in.args = c.in.args, r.args
	r.data, c.in.data = c.in.data, r.data
	r.carries = r.data.Len() > 0
	r.charge, c.charge = c.charge, 0
	r.dec.Reset(r.args[min(args, n):n])
	c.inflight.Add(1)
	c.client.inflight.Add(1)
	r.task.Begin(procName(&r.call))
	r.task.Hold(c.reply())
	r.task.Hold(c.srv.adm.slotResource())
	if r.charge > 0 {
		r.task.Hold(c.srv.adm.dataResource())
	}
	c.task.End()
	if r.serveNow() {
		return nil
	}
	return r.serveLent()
}

// batchNow returns the number of the calls that arrived together with the last.
func (c *conn) batchNow() uint64 {
	if n := c.stream.Reads(); n != c.reads {
		c.reads, c.batch = n, vfs.NewBatch()
	}
	return c.batch
}
