package nfsserver

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/internal/hostaddr"
	"loopnfs/internal/waitfor"
)

// ErrClosed is returned by Serve after Close.
var ErrClosed = errors.New("nfsserver: server closed")

// Server serves NFS and MOUNT. All methods may be called concurrently.
type Server struct {
	cfg     Config
	exports atomic.Pointer[exportTable]
	mounts  mountList
	noise   *throttledLog
	count   counters
	// mover is the Locality, if its answers change; addresses is the server's own.
	mover     mover
	addresses *hostaddr.Watcher

	ioMax       int // bytes of the largest READ or WRITE
	ioPages     int // its pages
	recordLimit int // bytes
	dirMax      int // bytes of the largest directory listing

	dups   *drc
	adm    admission
	slots  []*request
	queue  chan *request
	bursts burstBuffers
	// lending has readers carry out calls that seldom wait.
	lending lending
	// receipts and ranges are lent to connections that receive, or send.
	receipts spares[*receipt]
	ranges   spares[[][]byte]
	workers  sync.WaitGroup
	// helpers are those that nobody has, calling is where workers hear of a call for help.
	helpers, calling chan *helper

	started time.Time
	closing atomic.Bool
	serving sync.WaitGroup // connections, and those who accept them

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
}

// New returns a server with its workers ready. Close it also if it never
// serves.
func New(cfg Config) (*Server, error) {
	cfg.Exports = slices.Clone(cfg.Exports) // Validate fills in defaults
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	exports, err := newExportTable(&cfg)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, started: time.Now(), noise: newThrottledLog(cfg.Logger),
		ioMax: exports.ioMax, ioPages: alloc.Pages(exports.ioMax),
		// Room for a WRITE of twice the limit: it is cut short, not refused.
		recordLimit: headLimit + 2*exports.ioMax,
		dirMax:      cfg.dirMax(),
		queue:       make(chan *request, cfg.Slots),
		bursts:      newBurstBuffers(),
		listeners:   map[net.Listener]struct{}{}, conns: map[*conn]struct{}{},
	}
	s.exports.Store(exports)
	s.lending.init()
	s.receipts = newSpares(cfg.Workers, s.newReceipt)
	s.ranges = newSpares(cfg.Workers, s.newRanges)
	s.adm = admission{
		policy: cfg.Receive, poolID: cfg.PoolID,
		limit: usage{slots: int64(cfg.Slots), bytes: int64(cfg.Arena.Total()) << alloc.PageShift / payloadPart},
	}
	if s.dups, err = s.openDRC(); err != nil {
		return nil, err
	}
	for range cfg.Slots {
		s.slots = append(s.slots, newRequest(s))
	}
	s.adm.free = append(s.adm.free, s.slots...)
	if s.mover, _ = cfg.Locality.(mover); cfg.Locality == nil {
		s.watchAddresses()
	}
	s.makeHelpers()
	for range cfg.Workers {
		s.workers.Go(s.work)
	}
	return s, nil
}

func (s *Server) openDRC() (*drc, error) {
	if s.cfg.StateDir == "" {
		return newDRC(s.cfg.Slots, nil, nil)
	}
	dups, err := s.openJournaled()
	for _, disk := range []error{unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.EIO} {
		if errors.Is(err, disk) {
			// Whoever waits for this server to start again has only this one.
			s.cfg.Logger.Error("replies are not kept for the next start", "err", err)
			return newDRC(s.cfg.Slots, nil, nil)
		}
	}
	return dups, err
}

func (s *Server) openJournaled() (*drc, error) {
	journal, err := openJournal(s.cfg.StateDir, s.cfg.AsyncMetadata, s.noise)
	if err != nil {
		return nil, err
	}
	journal.holds = s.cfg.Holds
	dups, err := newDRC(s.cfg.Slots, journal, s)
	if err != nil {
		err = errors.Join(err, journal.close())
	}
	return dups, err
}

func (s *Server) workerResource() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Worker, ID: s.cfg.PoolID}
}

// work carries out calls until there will be none any more.
func (s *Server) work() {
	for {
		select {
		case r, more := <-s.queue:
			if !more {
				return
			}
			s.count.busy.Add(1)
			r.task.Done()
			r.work()
			s.count.busy.Add(-1)
		case h := <-s.calling:
			h.help()
		}
	}
}

