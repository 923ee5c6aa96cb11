// Package portmap speaks to portmappers (rpcbind, RFC 1833): it tells that of this host
// which programs are served on which port, for clients that ask it, sees to it that this
// stays so, and asks those of other hosts.
package portmap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

const (
	program = 100000
	version = 2

	procSet   = 1
	procUnset = 2
	procPort  = 3 // GETPORT

	version3    = 3
	procAddress = 3 // RPCBPROC_GETADDR

	protoTCP = 6
	protoUDP = 17

	callTime = 5 * time.Second
	maxReply = 1 << 10 // bytes
)

// DefaultPort is where portmappers listen, DefaultAddr where that of this host does.
const (
	DefaultPort = 111
	DefaultAddr = "127.0.0.1:111"
)

// ErrNotRegistered is returned by Port for a program that the portmapper does not know.
var ErrNotRegistered = errors.New("portmap: the program is not registered")

// errSilent is returned for a portmapper that is there, and hangs.
var errSilent = errors.New("it does not answer: start rpcbind again")

// Program is one that is served over TCP, or over UDP.
type Program struct {
	Number, Version uint32
	UDP             bool
	// Claim is for those that are registered.
	Claim Claim
}

// Claim says what becomes of a program that somebody else has registered.
type Claim uint8

const (
	Exclusive Claim = iota // it is an error
	Seize                  // it is taken from them
	Yield                  // they keep it, and it is registered once they are gone
)

func (p Program) proto() uint32 {
	if p.UDP {
		return protoUDP
	}
	return protoTCP
}

// Registration is what the portmapper at an address was told.
type Registration struct {
	addr    string
	sockets []string // of the same portmapper, for Seize
	port    uint32
	progs   []Program
	dump    []byte // for seize, made when it is first needed
}

// Register tells the portmapper at addr that progs are served on port. What somebody
// else has registered there is dealt with as its Claim says.
func Register(addr string, port int, progs []Program) (*Registration, error) {
	r := &Registration{addr: addr, sockets: localSockets, port: uint32(port)}
	return r, r.registerAll(progs)
}

// Later is Register for a server that is to run whatever the portmapper says: a Watch
// registers progs, once it lets it. What Seize and Yield are for is dealt with then.
func Later(addr string, port int, progs []Program) *Registration {
	return &Registration{addr: addr, sockets: localSockets, port: uint32(port), progs: progs}
}

// registerAll registers progs, or nothing.
func (r *Registration) registerAll(progs []Program) error {
	for _, p := range progs {
		if err := r.register(context.Background(), p); err != nil {
			return errors.Join(err, r.Close())
		}
		r.progs = append(r.progs, p)
	}
	return nil
}

func (r *Registration) register(ctx context.Context, p Program) error {
	done, err := r.call(ctx, procSet, p, r.port)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("there is no portmapper at %s: start rpcbind, or serve without --portmap, since mounts with port= and mountport= need none", r.addr)
	case err != nil:
		return err
	case done == 1:
		return nil
	}
	switch there, err := r.call(ctx, procPort, p, 0); {
	case err != nil:
		return err
	case there == r.port || p.Claim == Yield:
		return nil
	case there == 0: // it has gone meanwhile
		return r.set(ctx, p)
	case p.Claim == Seize:
		return r.seize(ctx, p, there)
	default:
		return fmt.Errorf("the portmapper at %s has program %d on port %d: stop that server first, or remove the entry with rpcinfo -d %d %d", r.addr, p.Number, there, p.Number, p.Version)
	}
}

// Port is where the programs are served.
func (r *Registration) Port() uint16 { return uint16(r.port) }

