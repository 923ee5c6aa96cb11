package nfsclient

import (
	"encoding/binary"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/waitfor"
)

// transportConfig is what a transport needs to know.
type transportConfig struct {
	id        uint64 // of the client, in the wait-for graph
	addr      netip.AddrPort
	slots     int
	arena     *alloc.Arena
	maxPages  int // of payload
	maxRecord int // bytes
	machine   []byte
	wireScope func(gfp.Scope) uint8
	graph     *waitfor.Graph
	log       *slog.Logger
	now       func() time.Time
}

// transport carries calls over one connection at a time. See the package
// comment.
type transport struct {
	transportConfig
	slotRes  waitfor.Resource // a free slot
	connRes  waitfor.Resource // a connection
	slotBits int
	all      []*slot
	free     chan *slot // slots for everybody
	reserve  chan *slot // slots for Memalloc scopes

	kick    chan struct{} // wakes the sender
	next    chan *conn    // from the reader to the sender
	stop    chan struct{}
	stopped sync.WaitGroup

	calls, resent, reconnects, discarded atomic.Uint64

	// sendMu is held while records are written; it guards partial.
	sendMu  sync.Mutex
	partial partial

	mu     sync.Mutex
	conn   *conn // nil: being re-established
	port   uint16
	queue  []*slot // to be sent, in order; room for all
	head   int
	nqueue int
	down   bool   // stopped: nothing is sent any more
	dialer closer // of a connection being established
}

type closer interface{ Close() error }

func newTransport(cfg transportConfig) *transport {
	t := &transport{
		transportConfig: cfg,
		slotRes:         waitfor.Resource{Kind: waitfor.Slot, ID: cfg.id},
		connRes:         waitfor.Resource{Kind: waitfor.Connection, ID: cfg.id},
		slotBits:        bits.Len(uint(cfg.slots - 1)),
		free:            make(chan *slot, cfg.slots),
		reserve:         make(chan *slot, cfg.slots),
		kick:            make(chan struct{}, 1),
		next:            make(chan *conn),
		stop:            make(chan struct{}),
		queue:           make([]*slot, cfg.slots),
	}
	nreserve := max(cfg.slots/8, 2)
	for i := range cfg.slots {
		s := newSlot(t, i, cfg.graph.NewTask("client"))
		s.seq = rand.Uint32()
		s.reserved = i < nreserve
		t.all = append(t.all, s)
		t.home(s) <- s
	}
	return t
}

// start starts the reader, on c, and the sender.
func (t *transport) start(c *conn) {
	t.stopped.Go(func() { t.runReader(c) })
	t.stopped.Go(t.runSender)
}

func (t *transport) home(s *slot) chan *slot {
	if s.reserved {
		return t.reserve
	}
	return t.free
}

// tryAcquire returns a free slot or nil.
func (t *transport) tryAcquire(sc gfp.Scope) *slot {
	select {
	case s := <-t.free:
		return s
	default:
	}
	if sc.IsMemalloc() {
		select {
		case s := <-t.reserve:
			return s
		default:
		}
	}
	return nil
}

// acquire returns a free slot; it waits for one, until cancel is closed.
func (t *transport) acquire(sc gfp.Scope, cancel <-chan struct{}) (*slot, error) {
	if s := t.tryAcquire(sc); s != nil {
		return s, nil
	}
	task := sc.Task()
	task.Wait("", "a free slot for a call", 0, t.slotRes)
	defer task.Done()
	var reserve chan *slot
	if sc.IsMemalloc() {
		reserve = t.reserve
	}
	select {
	case s := <-t.free:
		return s, nil
	case s := <-reserve:
		return s, nil
	case <-cancel:
		return nil, syscall.EINTR
	case <-t.stop:
		return nil, syscall.EIO
	}
}

// release gives the slot back.
func (t *transport) release(s *slot) {
	t.mu.Lock()
	s.state = idle
	t.mu.Unlock()
	s.own.End()
	t.home(s) <- s
}

