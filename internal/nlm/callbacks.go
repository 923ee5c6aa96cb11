package nlm

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"loopnfs/internal/hostaddr"
	"loopnfs/internal/nlm4"
	"loopnfs/internal/portmap"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// maxAnswers is how many answers to _MSG calls can wait to be sent; more are dropped,
// and the clients ask again.
const maxAnswers = 256

// outcome is what came of a call to a client.
type outcome uint8

const (
	unreached outcome = iota // certainly
	lost                     // it may have arrived
	answered
)

// job is a call to a client that is to be made.
type job struct {
	entry
	kind  kind
	id    uint64 // of the waiter, for grant
	proc  uint32 // and its arguments, for answer
	args  []byte
	due   time.Time
	tries int
	// state is this server's, for notify.
	state uint32
	// about is whom the status monitor is to be told of, for track.
	about netip.Addr
}

// callee is who is called: one call at a time. The status monitor of this host, which may
// look names up in vain, does not hold up the clients here.
type callee struct {
	addr    netip.Addr
	monitor bool
}

func (j *job) callee() callee { return callee{j.Addr, j.kind == track} }

type kind uint8

const (
	grant kind = iota
	notify
	answer
	track // a call to the status monitor of this host
)

// program is what serves the job at the client's.
func (j *job) program() portmap.Program {
	if j.kind == notify || j.kind == track {
		return portmap.Program{Number: nlm4.StatusProgram, Version: nlm4.StatusVersion}
	}
	return portmap.Program{Number: nlm4.Program, Version: nlm4.Version}
}

// callbacks are the calls to clients that are to be made, and the workers that make
// them. The number of jobs is bounded by who adds them: one for each waiter, each
// client of the list, each address of those, and each answer, of which there are
// maxAnswers.
type callbacks struct {
	own     atomic.Uint32 // the port of this server, if it is registered
	addrs   hostaddr.Addresses
	cfg     *Config
	machine []byte
	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu      sync.Mutex
	ready   sync.Cond // a job, or the time of one
	timer   *time.Timer
	jobs    []*job
	busy    map[callee]bool // who is being called
	answers int
	closed  bool
}

// start starts the workers; do makes the call of a job and reports whether, and after
// what time, it is to be made again.
func (c *callbacks) start(cfg *Config, machine string, do func(w *worker, j *job) (again bool, after time.Duration)) {
	c.cfg, c.machine, c.busy = cfg, []byte(machine), map[callee]bool{}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.ready.L = &c.mu
	c.timer = time.AfterFunc(time.Hour, c.ready.Broadcast)
	for range cfg.Workers {
		w := &worker{callbacks: c, buf: make([]byte, callBuf)}
		c.workers.Go(func() { w.run(do) })
	}
}

// close ends the workers, and the calls in progress.
func (c *callbacks) close() {
	c.cancel()
	c.mu.Lock()
	c.closed = true
	c.timer.Stop()
	c.mu.Unlock()
	c.ready.Broadcast()
	c.workers.Wait()
}

// add has the call of j made. It never waits for a call.
func (c *callbacks) add(j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.kind == answer {
		if c.answers == maxAnswers {
			return
		}
		c.answers++
	}
	c.jobs = append(c.jobs, j)
	c.ready.Signal()
}

// drop takes back the calls that match and are not being made.
func (c *callbacks) drop(match func(*job) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jobs = slices.DeleteFunc(c.jobs, match)
}

// next waits for a job whose time has come and whose client is not being called; nil
// at the end.
func (c *callbacks) next() *job {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed {
		now := time.Now()
		i, wait := c.earliest(now)
		if i >= 0 && wait <= 0 {
			j := c.jobs[i]
			c.jobs = append(c.jobs[:i], c.jobs[i+1:]...)
			c.busy[j.callee()] = true
			return j
		}
		if i >= 0 {
			c.timer.Reset(wait)
		}
		c.ready.Wait()
	}
	return nil
}

