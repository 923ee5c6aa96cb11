// Package portmap tells the portmapper of this host (rpcbind) which programs are served
// on which port (RFC 1833 §3), for clients that ask it.
package portmap

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

const (
	program = 100000
	version = 2

	procSet   = 1
	procUnset = 2
	procPort  = 3 // GETPORT

	protoTCP = 6

	callTime = 5 * time.Second
	maxReply = 1 << 10 // bytes
)

// DefaultAddr is where the portmapper of this host listens.
const DefaultAddr = "127.0.0.1:111"

// Registration is what the portmapper at an address was told.
type Registration struct{ addr string }

// Register tells the portmapper at addr that NFS and MOUNT version 3 are served over TCP
// on port. What is registered there already is an error, unless it is that port.
func Register(addr string, port int) (*Registration, error) {
	r := &Registration{addr: addr}
	for i, prog := range programs {
		if err := r.register(prog, uint32(port)); err != nil {
			return nil, errors.Join(err, r.unset(programs[:i]))
		}
	}
	return r, nil
}

var programs = []uint32{nfs3.Program, nfs3.MountProgram}

func (r *Registration) register(prog, port uint32) error {
	done, err := r.call(procSet, prog, port)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("there is no portmapper at %s: start rpcbind, or serve without --portmap, since mounts with port= and mountport= need none", r.addr)
	case err != nil:
		return fmt.Errorf("portmapper at %s: %w", r.addr, err)
	case done == 1:
		return nil
	}
	switch there, err := r.call(procPort, prog, 0); {
	case err != nil:
		return fmt.Errorf("portmapper at %s: %w", r.addr, err)
	case there != port:
		return fmt.Errorf("the portmapper at %s has program %d on port %d: stop that server first, or remove the entry with rpcinfo -d %d 3", r.addr, prog, there, prog)
	}
	return nil
}

// Close takes everything back. A nil r has nothing to take back.
func (r *Registration) Close() error {
	if r == nil {
		return nil
	}
	return r.unset(programs)
}

func (r *Registration) unset(progs []uint32) error {
	var errs []error
	for _, prog := range progs {
		if _, err := r.call(procUnset, prog, 0); err != nil {
			errs = append(errs, fmt.Errorf("portmapper at %s: %w", r.addr, err))
		}
	}
	return errors.Join(errs...)
}

// call makes one call about version 3 of prog over a connection of its own.
func (r *Registration) call(proc, prog, port uint32) (result uint32, err error) {
	nc, err := net.DialTimeout("tcp", r.addr, callTime)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(callTime)); err != nil {
		return 0, err
	}
	xid := rand.Uint32()
	var e xdr.Encoder
	mark := sunrpc.BeginRecord(&e)
	sunrpc.EncodeCall(&e, &sunrpc.Call{XID: xid, Prog: program, Vers: version, Proc: proc})
	for _, v := range []uint32{prog, nfs3.Version, protoTCP, port} {
		e.Uint32(v)
	}
	sunrpc.EndRecord(&e, mark, 0)
	if _, err := nc.Write(e.Buf); err != nil {
		return 0, err
	}
	return readResult(nc, xid)
}

func readResult(r io.Reader, xid uint32) (uint32, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	d := xdr.NewDecoder(head[:])
	n := d.Uint32()
	if n>>31 == 0 || n&^(1<<31) > maxReply {
		return 0, errors.New("its reply is no reply of a portmapper")
	}
	b := make([]byte, n&^(1<<31))
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, err
	}
	d = xdr.NewDecoder(b)
	switch rep, err := sunrpc.DecodeReply(&d); {
	case err != nil:
		return 0, err
	case rep.XID != xid:
		return 0, errors.New("its reply is to another call")
	}
	return d.Uint32(), d.Err()
}
