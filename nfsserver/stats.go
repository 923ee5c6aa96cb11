package nfsserver

import (
	"sync/atomic"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
)

// Stats counts what a server did since it was made, and tells what it does now.
type Stats struct {
	Conns, LocalConns int // open now; of clients on this host
	Accepted, Refused uint64
	BadRecords        uint64 // connections closed for a damaged record
	Moved             uint64 // times the client of a connection came to this host or left it, with its address
	AddressChanges    uint64 // of this host
	Timeouts          uint64 // connections closed because the peer was too slow
	Panics            uint64

	Calls      [nfs3.NumProcs]uint64 // by NFS procedure number
	MountCalls uint64
	LockCalls  uint64 // of the lock manager and the status monitor
	// StableReplies are WRITEs made more durable than their clients asked for
	// (StabilityPolicy).
	StableReplies uint64
	// Duplicates are calls that were answered with the reply to the same call,
	// sent before.
	Duplicates uint64

	// Replaced are readers that carried out a call that took too long, of which Late are at
	// it still: while there are several, all such calls are for workers.
	Replaced uint64
	Late     int

	Busy         int   // workers that carry out a call now
	InFlight     int   // requests from receipt to reply
	PayloadBytes int64 // of the arena: data of READs, WRITEs and listings in flight
}

type counters struct {
	accepted, refused, badRecords, timeouts, panics atomic.Uint64
	moved                                           atomic.Uint64
	calls                                           [nfs3.NumProcs]atomic.Uint64
	mountCalls, lockCalls, stable, duplicates       atomic.Uint64
	busy                                            atomic.Int64
}

// call counts c, whose procedure exists.
func (n *counters) call(c *sunrpc.Call) {
	switch c.Prog {
	case nfs3.Program:
		n.calls[c.Proc].Add(1)
	case nfs3.MountProgram:
		n.mountCalls.Add(1)
	default:
		n.lockCalls.Add(1)
	}
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	used := s.adm.now()
	st := Stats{
		Accepted: s.count.accepted.Load(), Refused: s.count.refused.Load(),
		Moved: s.count.moved.Load(), AddressChanges: s.generation(),
		BadRecords: s.count.badRecords.Load(), Timeouts: s.count.timeouts.Load(),
		Panics: s.count.panics.Load(), MountCalls: s.count.mountCalls.Load(), LockCalls: s.count.lockCalls.Load(),
		StableReplies: s.count.stable.Load(), Duplicates: s.count.duplicates.Load(),
		Replaced: s.lending.replaced.Load(), Late: int(max(s.lending.late.Load(), 0)),
		Busy: int(s.count.busy.Load()), InFlight: int(used.slots), PayloadBytes: used.bytes,
	}
	for i := range st.Calls {
		st.Calls[i] = s.count.calls[i].Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Conns = len(s.conns)
	for c := range s.conns {
		if c.isLocal() {
			st.LocalConns++
		}
	}
	return st
}