// Close takes back what is still there: the lock manager of the kernel replaces whatever
// there was of its program. A portmapper that hangs is waited for as long as one call may
// take. A nil r has nothing to take back.
func (r *Registration) Close() error {
	if r == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	var errs []error
	for _, p := range r.progs {
		there, err := r.call(ctx, procPort, p, 0)
		if err == nil && there == r.port {
			_, err = r.call(ctx, procUnset, p, 0)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func (r *Registration) call(ctx context.Context, proc uint32, p Program, port uint32) (result uint32, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	result, err = call(ctx, &net.Dialer{}, r.addr, proc, p, port, make([]byte, maxReply))
	return result, r.failed(ctx, err)
}

// failed says what went wrong with a call, in the same words each time: without the port
// of the connection.
func (r *Registration) failed(ctx context.Context, err error) error {
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		err = errSilent
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.As(err, &op):
		err = op.Err
	}
	return fmt.Errorf("portmapper at %s: %w", r.addr, err)
}

func call(ctx context.Context, dialer *net.Dialer, addr string, proc uint32, p Program, port uint32, buf []byte) (uint32, error) {
	c := sunrpc.Call{XID: rand.Uint32(), Prog: program, Vers: version, Proc: proc}
	d, err := sunrpc.Once(ctx, dialer, addr, &c, mapping(p, port), buf)
	if err != nil {
		return 0, err
	}
	return d.Uint32(), d.Err()
}

// mapping appends the arguments of version 2.
func mapping(p Program, port uint32) func(*xdr.Encoder) {
	return func(e *xdr.Encoder) {
		for _, v := range [...]uint32{p.Number, p.Version, p.proto(), port} {
			e.Uint32(v)
		}
	}
}

// Port asks the portmapper at addr for the port of a program; ErrNotRegistered if it has
// none. d makes the connection, ctx bounds the time, and buf, of 1 KiB or more, holds
// both messages. Portmappers answer version 2 over IPv4 only.
func Port(ctx context.Context, d *net.Dialer, addr netip.AddrPort, p Program, buf []byte) (uint16, error) {
	ask := port4
	if addr.Addr().Is6() && !addr.Addr().Is4In6() {
		ask = port6
	}
	port, err := ask(ctx, d, addr.String(), p, buf)
	if err == nil && port == 0 {
		err = ErrNotRegistered
	}
	return port, err
}

func port4(ctx context.Context, d *net.Dialer, addr string, p Program, buf []byte) (uint16, error) {
	port, err := call(ctx, d, addr, procPort, p, 0, buf)
	if port > 1<<16-1 {
		return 0, sunrpc.ErrReply
	}
	return uint16(port), err
}

func port6(ctx context.Context, d *net.Dialer, addr string, p Program, buf []byte) (uint16, error) {
	c := sunrpc.Call{XID: rand.Uint32(), Prog: program, Vers: version3, Proc: procAddress}
	netid := "tcp6"
	if p.UDP {
		netid = "udp6"
	}
	res, err := sunrpc.Once(ctx, d, addr, &c, mapping3(p, netid), buf)
	if err != nil {
		return 0, err
	}
	universal := string(res.String(maxReply))
	if res.Err() != nil || universal == "" {
		return 0, res.Err()
	}
	return portOf(universal)
}

// mapping3 appends the arguments of version 3, without an address and an owner.
func mapping3(p Program, netid string) func(*xdr.Encoder) {
	return func(e *xdr.Encoder) {
		e.Uint32(p.Number)
		e.Uint32(p.Version)
		for _, s := range [...]string{netid, "", ""} {
			e.String(s)
		}
	}
}

// portOf returns the port of a universal address, "ADDRESS.HIGH.LOW" (RFC 5665 §5.2.3.4).
func portOf(universal string) (uint16, error) {
	rest, low, ok := cutLast(universal)
	_, high, ok2 := cutLast(rest)
	h, err1 := strconv.ParseUint(high, 10, 8)
	l, err2 := strconv.ParseUint(low, 10, 8)
	if !ok || !ok2 || err1 != nil || err2 != nil {
		return 0, sunrpc.ErrReply
	}
	return uint16(h<<8 | l), nil
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}
