package crash

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

type encoder interface{ Encode(*xdr.Encoder) }
type decoder interface{ Decode(*xdr.Decoder) error }

// client makes one call after the other.
type client struct {
	nc  net.Conn
	xid uint32
}

const callLimit = time.Minute

func dial(addr string) (*client, error) {
	nc, err := net.Dial("tcp", addr)
	return &client{nc, rand.Uint32()}, err
}

// call makes an NFS call; payload is the data of a WRITE. It returns what follows the
// results: the data of a READ.
func (c *client) call(proc uint32, args encoder, payload []byte, res decoder) (*xdr.Decoder, error) {
	return c.callTo(nfs3.Program, proc, args, payload, res)
}

func (c *client) callTo(prog, proc uint32, args encoder, payload []byte, res decoder) (*xdr.Decoder, error) {
	c.xid++
	var e xdr.Encoder
	mark := sunrpc.BeginRecord(&e)
	sunrpc.EncodeCall(&e, &sunrpc.Call{
		XID: c.xid, Prog: prog, Vers: nfs3.Version, Proc: proc,
		Cred: sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: sunrpc.AuthSysCred{Machine: []byte("crash")}},
	})
	args.Encode(&e)
	e.FixedOpaque(payload)
	sunrpc.EndRecord(&e, mark, 0)
	if err := c.nc.SetDeadline(time.Now().Add(callLimit)); err != nil {
		return nil, err
	}
	if _, err := c.nc.Write(e.Buf); err != nil {
		return nil, err
	}
	rec, err := readRecord(c.nc)
	if err != nil {
		return nil, err
	}
	d := xdr.NewDecoder(rec)
	if rep, err := sunrpc.DecodeReply(&d); err != nil || rep.XID != c.xid {
		return nil, fmt.Errorf("reply %+v: %w", rep, err)
	}
	return &d, res.Decode(&d)
}

func readRecord(r io.Reader) ([]byte, error) {
	var mark [4]byte
	if _, err := io.ReadFull(r, mark[:]); err != nil {
		return nil, err
	}
	d := xdr.NewDecoder(mark[:])
	rec := make([]byte, d.Uint32()&^(1<<31))
	_, err := io.ReadFull(r, rec)
	return rec, err
}

func (c *client) mount(path string) (nfs3.FileHandle, error) {
	var res nfs3.MntResult
	_, err := c.callTo(nfs3.MountProgram, nfs3.MountProcMnt, &nfs3.MntArgs{Path: []byte(path)}, nil, &res)
	if err == nil && res.Status != nfs3.MountOK {
		err = fmt.Errorf("MNT: %v", res.Status)
	}
	return res.Handle, err
}

func (c *client) lookup(dir nfs3.FileHandle, name string) (nfs3.LookupResult, error) {
	var res nfs3.LookupResult
	_, err := c.call(nfs3.ProcLookup, &nfs3.LookupArgs{Dir: dir, Name: []byte(name)}, nil, &res)
	return res, err
}

func (c *client) getattr(h nfs3.FileHandle) (nfs3.GetAttrResult, error) {
	var res nfs3.GetAttrResult
	_, err := c.call(nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, nil, &res)
	return res, err
}

// read reads up to n bytes.
func (c *client) read(h nfs3.FileHandle, off uint64, n uint32) ([]byte, error) {
	var res nfs3.ReadResult
	d, err := c.call(nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Offset: off, Count: n}, nil, &res)
	if err != nil {
		return nil, err
	}
	if res.Status != nfs3.StatusOK {
		return nil, fmt.Errorf("READ: %v", res.Status)
	}
	return d.FixedOpaque(int(res.Count)), d.Err()
}
