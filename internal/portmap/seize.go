package portmap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"

	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// localSockets are where rpcbind listens for programs of this host; the first is
// abstract, and so of this network namespace.
var localSockets = []string{"@/run/rpcbind.sock", "/run/rpcbind.sock"}

const (
	procUnset3 = 2 // RPCBPROC_UNSET
	procDump   = 4 // RPCBPROC_DUMP

	maxDump = 64 << 10 // bytes
)

// errElsewhere is returned for a portmapper that is not the one that was asked.
var errElsewhere = errors.New("it is of another network namespace")

// seize takes a program from the port where it is registered. rpcbind lets only root do
// that, whom it knows by a local socket (map_unset).
func (r *Registration) seize(p Program, there uint32) error {
	var errs []error
	for _, socket := range r.sockets {
		err := unset(socket, p, there)
		if err == nil {
			return r.set(p)
		}
		errs = append(errs, fmt.Errorf("rpcbind at %s: %w", socket, err))
	}
	return fmt.Errorf("program %d cannot be taken from port %d, which the lock manager of the kernel has: %w", p.Number, there, errors.Join(errs...))
}

// set registers what nobody has registered.
func (r *Registration) set(p Program) error {
	done, err := r.call(procSet, p, r.port)
	if err == nil && done != 1 {
		err = fmt.Errorf("it does not register program %d", p.Number)
	}
	if err != nil {
		return fmt.Errorf("portmapper at %s: %w", r.addr, err)
	}
	return nil
}

// unset removes a program with the rights of this process, if it is registered at the
// port there. A socket in the file system may be that of another network namespace,
// whose registrations are others.
func unset(socket string, p Program, there uint32) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	netid := "tcp"
	if p.UDP {
		netid = "udp"
	}
	buf := make([]byte, maxDump)
	call := func(proc uint32, args func(*xdr.Encoder)) (xdr.Decoder, error) {
		c := sunrpc.Call{XID: rand.Uint32(), Prog: program, Vers: version3, Proc: proc}
		return sunrpc.Exchange(nc, &c, args, buf)
	}
	d, err := call(procDump, func(*xdr.Encoder) {})
	if err != nil {
		return err
	}
	if port, err := dumped(&d, p, netid); err != nil || uint32(port) != there {
		return errors.Join(errElsewhere, err)
	}
	if d, err = call(procUnset3, mapping3(p, netid)); err != nil {
		return err
	}
	if done := d.Bool(); !done && d.Err() == nil {
		return errors.New("it lets only root remove the entry")
	}
	return d.Err()
}

// dumped finds the port of a program in the results of DUMP, 0 for none: GETADDR answers
// for the transport it is asked over. A list that does not end is an error of d.
func dumped(d *xdr.Decoder, p Program, netid string) (port uint16, err error) {
	for d.Bool() {
		prog, vers := d.Uint32(), d.Uint32()
		net, addr := d.String(maxReply), d.String(maxReply)
		d.String(maxReply) // owner
		if d.Err() == nil && prog == p.Number && vers == p.Version && string(net) == netid {
			return portOf(string(addr))
		}
	}
	return 0, d.Err()
}
