package sunrpc

import (
	"errors"

	"loopnfs/internal/xdr"
)

// ErrNotReply is returned by DecodeReply for a message that is not a reply.
var ErrNotReply = errors.New("sunrpc: not a reply")

// ReplySuccess appends the header of a successful reply; the results follow.
func ReplySuccess(e *xdr.Encoder, xid uint32) { accepted(e, xid, Success) }

// ReplyProgUnavail answers a call to a program that is not served here.
func ReplyProgUnavail(e *xdr.Encoder, xid uint32) { accepted(e, xid, ProgUnavail) }

// ReplyProgMismatch answers a call to a version other than low to high.
func ReplyProgMismatch(e *xdr.Encoder, xid, low, high uint32) {
	accepted(e, xid, ProgMismatch)
	e.Uint32(low)
	e.Uint32(high)
}

// ReplyProcUnavail answers a call to a procedure that does not exist.
func ReplyProcUnavail(e *xdr.Encoder, xid uint32) { accepted(e, xid, ProcUnavail) }

// ReplyGarbageArgs answers a call whose arguments cannot be decoded.
func ReplyGarbageArgs(e *xdr.Encoder, xid uint32) { accepted(e, xid, GarbageArgs) }

// ReplySystemErr answers a call that could not be carried out at all.
func ReplySystemErr(e *xdr.Encoder, xid uint32) { accepted(e, xid, SystemErr) }

// ReplyRPCMismatch answers a call in another RPC version.
func ReplyRPCMismatch(e *xdr.Encoder, xid uint32) {
	denied(e, xid, rejectRPCMismatch)
	e.Uint32(Version)
	e.Uint32(Version)
}

// ReplyAuthError answers a call whose credential or verifier is refused.
func ReplyAuthError(e *xdr.Encoder, xid uint32, why AuthStat) {
	denied(e, xid, rejectAuthError)
	e.Uint32(uint32(why))
}

// ReplyDecodeError appends the reply that the error of DecodeCall asks for. It
// returns false, and appends nothing, if there is none: ErrNotCall.
func ReplyDecodeError(e *xdr.Encoder, xid uint32, err error) bool {
	why, isAuth := err.(AuthStat)
	switch {
	case err == ErrNotCall:
		return false
	case err == ErrRPCMismatch:
		ReplyRPCMismatch(e, xid)
	case isAuth:
		ReplyAuthError(e, xid, why)
	default:
		ReplyGarbageArgs(e, xid)
	}
	return true
}

func accepted(e *xdr.Encoder, xid uint32, stat AcceptStat) {
	e.Uint32(xid)
	e.Uint32(msgReply)
	e.Uint32(msgAccepted)
	encodeAuthNone(e)
	e.Uint32(uint32(stat))
}

func denied(e *xdr.Encoder, xid, why uint32) {
	e.Uint32(xid)
	e.Uint32(msgReply)
	e.Uint32(msgDenied)
	e.Uint32(why)
}

// Reply is the header of a reply message (RFC 5531 §9).
type Reply struct {
	XID uint32
	// Low and High are the versions the server has, with the errors
	// ProgMismatch and ErrRPCMismatch.
	Low, High uint32
}

// DecodeReply decodes a reply header and leaves d at the results.
//
// The error is nil for a successful call, an AcceptStat or an AuthStat that
// names the failure, ErrRPCMismatch, ErrNotReply, or an error of xdr. The XID
// is valid with all but ErrNotReply.
func DecodeReply(d *xdr.Decoder) (Reply, error) {
	r := Reply{XID: d.Uint32()}
	if d.Uint32() != msgReply || d.Err() != nil {
		return Reply{}, ErrNotReply
	}
	var err error
	if d.Enum(msgDenied) == msgDenied {
		err = decodeDenied(d, &r)
	} else {
		err = decodeAccepted(d, &r)
	}
	return r, err
}

func decodeAccepted(d *xdr.Decoder, r *Reply) error {
	d.Uint32() // flavour of the verifier
	d.Opaque(MaxAuth)
	stat := AcceptStat(d.Enum(uint32(SystemErr)))
	if stat == ProgMismatch {
		r.Low, r.High = d.Uint32(), d.Uint32()
	}
	return failure(d, stat != Success, stat)
}

func decodeDenied(d *xdr.Decoder, r *Reply) error {
	if d.Enum(rejectAuthError) == rejectAuthError {
		why := AuthStat(d.Uint32())
		return failure(d, true, why)
	}
	r.Low, r.High = d.Uint32(), d.Uint32()
	return failure(d, true, ErrRPCMismatch)
}

// failure is the error of d, or else err if the call failed.
func failure(d *xdr.Decoder, failed bool, err error) error {
	if failed && d.Err() == nil {
		return err
	}
	return d.Err()
}
