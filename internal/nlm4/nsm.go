package nlm4

import "loopnfs/internal/xdr"

// The status monitor of C702 chapter 11.
const (
	StatusProgram = 100024
	StatusVersion = 1
)

// Procedure numbers of the status monitor. MON to SIMU_CRASH (2 to 5) are for the lock
// managers of the same host.
const (
	StatusProcNull   = 0
	StatusProcStat   = 1
	StatusProcMon    = 2
	StatusProcUnmon  = 3
	StatusProcNotify = 6
)

// PrivSize is the size in bytes of what a lock manager has the status monitor keep for
// it about a host (SM_PRIV_SIZE).
const PrivSize = 16

var statusProcNames = [...]string{"NULL", "STAT", "MON", "UNMON", "UNMON_ALL", "SIMU_CRASH", "NOTIFY"}

// StatusProcName returns the name of a procedure of the status monitor, with SM_ before
// it, or "UNKNOWN".
func StatusProcName(proc uint32) string {
	if proc >= uint32(len(statusProcNames)) {
		return "UNKNOWN"
	}
	return "SM_" + statusProcNames[proc]
}

// NotifyArgs are the arguments of SM_NOTIFY (stat_chge), and of FREE_ALL of the lock
// manager (nlm4_notify): a host whose state has changed. An odd state is up, and each
// start has a higher one.
type NotifyArgs struct {
	Name  []byte
	State uint32
}

// Encode appends a.
func (a *NotifyArgs) Encode(e *xdr.Encoder) {
	e.Opaque(a.Name)
	e.Uint32(a.State)
}

// Decode decodes a, borrowed.
func (a *NotifyArgs) Decode(d *xdr.Decoder) error {
	a.Name = d.String(MaxObject)
	a.State = d.Uint32()
	return d.Err()
}

// StatArgs are the arguments of SM_STAT (sm_name): can this host be monitored?
type StatArgs struct{ Name []byte }

// Encode appends a.
func (a *StatArgs) Encode(e *xdr.Encoder) { e.Opaque(a.Name) }

// Decode decodes a, borrowed.
func (a *StatArgs) Decode(d *xdr.Decoder) error {
	a.Name = d.String(MaxObject)
	return d.Err()
}

// StatResult are the results of SM_STAT (sm_stat_res): whether it can be, and the
// state of the monitor itself.
type StatResult struct {
	Failed bool
	State  uint32
}

// Encode appends r.
func (r *StatResult) Encode(e *xdr.Encoder) {
	e.Bool(r.Failed)
	e.Uint32(r.State)
}

// Decode decodes r.
func (r *StatResult) Decode(d *xdr.Decoder) error {
	r.Failed, r.State = d.Bool(), d.Uint32()
	return d.Err()
}

// MonArgs are the arguments of SM_MON (mon), and without Priv of SM_UNMON (mon_id): when
// the state of the host Name changes, the status monitor is to call a procedure of a
// program of this host.
type MonArgs struct {
	Name             []byte
	MyName           []byte
	Prog, Vers, Proc uint32
	Priv             [PrivSize]byte
}

// Encode appends a, as the arguments of SM_MON.
func (a *MonArgs) Encode(e *xdr.Encoder) {
	a.EncodeID(e)
	e.FixedOpaque(a.Priv[:])
}

// EncodeID appends a, as the arguments of SM_UNMON.
func (a *MonArgs) EncodeID(e *xdr.Encoder) {
	e.Opaque(a.Name)
	e.Opaque(a.MyName)
	for _, v := range [...]uint32{a.Prog, a.Vers, a.Proc} {
		e.Uint32(v)
	}
}

// Decode decodes a, of SM_MON, borrowed.
func (a *MonArgs) Decode(d *xdr.Decoder) error {
	a.Name, a.MyName = d.String(MaxObject), d.String(MaxObject)
	a.Prog, a.Vers, a.Proc = d.Uint32(), d.Uint32(), d.Uint32()
	copy(a.Priv[:], d.FixedOpaque(PrivSize))
	return d.Err()
}

// ChangeArgs are the arguments of NLM4_SM_NOTIFY (status of the status monitor): the
// state of a host has changed, for which MonArgs had Priv.
type ChangeArgs struct {
	NotifyArgs
	Priv [PrivSize]byte
}

// Encode appends a.
func (a *ChangeArgs) Encode(e *xdr.Encoder) {
	a.NotifyArgs.Encode(e)
	e.FixedOpaque(a.Priv[:])
}

// Decode decodes a, borrowed.
func (a *ChangeArgs) Decode(d *xdr.Decoder) error {
	a.NotifyArgs.Decode(d)
	copy(a.Priv[:], d.FixedOpaque(PrivSize))
	return d.Err()
}