// earliest returns the job that is due first, -1 if there is none, and in what time.
func (c *callbacks) earliest(now time.Time) (at int, wait time.Duration) {
	at = -1
	for i, j := range c.jobs {
		if !c.busy[j.callee()] && (at < 0 || j.due.Before(c.jobs[at].due)) {
			at = i
		}
	}
	if at >= 0 {
		wait = c.jobs[at].due.Sub(now)
	}
	return at, wait
}

// done ends the call of j, or has it made again.
func (c *callbacks) done(j *job, again bool, after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.busy, j.callee())
	if again {
		j.due = time.Now().Add(after)
		c.jobs = append(c.jobs, j)
	} else if j.kind == answer {
		c.answers--
	}
	c.ready.Broadcast()
}

// callBuf holds a call and its reply.
const callBuf = 4 + sunrpc.MaxCallHeader + nlm4.MaxArgs

// worker makes calls, one after the other.
type worker struct {
	*callbacks
	buf []byte
}

func (w *worker) run(do func(w *worker, j *job) (bool, time.Duration)) {
	for j := w.next(); j != nil; j = w.next() {
		j.tries++
		again, after := do(w, j)
		w.done(j, again, after)
	}
}

// call makes the call of j from the address that the client knows, since it looks at it
// (nlmclnt_grant). The port is asked for each time: a client that has started again has
// another one.
func (w *worker) call(j *job, proc uint32, args func(*xdr.Encoder)) (xdr.Decoder, outcome) {
	ctx, cancel := context.WithTimeout(w.ctx, w.cfg.timeOf(j))
	defer cancel()
	dialer := net.Dialer{}
	if j.here.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(j.here, 0))
	}
	p := j.program()
	port, err := w.port(ctx, &dialer, j, p)
	if err != nil {
		return xdr.Decoder{}, unreached
	}
	c := sunrpc.Call{XID: rand.Uint32(), Prog: p.Number, Vers: p.Version, Proc: proc}
	c.Cred = sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: sunrpc.AuthSysCred{Machine: w.machine}}
	d, err := sunrpc.Once(ctx, &dialer, netip.AddrPortFrom(j.Addr, port).String(), &c, args, w.buf)
	switch {
	case err == nil:
		return d, answered
	case refused(err):
		return xdr.Decoder{}, unreached
	}
	return xdr.Decoder{}, lost
}

// errSelf is returned for a client that has no program of its own: this server is the one
// that is registered.
var errSelf = errors.New("nlm: that is this server")

// port asks the portmapper of the client for the port of a program. The lock manager of
// this host's own kernel serves all versions on one port, and only the lower ones are
// registered as its own.
func (w *worker) port(ctx context.Context, d *net.Dialer, j *job, p portmap.Program) (uint16, error) {
	local := w.addrs.IsLocal(j.Addr, j.here)
	if local && p.Number == nlm4.Program {
		p.Version = kernelVersion
	}
	port, err := portmap.Port(ctx, d, netip.AddrPortFrom(j.Addr, w.cfg.PortmapPort), p, w.buf)
	if err == nil && local && uint32(port) == w.own.Load() {
		err = errSelf
	}
	return port, err
}

// refused reports whether a call that failed has certainly not been carried out.
func refused(err error) bool {
	var dial *net.OpError
	var accept sunrpc.AcceptStat
	var auth sunrpc.AuthStat
	return errors.As(err, &dial) && dial.Op == "dial" || errors.As(err, &accept) || errors.As(err, &auth)
}

// monitorCalls is how many times as long a call to the status monitor of this host may take:
// rpc.statd looks each name up, which is some 10 s if the name server is not there, does one
// thing at a time, and carries out what nobody waits for any more, too.
const monitorCalls = 12

// timeOf bounds the call of j.
func (c *Config) timeOf(j *job) time.Duration {
	if j.kind == track {
		return monitorCalls * c.CallTime
	}
	return c.CallTime
}

// retryAfter is how long to wait after so many tries.
func (c *Config) retryAfter(tries int) time.Duration {
	return min(c.RetryFirst<<min(tries-1, 16), c.RetryMost)
}
