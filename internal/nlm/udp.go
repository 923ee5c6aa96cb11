package nlm

import (
	"net"
	"net/netip"

	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// maxDatagram is the largest call of the status monitor, in bytes.
const maxDatagram = sunrpc.MaxCallHeader + 4 + nlm4.MaxObject + 4

// ServeStatus answers calls of the status monitor that come over UDP, as those of Linux
// do, until conn is closed. It allocates nothing per call and answers each at once.
func (m *Manager) ServeStatus(conn *net.UDPConn) {
	buf, e := make([]byte, maxDatagram), xdr.Encoder{Buf: make([]byte, 0, sunrpc.MaxReplyHeader+8)}
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		e.Buf = e.Buf[:0]
		if m.answerStatus(&e, buf[:n], from) {
			_, _ = conn.WriteToUDPAddrPort(e.Buf, from) // who does not hear it asks again
		}
	}
}

// answerStatus answers one call; false if it is none.
func (m *Manager) answerStatus(e *xdr.Encoder, b []byte, from netip.AddrPort) bool {
	var c sunrpc.Call
	d := xdr.NewDecoder(b)
	if err := sunrpc.DecodeCall(&d, &c); err != nil {
		return sunrpc.ReplyDecodeError(e, c.XID, err)
	}
	switch {
	case c.Prog != nlm4.StatusProgram:
		sunrpc.ReplyProgUnavail(e, c.XID)
		return true
	case c.Vers != nlm4.StatusVersion:
		sunrpc.ReplyProgMismatch(e, c.XID, nlm4.StatusVersion, nlm4.StatusVersion)
		return true
	}
	sunrpc.ReplySuccess(e, c.XID)
	if stat := m.Status(from.Addr().Unmap(), c.Proc, &d, e); stat != sunrpc.Success {
		e.Buf = e.Buf[:0]
		if stat == sunrpc.GarbageArgs {
			sunrpc.ReplyGarbageArgs(e, c.XID)
		} else {
			sunrpc.ReplyProcUnavail(e, c.XID)
		}
	}
	return true
}

// Status carries out a procedure of the status monitor for the host at addr: it decodes
// the arguments and encodes the results. It monitors nobody for others.
func (m *Manager) Status(addr netip.Addr, proc uint32, d *xdr.Decoder, e *xdr.Encoder) sunrpc.AcceptStat {
	switch proc {
	case nlm4.StatusProcNull:
	case nlm4.StatusProcStat:
		var a nlm4.StatArgs
		if a.Decode(d) != nil {
			return sunrpc.GarbageArgs
		}
		res := nlm4.StatResult{Failed: true, State: m.State()}
		res.Encode(e)
	case nlm4.StatusProcNotify:
		var a nlm4.NotifyArgs
		if a.Decode(d) != nil {
			return sunrpc.GarbageArgs
		}
		m.Rebooted(addr, a.Name, a.State)
	default:
		return sunrpc.ProcUnavail
	}
	return sunrpc.Success
}
