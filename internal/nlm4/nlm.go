package nlm4

import (
	"math"
	"strconv"

	"loopnfs/internal/xdr"
)

// The program of C702 chapter 10.
const (
	Program = 100021
	Version = 4
)

// Procedure numbers. Those with Msg have no results: what came of them is told by a
// call of the one with Res to the lock manager that called, in its own time.
const (
	ProcNull       = 0
	ProcTest       = 1
	ProcLock       = 2
	ProcCancel     = 3
	ProcUnlock     = 4
	ProcGranted    = 5
	ProcTestMsg    = 6
	ProcLockMsg    = 7
	ProcCancelMsg  = 8
	ProcUnlockMsg  = 9
	ProcGrantedMsg = 10
	ProcTestRes    = 11
	ProcLockRes    = 12
	ProcCancelRes  = 13
	ProcUnlockRes  = 14
	ProcGrantedRes = 15
	ProcSMNotify   = 16 // by the status monitor of the same host
	ProcShare      = 20
	ProcUnshare    = 21
	ProcNMLock     = 22
	ProcFreeAll    = 23

	// NumProcs is one more than the highest number; 17 to 19 are not used.
	NumProcs = 24
)

var procNames = [NumProcs]string{
	"NULL", "TEST", "LOCK", "CANCEL", "UNLOCK", "GRANTED",
	"TEST_MSG", "LOCK_MSG", "CANCEL_MSG", "UNLOCK_MSG", "GRANTED_MSG",
	"TEST_RES", "LOCK_RES", "CANCEL_RES", "UNLOCK_RES", "GRANTED_RES", "SM_NOTIFY",
	ProcShare: "SHARE", ProcUnshare: "UNSHARE", ProcNMLock: "NM_LOCK", ProcFreeAll: "FREE_ALL",
}

// ProcName returns the name of a procedure, without NLMPROC4_, or "UNKNOWN".
func ProcName(proc uint32) string {
	if proc >= NumProcs || procNames[proc] == "" {
		return "UNKNOWN"
	}
	return procNames[proc]
}

const (
	// MaxObject is the largest netobj, and the longest name, in bytes
	// (MAXNETOBJ_SZ, LM_MAXSTRLEN).
	MaxObject = 1024
	// MaxArgs is the size in bytes of the largest encoded arguments, those of LOCK.
	MaxArgs = maxObj + 2*4 + maxLock + 2*4
	// MaxResult is the size in bytes of the largest encoded results, those of TEST.
	MaxResult = maxObj + 4 + 2*4 + maxObj + 2*8

	maxObj  = 4 + MaxObject
	maxLock = 3*maxObj + 4 + 2*8
)

// Status is the outcome of a procedure (nlm4_stats).
type Status uint32

// The values of nlm4_stats.
const (
	Granted           Status = 0
	Denied            Status = 1
	DeniedNoLocks     Status = 2 // out of what locks are made of
	Blocked           Status = 3 // GRANTED will be called
	DeniedGracePeriod Status = 4 // only those who had locks may have them now
	Deadlock          Status = 5
	ReadOnly          Status = 6
	StaleHandle       Status = 7
	TooBig            Status = 8 // the range ends past the largest offset
	Failed            Status = 9
)

var statusNames = [...]string{
	"NLM4_GRANTED", "NLM4_DENIED", "NLM4_DENIED_NOLOCKS", "NLM4_BLOCKED", "NLM4_DENIED_GRACE_PERIOD",
	"NLM4_DEADLCK", "NLM4_ROFS", "NLM4_STALE_FH", "NLM4_FBIG", "NLM4_FAILED",
}

// String returns the name in C702.
func (s Status) String() string {
	if int64(s) < int64(len(statusNames)) {
		return statusNames[s]
	}
	return "nlm4_stats " + strconv.FormatUint(uint64(s), 10)
}

// Range is the bytes from Start on: Len of them, or with a Len of 0 all there can be.
type Range struct{ Start, Len uint64 }

// Last returns the offset of the last byte; false if there is no such offset.
func (r Range) Last() (uint64, bool) {
	switch {
	case r.Len == 0:
		return math.MaxUint64, true
	case r.Len-1 > math.MaxUint64-r.Start:
		return 0, false
	}
	return r.Start + r.Len - 1, true
}