// Serve accepts connections from l, which it closes, until Close; then it
// returns ErrClosed. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if !s.listen(l) {
		return ErrClosed
	}
	defer s.unlisten(l)
	for delay := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case s.closing.Load():
			if err == nil {
				nc.Close()
			}
			return ErrClosed
		case err == nil:
			delay = 0
			s.welcome(nc)
		case !isTemporary(err):
			return fmt.Errorf("nfsserver: %w", err)
		default:
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			s.noise.warn("cannot accept a connection", "err", err, "retry", delay)
			time.Sleep(delay)
		}
	}
}

// isTemporary reports whether accepting may work later: out of file descriptors,
// or a connection that ended before it was accepted.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	s.serving.Add(1)
	return true
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	s.serving.Done()
}

// welcome starts a connection, or closes it if there are too many.
func (s *Server) welcome(nc net.Conn) {
	peer := nc.RemoteAddr().String()
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		s.noise.warn("connection refused: not TCP", "peer", peer)
		nc.Close()
		return
	}
	if s.connCount() >= s.cfg.MaxConns && !s.closeIdle() {
		s.count.refused.Add(1)
		s.noise.warn("connection refused: too many", "peer", peer, "limit", s.cfg.MaxConns)
		nc.Close()
		return
	}
	c, err := newConn(s, tc)
	if err != nil {
		s.noise.warn("connection refused", "peer", peer, "err", err)
		nc.Close()
		return
	}
	s.start(c)
}

// uptime returns for how long the server has been there, in ns.
func (s *Server) uptime() int64 { return int64(time.Since(s.started)) }

func (s *Server) connCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// closeIdle closes the connection that has had nothing to do for longest, and reports
// whether there was one (svc_check_conn_limits). Clients connect again when they need to.
func (s *Server) closeIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest *conn
	for c := range s.conns {
		if s.adm.idle(c) && (oldest == nil || c.lastCall.Load() < oldest.lastCall.Load()) {
			oldest = c
		}
	}
	if oldest == nil || oldest.idleTime() < minIdle {
		return false
	}
	delete(s.conns, oldest)
	s.noise.warn("an idle connection is closed to make room", "peer", oldest.peer.String(), "idle", oldest.idleTime(), "limit", s.cfg.MaxConns)
	oldest.abort(nil)
	return true
}

// start makes c known and its goroutines run, unless the server ends.
func (s *Server) start(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		s.cfg.Graph.Remove(c.task)
		c.abort(nil)
		return
	}
	s.conns[c] = struct{}{}
	s.serving.Go(c.sender)
	s.read(c)
}

// read starts a reader of c.
func (s *Server) read(c *conn) {
	s.serving.Go(func() {
		if !c.run() {
			return
		}
		s.cfg.Graph.Remove(c.task)
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// Close stops accepting and receiving, gives requests in progress CloseTimeout
// to finish and to have their replies sent, then closes all connections. It
// returns an error if requests are still in progress: the file system does not
// let go of them. A second call does nothing.
func (s *Server) Close() error {
	if s.closing.Swap(true) {
		return nil
	}
	s.stopReceiving()
	ended := make(chan struct{})
	go s.end(ended)
	if !closedWithin(ended, s.cfg.CloseTimeout) {
		s.abortAll()
		if !closedWithin(ended, s.cfg.CloseTimeout) {
			return fmt.Errorf("nfsserver: %d requests are still in progress", s.adm.now().slots)
		}
	}
	return nil
}

// Abort ends all connections at once, and accepts no others. What is in progress goes on,
// and nobody hears of it; nor does Abort wait for it. Close does nothing after that.
func (s *Server) Abort() {
	s.closing.Store(true)
	s.mu.Lock()
	for l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()
	s.abortAll()
}

// end waits for the connections, then for the workers, and closes ended.
func (s *Server) end(ended chan struct{}) {
	s.serving.Wait()
	close(s.queue)
	s.workers.Wait()
	for _, r := range s.slots {
		s.cfg.Graph.Remove(r.task)
	}
	s.removeHelpers()
	s.dups.journal.close()
	if s.addresses != nil {
		s.addresses.Close()
	}
	close(ended)
}

// stopReceiving ends every Serve and every reader that waits for its peer or
// for admission.
func (s *Server) stopReceiving() {
	s.adm.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

func (s *Server) abortAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.abort(nil)
	}
}

// closedWithin reports whether ch is closed within d.
func closedWithin(ch <-chan struct{}, d time.Duration) bool {
	select {
	case <-ch:
		return true
	case <-time.After(d):
		return false
	}
}
