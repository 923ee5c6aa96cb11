package sunrpc

import "strconv"

// Version is the RPC protocol version (RFC 5531 §9).
const Version = 2

// Message types (RFC 5531 §9).
const (
	msgCall  = 0
	msgReply = 1
)

// Reply statuses (reply_stat, RFC 5531 §9).
const (
	msgAccepted = 0
	msgDenied   = 1
)

// Reasons of a denied reply (reject_stat, RFC 5531 §9).
const (
	rejectRPCMismatch = 0
	rejectAuthError   = 1
)

// Limits of RFC 5531 §8.2 and appendix A.
const (
	// MaxAuth is the largest body of a credential or a verifier, in bytes.
	MaxAuth = 400
	// MaxMachine is the longest machine name, in bytes.
	MaxMachine = 255
	// MaxGIDs is the largest number of supplementary groups.
	MaxGIDs = 16
	// MaxCallHeader is the size in bytes of the largest call header.
	MaxCallHeader = 6*4 + 2*(8+MaxAuth)
	// MaxReplyHeader is the size in bytes of the largest reply header.
	MaxReplyHeader = 6*4 + MaxAuth + 2*4
)

// Flavor is an authentication flavour (auth_flavor, RFC 5531 §8.2).
type Flavor uint32

// The flavours this package knows by name; it accepts AuthNone and AuthSys.
const (
	AuthNone  Flavor = 0
	AuthSys   Flavor = 1
	AuthShort Flavor = 2
)

// AcceptStat is the outcome of an accepted call (accept_stat, RFC 5531 §9). All
// but Success are errors, comparable with errors.Is.
type AcceptStat uint32

// The values of accept_stat.
const (
	Success      AcceptStat = 0
	ProgUnavail  AcceptStat = 1
	ProgMismatch AcceptStat = 2
	ProcUnavail  AcceptStat = 3
	GarbageArgs  AcceptStat = 4
	SystemErr    AcceptStat = 5
)

var acceptNames = [...]string{"SUCCESS", "PROG_UNAVAIL", "PROG_MISMATCH", "PROC_UNAVAIL", "GARBAGE_ARGS", "SYSTEM_ERR"}

// String returns the name in RFC 5531.
func (s AcceptStat) String() string { return nameOf(acceptNames[:], uint32(s), "accept_stat ") }

// Error makes s an error.
func (s AcceptStat) Error() string { return "sunrpc: " + s.String() }

// AuthStat says why authentication failed (auth_stat, RFC 5531 §9). All but
// AuthOK are errors, comparable with errors.Is.
type AuthStat uint32

// The values of auth_stat that concern AUTH_NONE and AUTH_SYS.
const (
	AuthOK           AuthStat = 0
	AuthBadCred      AuthStat = 1
	AuthRejectedCred AuthStat = 2
	AuthBadVerf      AuthStat = 3
	AuthRejectedVerf AuthStat = 4
	AuthTooWeak      AuthStat = 5
	AuthInvalidResp  AuthStat = 6
	AuthFailed       AuthStat = 7
)

var authNames = [...]string{
	"AUTH_OK", "AUTH_BADCRED", "AUTH_REJECTEDCRED", "AUTH_BADVERF",
	"AUTH_REJECTEDVERF", "AUTH_TOOWEAK", "AUTH_INVALIDRESP", "AUTH_FAILED",
}

// String returns the name in RFC 5531.
func (s AuthStat) String() string { return nameOf(authNames[:], uint32(s), "auth_stat ") }

// Error makes s an error.
func (s AuthStat) Error() string { return "sunrpc: " + s.String() }

func nameOf(names []string, v uint32, kind string) string {
	if int64(v) < int64(len(names)) {
		return names[v]
	}
	return kind + strconv.FormatUint(uint64(v), 10)
}
