// Package rawnfs makes NFS calls one by one, for tests that have to know, and to choose,
// what is sent when. It has no cache, and sends nothing again.
package rawnfs

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// Encoder is what the arguments of a call are.
type Encoder interface{ Encode(*xdr.Encoder) }

// Decoder is what its results are.
type Decoder interface{ Decode(*xdr.Decoder) error }

// CallLimit is how long a call may take.
const CallLimit = time.Minute

// Record returns the record of a call by root; payload is the data of a WRITE.
func Record(xid, prog, proc uint32, args Encoder, payload []byte) []byte {
	return RecordBy(sunrpc.AuthSysCred{}, xid, prog, proc, args, payload)
}

// RecordBy is Record for a call by somebody.
func RecordBy(who sunrpc.AuthSysCred, xid, prog, proc uint32, args Encoder, payload []byte) []byte {
	who.Machine = []byte("rawnfs")
	var e xdr.Encoder
	mark := sunrpc.BeginRecord(&e)
	sunrpc.EncodeCall(&e, &sunrpc.Call{
		XID: xid, Prog: prog, Vers: version(prog), Proc: proc,
		Cred: sunrpc.Cred{Flavor: sunrpc.AuthSys, Sys: who},
	})
	args.Encode(&e)
	e.FixedOpaque(payload)
	sunrpc.EndRecord(&e, mark, 0)
	return e.Buf
}

// version returns that of a program.
func version(prog uint32) uint32 {
	switch prog {
	case nlm4.Program:
		return nlm4.Version
	case nlm4.StatusProgram:
		return nlm4.StatusVersion
	}
	return nfs3.Version // also that of MOUNT
}

// DecodeReply decodes the reply to the call xid to res, and returns what follows: the data
// of a READ.
func DecodeReply(rec []byte, xid uint32, res Decoder) (*xdr.Decoder, error) {
	d := xdr.NewDecoder(rec)
	if rep, err := sunrpc.DecodeReply(&d); err != nil || rep.XID != xid {
		return nil, fmt.Errorf("reply %+v: %w", rep, err)
	}
	return &d, res.Decode(&d)
}

// ReadReply reads the record of a reply.
func ReadReply(r io.Reader) ([]byte, error) {
	var mark [4]byte
	if _, err := io.ReadFull(r, mark[:]); err != nil {
		return nil, err
	}
	d := xdr.NewDecoder(mark[:])
	rec := make([]byte, d.Uint32()&^(1<<31))
	_, err := io.ReadFull(r, rec)
	return rec, err
}

// Client makes one call after the other on a connection.
type Client struct {
	nc    net.Conn
	xid   uint32
	limit time.Duration
	// Sent is the record of the last call.
	Sent []byte
}

// Dial connects to a server.
func Dial(addr string) (*Client, error) { return DialTimeout(addr, CallLimit) }

// DialTimeout connects to a server within limit, which is that of each call, too.
func DialTimeout(addr string, limit time.Duration) (*Client, error) {
	nc, err := net.DialTimeout("tcp", addr, limit)
	return &Client{nc: nc, xid: rand.Uint32(), limit: limit}, err
}

// Close ends the connection.
func (c *Client) Close() error { return c.nc.Close() }

// Call makes an NFS call; payload is the data of a WRITE. It returns what follows the
// results: the data of a READ.
func (c *Client) Call(proc uint32, args Encoder, payload []byte, res Decoder) (*xdr.Decoder, error) {
	return c.CallTo(nfs3.Program, proc, args, payload, res)
}

// CallTo is Call for another program of the server: MOUNT, or the lock manager.
func (c *Client) CallTo(prog, proc uint32, args Encoder, payload []byte, res Decoder) (*xdr.Decoder, error) {
	c.xid++
	rec, err := c.Exchange(Record(c.xid, prog, proc, args, payload))
	if err != nil {
		return nil, err
	}
	return DecodeReply(rec, c.xid, res)
}

// Exchange sends the record of a call, which may have been sent before, and returns that
// of the reply.
func (c *Client) Exchange(call []byte) (reply []byte, err error) {
	if err := c.nc.SetDeadline(time.Now().Add(c.limit)); err != nil {
		return nil, err
	}
	c.Sent = call
	if _, err := c.nc.Write(call); err != nil {
		return nil, err
	}
	return ReadReply(c.nc)
}

// Mount returns the root of an export.
func (c *Client) Mount(path string) (nfs3.FileHandle, error) {
	var res nfs3.MntResult
	_, err := c.CallTo(nfs3.MountProgram, nfs3.MountProcMnt, &nfs3.MntArgs{Path: []byte(path)}, nil, &res)
	if err == nil && res.Status != nfs3.MountOK {
		err = fmt.Errorf("MNT: %v", res.Status)
	}
	return res.Handle, err
}

// Mkdir makes a directory and returns its handle.
func (c *Client) Mkdir(dir nfs3.FileHandle, name string) (nfs3.FileHandle, error) {
	var res nfs3.CreateResult
	_, err := c.Call(nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: nfs3.DirOpArgs{Dir: dir, Name: []byte(name)}}, nil, &res)
	if err == nil && (res.Status != nfs3.StatusOK || !res.Handle.Has) {
		err = fmt.Errorf("MKDIR %s: %v", name, res.Status)
	}
	return res.Handle.Handle, err
}

// Lookup finds a name.
func (c *Client) Lookup(dir nfs3.FileHandle, name string) (nfs3.LookupResult, error) {
	var res nfs3.LookupResult
	_, err := c.Call(nfs3.ProcLookup, &nfs3.LookupArgs{Dir: dir, Name: []byte(name)}, nil, &res)
	return res, err
}

// GetAttr returns the attributes of an object.
func (c *Client) GetAttr(h nfs3.FileHandle) (nfs3.GetAttrResult, error) {
	var res nfs3.GetAttrResult
	_, err := c.Call(nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, nil, &res)
	return res, err
}

// Read reads up to n bytes.
func (c *Client) Read(h nfs3.FileHandle, off uint64, n uint32) ([]byte, error) {
	var res nfs3.ReadResult
	d, err := c.Call(nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Offset: off, Count: n}, nil, &res)
	if err != nil {
		return nil, err
	}
	if res.Status != nfs3.StatusOK {
		return nil, fmt.Errorf("READ: %v", res.Status)
	}
	return d.FixedOpaque(int(res.Count)), d.Err()
}
