package portmap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"syscall"

	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// localSockets are where rpcbind listens for programs of this host; the first is
// abstract, and so of this network namespace.
var localSockets = []string{"@/run/rpcbind.sock", "/run/rpcbind.sock"}

const (
	procUnset3 = 2 // RPCBPROC_UNSET
	procDump   = 4 // RPCBPROC_DUMP

	maxDump = 256 << 10 // bytes; anybody here can make the list longer
)

var (
	// errElsewhere is returned for a portmapper that is not the one that was asked.
	errElsewhere = errors.New("it is of another network namespace")
	// errNotRoots is returned for a socket of just anybody: abstract names have no owner,
	// and not every rpcbind takes its own.
	errNotRoots = errors.New("it is not root who listens there")
)

// seize takes a program from the port where it is registered. rpcbind lets only root do
// that, whom it knows by a local socket (map_unset).
func (r *Registration) seize(ctx context.Context, p Program, there uint32) error {
	if r.dump == nil {
		r.dump = make([]byte, maxDump)
	}
	why := errors.New("rpcbind has no local socket here")
	for _, socket := range r.sockets {
		err := unset(ctx, socket, p, there, r.dump)
		if err == nil {
			return r.set(ctx, p)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			why = fmt.Errorf("rpcbind at %s: %w", socket, err)
		}
	}
	return fmt.Errorf("program %d cannot be taken from port %d, which the lock manager of the kernel has: %w: run this server as root, where rpcbind runs, or mount with nolock on this host", p.Number, there, why)
}

// set registers what nobody has registered.
func (r *Registration) set(ctx context.Context, p Program) error {
	done, err := r.call(ctx, procSet, p, r.port)
	if err == nil && done != 1 {
		err = fmt.Errorf("portmapper at %s: it does not register program %d", r.addr, p.Number)
	}
	return err
}

// unset removes a program with the rights of this process, if it is registered at the
// port there. A socket in the file system may be that of another network namespace,
// whose registrations are others. buf, of maxDump bytes, holds the messages.
func unset(ctx context.Context, socket string, p Program, there uint32, buf []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := trusted(nc.(*net.UnixConn)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	netid := "tcp"
	if p.UDP {
		netid = "udp"
	}
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

// trusted reports whether root, or the user of this process, listens at the other end.
func trusted(nc *net.UnixConn) error {
	raw, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, sockErr); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return errNotRoots
	}
	return nil
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