// RangeOf is the range from start to last, both included.
func RangeOf(start, last uint64) Range {
	if last == math.MaxUint64 {
		return Range{Start: start}
	}
	return Range{Start: start, Len: last - start + 1}
}

// Lock is an nlm4_lock: who wants or has which bytes of which file. SVID and Owner
// tell processes of the host Caller apart.
type Lock struct {
	Caller []byte
	Handle []byte
	Owner  []byte // oh
	SVID   uint32
	Range  Range
}

// Encode appends l.
func (l *Lock) Encode(e *xdr.Encoder) {
	e.Opaque(l.Caller)
	e.Opaque(l.Handle)
	e.Opaque(l.Owner)
	e.Uint32(l.SVID)
	l.Range.encode(e)
}

// Decode decodes l, borrowed.
func (l *Lock) Decode(d *xdr.Decoder) error {
	l.Caller = d.String(MaxObject)
	l.Handle = d.Opaque(MaxObject)
	l.Owner = d.Opaque(MaxObject)
	l.SVID = d.Uint32()
	l.Range.decode(d)
	return d.Err()
}

func (r *Range) encode(e *xdr.Encoder) {
	e.Uint64(r.Start)
	e.Uint64(r.Len)
}

func (r *Range) decode(d *xdr.Decoder) { r.Start, r.Len = d.Uint64(), d.Uint64() }

// LockArgs are the arguments of LOCK and NM_LOCK (nlm4_lockargs).
type LockArgs struct {
	Cookie    []byte
	Block     bool // wait for it
	Exclusive bool
	Lock      Lock
	Reclaim   bool   // the client had it before the server started
	State     uint32 // of the client's status monitor
}

// Encode appends a.
func (a *LockArgs) Encode(e *xdr.Encoder) {
	e.Opaque(a.Cookie)
	e.Bool(a.Block)
	e.Bool(a.Exclusive)
	a.Lock.Encode(e)
	e.Bool(a.Reclaim)
	e.Uint32(a.State)
}

// Decode decodes a, borrowed.
func (a *LockArgs) Decode(d *xdr.Decoder) error {
	a.Cookie = d.Opaque(MaxObject)
	a.Block, a.Exclusive = d.Bool(), d.Bool()
	a.Lock.Decode(d)
	a.Reclaim, a.State = d.Bool(), d.Uint32()
	return d.Err()
}

// CancelArgs are the arguments of CANCEL (nlm4_cancargs), those of the LOCK that is
// to wait no longer.
type CancelArgs struct {
	Cookie    []byte
	Block     bool
	Exclusive bool
	Lock      Lock
}

// Encode appends a.
func (a *CancelArgs) Encode(e *xdr.Encoder) {
	e.Opaque(a.Cookie)
	e.Bool(a.Block)
	e.Bool(a.Exclusive)
	a.Lock.Encode(e)
}

// Decode decodes a, borrowed.
func (a *CancelArgs) Decode(d *xdr.Decoder) error {
	a.Cookie = d.Opaque(MaxObject)
	a.Block, a.Exclusive = d.Bool(), d.Bool()
	return a.Lock.Decode(d)
}

// TestArgs are the arguments of TEST and of GRANTED (nlm4_testargs).
type TestArgs struct {
	Cookie    []byte
	Exclusive bool
	Lock      Lock
}

// Encode appends a.
func (a *TestArgs) Encode(e *xdr.Encoder) {
	e.Opaque(a.Cookie)
	e.Bool(a.Exclusive)
	a.Lock.Encode(e)
}

// Decode decodes a, borrowed.
func (a *TestArgs) Decode(d *xdr.Decoder) error {
	a.Cookie = d.Opaque(MaxObject)
	a.Exclusive = d.Bool()
	return a.Lock.Decode(d)
}

// UnlockArgs are the arguments of UNLOCK (nlm4_unlockargs).
type UnlockArgs struct {
	Cookie []byte
	Lock   Lock
}

// Encode appends a.
func (a *UnlockArgs) Encode(e *xdr.Encoder) {
	e.Opaque(a.Cookie)
	a.Lock.Encode(e)
}