// submit hands s to the transport: from now on it belongs to it until its
// completion runs or its wake channel has a token. task, which may be nil, is
// recorded as the one that waits; otherwise it is the slot's own.
func (t *transport) submit(s *slot, task *waitfor.Task, ino uint64) {
	t.calls.Add(1)
	s.what, s.ino = replyNames[s.proc], ino
	t.mu.Lock()
	t.own(s, task)
	down := t.down
	if !down { // or failAll ends it, too
		t.push(s)
	}
	t.mu.Unlock()
	if down {
		s.err = errClosed
		t.finish(s)
		return
	}
	t.pump()
}

// own records who waits for s: task, or the slot itself. t.mu is held.
func (t *transport) own(s *slot, task *waitfor.Task) {
	s.task = task
	if task == nil {
		s.task = s.own
	}
	s.task.Hold(t.slotRes)
	t.record(s)
}

// push queues s. t.mu is held.
func (t *transport) push(s *slot) {
	s.state = queued
	t.queue[(t.head+t.nqueue)%len(t.queue)] = s
	t.nqueue++
}

// record says in the graph what s waits for now: its reply, or the connection.
// t.mu is held.
func (t *transport) record(s *slot) {
	if t.conn == nil {
		s.task.Wait("", "the connection to the server", 0, t.connRes)
		return
	}
	s.task.Wait("", s.what, s.ino, waitfor.Resource{Kind: waitfor.Reply, ID: waitfor.ReplyID(t.port, s.xid)})
}

// disconnected notes that c is gone: all calls wait for the next connection.
func (t *transport) disconnected(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost(c)
	for _, s := range t.all {
		t.rerecord(s)
	}
}

// rerecord is record for a slot that is recorded already. t.mu is held.
func (t *transport) rerecord(s *slot) {
	if s.task != nil {
		s.task.Done()
		t.record(s)
	}
}

// unrecord ends the record. t.mu is held.
func (t *transport) unrecord(s *slot) {
	if s.task != nil {
		s.task.Done()
		s.task.Release(t.slotRes)
		s.task = nil
	}
}

// replyOf returns what whoever needs the reply to the call in s waits for.
func (t *transport) replyOf(s *slot) waitfor.Resource {
	t.mu.Lock()
	defer t.mu.Unlock()
	return waitfor.Resource{Kind: waitfor.Reply, ID: waitfor.ReplyID(t.port, s.xid)}
}

// giveUp abandons the call in s, whose owner forgets it, and reports whether it
// did: if not, the reply is there already.
func (t *transport) giveUp(s *slot) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.state == done {
		return false
	}
	t.unrecord(s)
	s.gone = true
	return true
}

// kickSender wakes the sender. It never blocks.
func (t *transport) kickSender() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// close stops everything; calls in flight end with errClosed.
func (t *transport) close() {
	t.mu.Lock()
	t.down = true
	if t.conn != nil {
		t.conn.Close()
	}
	if t.dialer != nil {
		t.dialer.Close()
	}
	t.mu.Unlock()
	close(t.stop)
	t.stopped.Wait()
	t.failAll()
	for _, s := range t.all {
		t.graph.Remove(s.own)
	}
}

// failAll ends every call in flight. Reader and sender have stopped.
func (t *transport) failAll() {
	t.sendMu.Lock() // whoever still sends is told so by the closed connection
	defer t.sendMu.Unlock()
	t.dropPartial()
	for _, s := range t.all {
		t.mu.Lock()
		active := s.state == queued || s.state == waiting || s.state == delayed
		t.mu.Unlock()
		if active {
			s.err = errClosed
			t.finish(s)
		}
	}
	t.mu.Lock()
	t.nqueue = 0
	t.mu.Unlock()
}

var replyNames = replyTable()

func replyTable() (names [nfs3.NumProcs]string) {
	for i := range names {
		names[i] = "the reply to " + nfs3.ProcName(uint32(i)) + " of inode"
	}
	return names
}

// isJukebox reports whether the results say "try again later".
func isJukebox(reply []byte) bool {
	return len(reply) >= 4 && nfs3.Status(binary.BigEndian.Uint32(reply)) == nfs3.StatusJukebox
}
