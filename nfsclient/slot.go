package nfsclient

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/xdr"
)

// errClosed ends the calls of a client that is closed.
var errClosed = errors.New("nfsclient: closed")

type slotState uint8

const (
	idle    slotState = iota // nobody's, or its owner is still encoding
	queued                   // to be sent
	sending                  // being sent
	waiting                  // sent; or to be sent again after a reconnect
	delayed                  // to be sent with a new xid when due
	done                     // its reply is with the owner
)

const (
	headBytes  = 4 + sunrpc.MaxCallHeader + nfs3.MaxArgs
	replyBytes = nfs3.MaxResult + 64
	xidOffset  = 4 // in a record: behind its mark
	// maxDamaged is how many damaged replies one call survives.
	maxDamaged = 5
	// maxGarbage is how often a call is sent again that the server could not
	// decode (as Linux does).
	maxGarbage = 2
)

// slot is one call in flight. Until submit and after done it belongs to whoever
// acquired it; in between the fields marked (mu) are guarded by transport.mu,
// the others belong to the reader, once sent.
type slot struct {
	t        *transport
	index    uint32
	reserved bool // for Memalloc scopes
	seq      uint32

	proc uint32
	call sunrpc.Call
	enc  xdr.Encoder // the record up to its payload
	out  [][]byte    // enc.Buf and the payload
	dec  xdr.Decoder // the results, for the owner

	replyBuf []byte      // small replies, preallocated
	dest     []byte      // where this call's reply goes: replyBuf or a directory buffer
	dirBufs  chan []byte // where dest goes back to, if it is a directory buffer
	reply    []byte      // the results, part of dest
	err      error       // RPC failure: no results

	// Asynchronous calls. complete runs when the reply is there, or err is
	// set; it returns false if the slot was submitted again. It never blocks.
	complete func(*slot) bool
	io       ioCall

	// What a WRITE in flight carries, for those who wait for a page of it.
	carries      atomic.Pointer[inode]
	first, pages atomic.Uint64

	wake chan struct{} // synchronous: one token with the reply

	own     *waitfor.Task // of this slot
	task    *waitfor.Task // (mu) who is recorded as waiting
	what    string
	ino     uint64
	state   slotState // (mu)
	xid     uint32    // (mu)
	sends   int       // (mu) on how many connections it was sent, in part or whole
	got     bool      // (mu) the reply came while still sending
	gone    bool      // (mu) given up by its owner
	taking  bool      // (mu) its reply is being received
	due     int64     // (mu) delayed until, ns
	overdue int64     // (mu) sent again after that, ns; 0: never
	tries   int       // (mu) how often it was delayed
	damaged int       // (mu)
	garbage int
}

// ioCall is what the completion of READ, WRITE or COMMIT works on.
type ioCall struct {
	ino    *inode
	folios []*alloc.Folio // referenced; cap is preallocated
	in     [][]byte       // scratch of the reader: where the data of a READ goes
	off    uint64         // of the first folio, bytes
	count  int            // bytes to move in all
	moved  int            // of those, in earlier parts
	start  uint64         // Client.callSeq at the start
	gen    uint64         // inode.gen at the start
	stable bool           // WRITE: every part was stable
	verf   [8]byte        // WRITE: of the unstable parts
	hasV   bool
	mixed  bool // WRITE: parts have different verifiers
	ahead  bool // READ: read-ahead
	res    readResult
	seqNow uint64 // COMMIT: Mapping.Seq when it was sent
	covers uint64 // COMMIT: inode.answered when it was sent
}

// readResult is what the reader found in front of the data of a READ.
type readResult struct {
	nfs3.ReadResult
	ok bool
}

func newSlot(t *transport, i int, task *waitfor.Task) *slot {
	return &slot{
		t: t, index: uint32(i), own: task,
		enc:      xdr.Encoder{Buf: make([]byte, 0, headBytes)},
		out:      make([][]byte, 0, t.maxPages+2),
		replyBuf: make([]byte, replyBytes),
		wake:     make(chan struct{}, 1),
		io: ioCall{
			folios: make([]*alloc.Folio, t.maxPages),
			in:     make([][]byte, 0, t.maxPages+1),
		},
	}
}

// identity is who a call is made for.
type identity struct {
	uid, gid uint32
	gids     [sunrpc.MaxGIDs]uint32
	n        int
}

// begin starts the record of a call to proc of program prog; the arguments are
// then encoded to enc.
func (s *slot) begin(prog, vers, proc uint32, sc gfp.Scope, who *identity) *xdr.Encoder {
	s.proc, s.dest, s.complete, s.err = proc, s.replyBuf, nil, nil
	s.reply, s.io.res.ok = nil, false
	s.call = sunrpc.Call{Prog: prog, Vers: vers, Proc: proc}
	sys := &s.call.Cred.Sys
	s.call.Cred.Flavor = sunrpc.AuthSys
	sys.Stamp = sunrpc.StampScope(s.t.wireScope(sc))
	sys.Machine = s.t.machine
	sys.UID, sys.GID, sys.GIDs, sys.NGIDs = who.uid, who.gid, who.gids, who.n
	s.t.mu.Lock()
	s.sends, s.tries, s.damaged, s.garbage, s.got, s.gone, s.taking, s.overdue = 0, 0, 0, 0, false, false, false, 0
	s.newXID()
	s.t.mu.Unlock()
	return s.header()
}

// again starts the record of the rest of a call's data, with a new xid; the
// arguments are then encoded to enc.
func (s *slot) again() *xdr.Encoder {
	s.t.mu.Lock()
	s.newXID()
	s.t.mu.Unlock()
	return s.header()
}

// header encodes the record mark and the call header.
func (s *slot) header() *xdr.Encoder {
	s.call.XID = s.xid
	s.enc.Buf = s.enc.Buf[:0]
	sunrpc.BeginRecord(&s.enc)
	sunrpc.EncodeCall(&s.enc, &s.call)
	return &s.enc
}

// newXID gives the call an xid that no other call in flight has: the low bits
// are the slot, the rest counts the calls of the slot. t.mu is held.
func (s *slot) newXID() {
	s.seq++
	s.xid = s.seq<<s.t.slotBits | s.index
}

// end finishes the record: pages of payload follow enc, of count bytes.
func (s *slot) end(payload [][]byte, count int) {
	s.out = append(s.out[:0], s.enc.Buf)
	s.out = append(s.out, payload...)
	s.finishRecord(count)
}

var padding [4]byte

// finishRecord adds the padding and fills in the record mark.
func (s *slot) finishRecord(count int) {
	pad := xdr.PadLen(count)
	if pad > 0 {
		s.out = append(s.out, padding[:pad])
	}
	sunrpc.EndRecord(&s.enc, 0, count+pad)
}

// errno is the error that a failed call reports: err is one of package sunrpc.
func errno(err error) error {
	switch err {
	case nil:
		return nil
	case errClosed:
		return syscall.EIO
	case sunrpc.ProcUnavail:
		return syscall.EOPNOTSUPP
	}
	if _, denied := err.(sunrpc.AuthStat); denied {
		return syscall.EACCES
	}
	return syscall.EIO
}

// jukeboxDelay is how long a call waits before it is made again, the n-th time.
func jukeboxDelay(n int) time.Duration {
	return min(100*time.Millisecond<<min(n, 6), 5*time.Second)
}