// Decode decodes a, borrowed.
func (a *UnlockArgs) Decode(d *xdr.Decoder) error {
	a.Cookie = d.Opaque(MaxObject)
	return a.Lock.Decode(d)
}

// Result are the results of all procedures but TEST, SHARE and UNSHARE (nlm4_res).
type Result struct {
	Cookie []byte
	Status Status
}

// Encode appends r.
func (r *Result) Encode(e *xdr.Encoder) {
	e.Opaque(r.Cookie)
	e.Uint32(uint32(r.Status))
}

// Decode decodes r, borrowed.
func (r *Result) Decode(d *xdr.Decoder) error {
	r.Cookie = d.Opaque(MaxObject)
	r.Status = Status(d.Enum(uint32(Failed)))
	return d.Err()
}

// Holder is an nlm4_holder: a lock that is in the way.
type Holder struct {
	Exclusive bool
	SVID      uint32
	Owner     []byte
	Range     Range
}

// TestResult are the results of TEST (nlm4_testres); Holder with Denied only.
type TestResult struct {
	Cookie []byte
	Status Status
	Holder Holder
}

// Encode appends r.
func (r *TestResult) Encode(e *xdr.Encoder) {
	e.Opaque(r.Cookie)
	e.Uint32(uint32(r.Status))
	if r.Status != Denied {
		return
	}
	e.Bool(r.Holder.Exclusive)
	e.Uint32(r.Holder.SVID)
	e.Opaque(r.Holder.Owner)
	r.Holder.Range.encode(e)
}

// Decode decodes r, borrowed.
func (r *TestResult) Decode(d *xdr.Decoder) error {
	*r = TestResult{Cookie: d.Opaque(MaxObject), Status: Status(d.Enum(uint32(Failed)))}
	if r.Status == Denied {
		h := &r.Holder
		h.Exclusive, h.SVID, h.Owner = d.Bool(), d.Uint32(), d.Opaque(MaxObject)
		h.Range.decode(d)
	}
	return d.Err()
}

// ShareArgs are the arguments of SHARE and UNSHARE (nlm4_shareargs): what the caller
// does with the file, and what others must not. Both are of ShareRead and ShareWrite.
type ShareArgs struct {
	Cookie  []byte
	Caller  []byte
	Handle  []byte
	Owner   []byte
	Deny    uint32 // fsh4_mode
	Access  uint32 // fsh4_access
	Reclaim bool
}

// The bits of fsh4_mode and fsh4_access.
const (
	ShareRead  = 1
	ShareWrite = 2
)

// Encode appends a.
func (a *ShareArgs) Encode(e *xdr.Encoder) {
	e.Opaque(a.Cookie)
	e.Opaque(a.Caller)
	e.Opaque(a.Handle)
	e.Opaque(a.Owner)
	e.Uint32(a.Deny)
	e.Uint32(a.Access)
	e.Bool(a.Reclaim)
}

// Decode decodes a, borrowed.
func (a *ShareArgs) Decode(d *xdr.Decoder) error {
	a.Cookie = d.Opaque(MaxObject)
	a.Caller = d.String(MaxObject)
	a.Handle, a.Owner = d.Opaque(MaxObject), d.Opaque(MaxObject)
	a.Deny, a.Access = d.Enum(ShareRead|ShareWrite), d.Enum(ShareRead|ShareWrite)
	a.Reclaim = d.Bool()
	return d.Err()
}

// ShareResult are the results of SHARE and UNSHARE (nlm4_shareres); their sequence
// number, which nobody uses, is 0.
type ShareResult struct {
	Cookie []byte
	Status Status
}

// Encode appends r.
func (r *ShareResult) Encode(e *xdr.Encoder) {
	e.Opaque(r.Cookie)
	e.Uint32(uint32(r.Status))
	e.Uint32(0)
}

// Decode decodes r, borrowed.
func (r *ShareResult) Decode(d *xdr.Decoder) error {
	r.Cookie = d.Opaque(MaxObject)
	r.Status = Status(d.Enum(uint32(Failed)))
	d.Uint32()
	return d.Err()
}
