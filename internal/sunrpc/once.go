package sunrpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"

	"loopnfs/internal/xdr"
)

// ErrReply is returned by Once for something that is no reply to its call, or is too long.
var ErrReply = errors.New("sunrpc: that is not the reply to this call")

// Once makes one call over a connection of its own, made by d to addr over TCP, within
// the time of ctx. args appends the arguments; the results, borrowed from buf, are
// what is left in the decoder. buf bounds the size of the reply. An error of connecting
// is a *net.OpError with the Op "dial": nobody has seen the call then.
func Once(ctx context.Context, d *net.Dialer, addr string, c *Call, args func(*xdr.Encoder), buf []byte) (xdr.Decoder, error) {
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return xdr.Decoder{}, err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	return Exchange(nc, c, args, buf)
}

// Exchange makes one call over the stream nc, which nobody else uses meanwhile, as Once
// does. After an error nc is of no use any more.
func Exchange(nc net.Conn, c *Call, args func(*xdr.Encoder), buf []byte) (xdr.Decoder, error) {
	e := xdr.Encoder{Buf: buf[:0]}
	mark := BeginRecord(&e)
	EncodeCall(&e, c)
	args(&e)
	EndRecord(&e, mark, 0)
	if _, err := nc.Write(e.Buf); err != nil {
		return xdr.Decoder{}, err
	}
	return readReply(nc, c.XID, buf)
}

func readReply(r io.Reader, xid uint32, buf []byte) (xdr.Decoder, error) {
	b, err := readRecord(r, buf[:0:cap(buf)])
	if err != nil {
		return xdr.Decoder{}, err
	}
	d := xdr.NewDecoder(b)
	rep, err := DecodeReply(&d)
	if err == nil && rep.XID != xid {
		err = ErrReply
	}
	return d, err
}

// readRecord appends a record to b, up to its capacity.
func readRecord(r io.Reader, b []byte) ([]byte, error) {
	for range MaxFragments {
		var head [markLen]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, err
		}
		mark := binary.BigEndian.Uint32(head[:])
		at, size := len(b), int(mark&^lastFrag)
		if size > cap(b)-at {
			return nil, ErrReply
		}
		b = b[:at+size]
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, err
		}
		if mark&lastFrag != 0 {
			return b, nil
		}
	}
	return nil, ErrReply
}
