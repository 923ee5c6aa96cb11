package portmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"loopnfs/internal/sunrpc"
)

const (
	watchEvery = time.Second
	// settle is for how long nobody may have registered a program before it is
	// registered again: who starts a server removes what is there before it registers,
	// and fails if somebody else does so in between.
	settle = 2 * time.Second
	// maxChecks is how many callers of Check wait at once.
	maxChecks = 2
)

// Watch looks after a registration: about once a second, and when it is asked, it asks
// the portmapper, which tells nobody of changes, takes what is to be taken from others,
// and registers what has gone.
type Watch struct {
	reg     *Registration
	log     *slog.Logger
	changed func(p Program, port uint16)

	every, settle time.Duration

	nc    net.Conn // to the portmapper, kept; nil: there is none
	buf   []byte
	seen  []sighting // of each program
	wrong string     // what was logged last

	ctx    context.Context
	cancel context.CancelFunc
	asked  chan chan<- struct{}
	slots  chan struct{}
	slow   atomic.Bool // Check was not worth the wait
	ended  sync.WaitGroup
}

// sighting is what is known of a program.
type sighting struct {
	port  uint32
	known bool
	since time.Time // when it went, if port is 0
}

// Watch starts looking after r, which Close of the Watch ends, and which is not to be
// closed before. changed is called when the port of a program is another one than before,
// for the first time with that found at the start, or 0 if there is none; it must not
// wait.
func (r *Registration) Watch(log *slog.Logger, changed func(p Program, port uint16)) *Watch {
	w := newWatch(r, log, changed)
	w.start()
	return w
}

func newWatch(r *Registration, log *slog.Logger, changed func(p Program, port uint16)) *Watch {
	w := &Watch{
		reg: r, log: log, changed: changed, every: watchEvery, settle: settle, buf: make([]byte, maxReply),
		seen: make([]sighting, len(r.progs)), asked: make(chan chan<- struct{}), slots: make(chan struct{}, maxChecks),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

func (w *Watch) start() { w.ended.Go(w.run) }

// Close ends the watch. A nil w has none.
func (w *Watch) Close() {
	if w == nil {
		return
	}
	w.cancel()
	w.ended.Wait()
}

// Check has the portmapper asked at once and waits for that, for d at most. A few callers
// can wait at once; others return, and so do all from when one has waited in vain until the
// portmapper answers.
func (w *Watch) Check(d time.Duration) {
	if w.slow.Load() {
		return
	}
	select {
	case w.slots <- struct{}{}:
	default:
		return
	}
	defer func() { <-w.slots }()
	ctx, cancel := context.WithTimeout(w.ctx, d)
	defer cancel()
	done := make(chan struct{})
	select {
	case w.asked <- done:
	case <-ctx.Done():
		w.slow.Store(true)
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
		w.slow.Store(true)
	}
}

func (w *Watch) run() {
	defer w.hangUp()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		var done chan<- struct{}
		select {
		case <-w.ctx.Done():
			return
		case <-next.C:
		case done = <-w.asked:
		}
		err := w.look()
		if err == nil {
			w.slow.Store(false)
		}
		w.report(err)
		if done != nil {
			close(done)
		}
		next.Reset(w.every)
	}
}

// report logs what goes wrong once.
func (w *Watch) report(err error) {
	switch {
	case err == nil && w.wrong != "":
		w.wrong = ""
		w.log.Info("the portmapper has the programs of this server again")
	case err != nil && w.wrong != err.Error() && w.ctx.Err() == nil:
		w.wrong = err.Error()
		w.log.Warn("the portmapper may not have the programs of this server", "error", err, "costs", "clients that ask it do not find them")
	}
}

// look asks for all programs and puts right what is wrong. One that cannot be put right
// does not keep it from the others.
func (w *Watch) look() error {
	var errs []error
	for i, p := range w.reg.progs {
		port, err := w.port(p)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, w.putRight(p, &w.seen[i], port))
	}
	return errors.Join(errs...)
}

func (w *Watch) putRight(p Program, s *sighting, port uint32) error {
	now := time.Now()
	if !s.known || s.port != port {
		*s = sighting{port: port, known: true, since: now}
		w.changed(p, uint16(port))
	}
	var err error
	switch {
	case port == w.reg.port || port == 0 && now.Sub(s.since) < w.settle:
		return nil
	case port == 0:
		err = w.reg.set(w.ctx, p)
	case p.Claim == Exclusive:
		return fmt.Errorf("program %d is on port %d now, of another server, whose lock manager keeps its place, too: stop that server", p.Number, port)
	case p.Claim == Yield || w.replaced():
		return nil
	default:
		err = w.reg.seize(w.ctx, p, port)
	}
	if err == nil {
		s.port = w.reg.port
		w.changed(p, uint16(s.port))
	}
	return err
}

// replaced reports whether another server has a program that is to be this one's alone.
// What it has besides is its own, and not taken from it.
func (w *Watch) replaced() bool {
	for i, s := range w.seen {
		if w.reg.progs[i].Claim == Exclusive && s.port != 0 && s.port != w.reg.port {
			return true
		}
	}
	return false
}

// port asks for the port of a program, 0 for none, over a connection that stays.
func (w *Watch) port(p Program) (uint32, error) {
	kept := w.nc != nil
	port, err := w.ask(p)
	if err != nil && kept && w.ctx.Err() == nil {
		port, err = w.ask(p) // the portmapper closes what it has not used for long
	}
	return port, err
}

func (w *Watch) ask(p Program) (uint32, error) {
	if w.nc == nil {
		nc, err := (&net.Dialer{Timeout: callTime}).DialContext(w.ctx, "tcp", w.reg.addr)
		if err != nil {
			return 0, w.reg.failed(w.ctx, err)
		}
		w.nc = nc
	}
	nc := w.nc
	stop := context.AfterFunc(w.ctx, func() { nc.Close() })
	defer stop()
	_ = w.nc.SetDeadline(time.Now().Add(callTime))
	c := sunrpc.Call{XID: rand.Uint32(), Prog: program, Vers: version, Proc: procPort}
	d, err := sunrpc.Exchange(w.nc, &c, mapping(p, 0), w.buf)
	port := d.Uint32()
	if err == nil {
		err = d.Err()
	}
	if err == nil && port > 1<<16-1 {
		err = sunrpc.ErrReply
	}
	if err != nil {
		w.hangUp()
	}
	return port, w.reg.failed(w.ctx, err)
}

func (w *Watch) hangUp() {
	if w.nc != nil {
		w.nc.Close()
		w.nc = nil
	}
}
