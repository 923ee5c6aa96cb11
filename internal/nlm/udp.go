package nlm

import (
	"net"
	"net/netip"

	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// maxDatagram is the largest call that comes over UDP, in bytes.
const maxDatagram = sunrpc.MaxCallHeader + 4 + nlm4.MaxObject + 4 + nlm4.PrivSize

// ServeStatus answers calls that come over UDP, until conn is closed: those of the status
// monitor, as Linux makes them, and what the status monitor of this host tells the lock
// manager. It allocates nothing per call and answers each at once.
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
	serve, version := m.statusOverUDP, uint32(nlm4.StatusVersion)
	switch c.Prog {
	case nlm4.StatusProgram:
	case nlm4.Program:
		serve, version = m.lockOverUDP, nlm4.Version
	default:
		sunrpc.ReplyProgUnavail(e, c.XID)
		return true
	}
	if c.Vers != version {
		sunrpc.ReplyProgMismatch(e, c.XID, version, version)
		return true
	}
	sunrpc.ReplySuccess(e, c.XID)
	if stat := serve(from, c.Proc, &d, e); stat != sunrpc.Success {
		e.Buf = e.Buf[:0]
		if stat == sunrpc.GarbageArgs {
			sunrpc.ReplyGarbageArgs(e, c.XID)
		} else {
			sunrpc.ReplyProcUnavail(e, c.XID)
		}
	}
	return true
}

// statusOverUDP carries out a procedure of the status monitor. NULL from this host is
// mount.nfs, which asks whether to start rpc.statd: it has to, for the lock manager of the
// kernel wants one that monitors hosts for it.
func (m *Manager) statusOverUDP(from netip.AddrPort, proc uint32, d *xdr.Decoder, e *xdr.Encoder) sunrpc.AcceptStat {
	addr := from.Addr().Unmap()
	if proc == nlm4.StatusProcNull && addr.IsLoopback() {
		return sunrpc.ProcUnavail
	}
	return m.Status(addr, proc, d, e)
}

// lockOverUDP carries out SM_NOTIFY, which is believed of privileged programs of this
// host only (nlm_privileged_requester).
func (m *Manager) lockOverUDP(from netip.AddrPort, proc uint32, d *xdr.Decoder, _ *xdr.Encoder) sunrpc.AcceptStat {
	switch {
	case proc == nlm4.ProcNull:
		return sunrpc.Success
	case proc != nlm4.ProcSMNotify || !from.Addr().Unmap().IsLoopback() || from.Port() >= firstFreePort:
		return sunrpc.ProcUnavail
	}
	var a nlm4.ChangeArgs
	if a.Decode(d) != nil {
		return sunrpc.GarbageArgs
	}
	m.Rebooted(netip.AddrFrom16(a.Priv).Unmap(), a.Name, a.State)
	return sunrpc.Success
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
