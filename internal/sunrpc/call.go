package sunrpc

import (
	"errors"

	"loopnfs/internal/xdr"
)

// Errors of DecodeCall besides AuthStat values and those of xdr.
var (
	// ErrNotCall is returned for a message that is not a call, or is too
	// short to tell. It has no reply.
	ErrNotCall = errors.New("sunrpc: not a call")
	// ErrRPCMismatch is returned for an RPC version other than 2, by
	// DecodeReply for a server that has no version 2.
	ErrRPCMismatch = errors.New("sunrpc: RPC_MISMATCH")
)

// AuthSysCred is the body of an AUTH_SYS credential (RFC 5531 appendix A).
type AuthSysCred struct {
	Stamp   uint32
	Machine []byte // at most MaxMachine bytes; decoded: borrowed
	UID     uint32
	GID     uint32
	GIDs    [MaxGIDs]uint32
	NGIDs   int // how many of GIDs are set, 0 to MaxGIDs
}

// Groups returns the supplementary groups, a slice of c.GIDs.
func (c *AuthSysCred) Groups() []uint32 { return c.GIDs[:c.NGIDs] }

// Cred is the credential of a call. Sys is zero unless Flavor is AuthSys.
type Cred struct {
	Flavor Flavor
	Sys    AuthSysCred
}

// Call is the header of a call message (RFC 5531 §9).
type Call struct {
	XID, Prog, Vers, Proc uint32
	Cred                  Cred
}

// DecodeCall decodes a call header into c and leaves d at the arguments. The
// machine name is borrowed from d's data.
//
// The error is ErrNotCall, ErrRPCMismatch, an AuthStat (AuthBadCred,
// AuthRejectedCred, AuthTooWeak or AuthBadVerf) or xdr.ErrShort; see
// ReplyDecodeError. c.XID is valid with all but ErrNotCall.
func DecodeCall(d *xdr.Decoder, c *Call) error {
	*c = Call{XID: d.Uint32()}
	if d.Uint32() != msgCall || d.Err() != nil {
		return ErrNotCall
	}
	if v := d.Uint32(); v != Version && d.Err() == nil {
		return ErrRPCMismatch
	}
	c.Prog, c.Vers, c.Proc = d.Uint32(), d.Uint32(), d.Uint32()
	decodeCred(d, &c.Cred)
	d.Uint32() // any flavour of verifier will do: none carries a proof here
	d.OpaqueMax(MaxAuth, AuthBadVerf)
	return d.Err()
}

func decodeCred(d *xdr.Decoder, c *Cred) {
	c.Flavor = Flavor(d.Uint32())
	body := d.OpaqueMax(MaxAuth, AuthBadCred)
	if d.Err() != nil {
		return
	}
	if err := decodeCredBody(body, c); err != nil {
		d.Fail(err)
	}
}

func decodeCredBody(body []byte, c *Cred) error {
	switch {
	case c.Flavor == AuthNone && len(body) == 0:
		return nil
	case c.Flavor == AuthNone:
		return AuthBadCred
	case c.Flavor == AuthSys:
		return decodeAuthSys(body, &c.Sys)
	case c.Flavor == AuthShort:
		return AuthRejectedCred // no server here ever hands one out
	}
	return AuthTooWeak
}

func decodeAuthSys(body []byte, s *AuthSysCred) error {
	d := xdr.NewDecoder(body)
	s.Stamp = d.Uint32()
	s.Machine = d.String(MaxMachine)
	s.UID, s.GID = d.Uint32(), d.Uint32()
	s.NGIDs = int(d.Enum(MaxGIDs))
	for i := range s.NGIDs {
		s.GIDs[i] = d.Uint32()
	}
	if d.Err() != nil || d.Remaining() != 0 {
		*s = AuthSysCred{}
		return AuthBadCred
	}
	return nil
}

// EncodeCall appends the header of c with an AUTH_NONE verifier; the arguments
// follow. A credential other than AUTH_SYS is sent as AUTH_NONE. A machine name
// or a list of groups over its limit is cut.
func EncodeCall(e *xdr.Encoder, c *Call) {
	e.Uint32(c.XID)
	e.Uint32(msgCall)
	e.Uint32(Version)
	e.Uint32(c.Prog)
	e.Uint32(c.Vers)
	e.Uint32(c.Proc)
	encodeCred(e, &c.Cred)
	encodeAuthNone(e)
}

func encodeAuthNone(e *xdr.Encoder) { e.Uint64(0) } // AUTH_NONE, length 0

func encodeCred(e *xdr.Encoder, c *Cred) {
	if c.Flavor != AuthSys {
		encodeAuthNone(e)
		return
	}
	e.Uint32(uint32(AuthSys))
	off := e.Len()
	e.Uint32(0)
	encodeAuthSys(e, &c.Sys)
	e.PutUint32At(off, uint32(e.Len()-off-4))
}

func encodeAuthSys(e *xdr.Encoder, s *AuthSysCred) {
	e.Uint32(s.Stamp)
	e.Opaque(s.Machine[:min(len(s.Machine), MaxMachine)])
	e.Uint32(s.UID)
	e.Uint32(s.GID)
	gids := s.GIDs[:min(max(s.NGIDs, 0), MaxGIDs)]
	e.Uint32(uint32(len(gids)))
	for _, g := range gids {
		e.Uint32(g)
	}
}
