package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
)

// procedure carries out one call: it decodes the arguments from r.dec, calls the
// file system and encodes the results to r.enc. Whatever it encoded is dropped
// if r.accept is no longer Success afterwards.
type procedure func(r *request)

// nfsProcs are the procedures of RFC 1813 §3.3, by number.
var nfsProcs = [nfs3.NumProcs]procedure{
	nfs3.ProcNull:        null,
	nfs3.ProcGetAttr:     getattr,
	nfs3.ProcSetAttr:     setattr,
	nfs3.ProcLookup:      lookup,
	nfs3.ProcAccess:      access,
	nfs3.ProcReadlink:    readlink,
	nfs3.ProcRead:        read,
	nfs3.ProcWrite:       write,
	nfs3.ProcCreate:      create,
	nfs3.ProcMkdir:       mkdir,
	nfs3.ProcSymlink:     symlink,
	nfs3.ProcMknod:       mknod,
	nfs3.ProcRemove:      remove,
	nfs3.ProcRmdir:       rmdir,
	nfs3.ProcRename:      rename,
	nfs3.ProcLink:        link,
	nfs3.ProcReaddir:     readdir,
	nfs3.ProcReaddirplus: readdirplus,
	nfs3.ProcFSStat:      fsstat,
	nfs3.ProcFSInfo:      fsinfo,
	nfs3.ProcPathConf:    pathconf,
	nfs3.ProcCommit:      commit,
}

// mountProcs are the procedures of RFC 1813 appendix I, by number.
var mountProcs = [...]procedure{
	nfs3.MountProcNull:    null,
	nfs3.MountProcMnt:     mnt,
	nfs3.MountProcDump:    dump,
	nfs3.MountProcUmnt:    umnt,
	nfs3.MountProcUmntAll: umntall,
	nfs3.MountProcExport:  listExports,
}

// lockProcs are the procedures of the lock manager, by number; those that a server has
// no use for are nil.
var lockProcs = [nlm4.NumProcs]procedure{
	nlm4.ProcNull:       null,
	nlm4.ProcTest:       lockTest,
	nlm4.ProcLock:       lockLock,
	nlm4.ProcCancel:     lockCancel,
	nlm4.ProcUnlock:     lockUnlock,
	nlm4.ProcTestMsg:    later(nlm4.ProcTestRes, lockTest),
	nlm4.ProcLockMsg:    later(nlm4.ProcLockRes, lockLock),
	nlm4.ProcCancelMsg:  later(nlm4.ProcCancelRes, lockCancel),
	nlm4.ProcUnlockMsg:  later(nlm4.ProcUnlockRes, lockUnlock),
	nlm4.ProcGrantedRes: null, // GRANTED_MSG is never called
	nlm4.ProcShare:      lockShare,
	nlm4.ProcUnshare:    lockUnshare,
	nlm4.ProcNMLock:     lockUnmonitored,
	nlm4.ProcFreeAll:    lockFreeAll,
}

// statusProcs are the procedures of the status monitor, by number.
var statusProcs = [...]procedure{
	nlm4.StatusProcNull:   status,
	nlm4.StatusProcStat:   status,
	nlm4.StatusProcNotify: status,
}

// null answers NULL (RFC 1813 §3.3.0): no arguments, no results.
func null(*request) {}

// dispatch finds the procedure and runs it.
func (r *request) dispatch() {
	if r.headerErr != nil {
		r.startReply()
		sunrpc.ReplyDecodeError(&r.enc, r.call.XID, r.headerErr)
		return
	}
	proc, stat := r.srv.findProcedure(&r.call)
	if proc == nil {
		r.accept = stat
		return
	}
	if !r.op.NoWait {
		r.srv.count.call(&r.call)
	}
	proc(r)
}

// seldomWaits reports whether a call is worth trying without waiting: it syncs nothing,
// and what it needs is mostly in memory.
func seldomWaits(c *sunrpc.Call) bool {
	if c.Prog != nfs3.Program || c.Vers != nfs3.Version {
		return false
	}
	switch c.Proc {
	case nfs3.ProcNull, nfs3.ProcGetAttr, nfs3.ProcLookup, nfs3.ProcAccess, nfs3.ProcRead, nfs3.ProcWrite:
		return true
	}
	return false
}

// program is one that is served here, in one version.
type program struct {
	version uint32
	procs   []procedure
	name    func(proc uint32) string
	// locks is set for what is served only if there is a lock manager.
	locks bool
}

var programs = map[uint32]program{
	nfs3.Program:       {nfs3.Version, nfsProcs[:], nfs3.ProcName, false},
	nfs3.MountProgram:  {nfs3.MountVersion, mountProcs[:], nfs3.MountProcName, false},
	nlm4.Program:       {nlm4.Version, lockProcs[:], nlm4.ProcName, true},
	nlm4.StatusProgram: {nlm4.StatusVersion, statusProcs[:], nlm4.StatusProcName, true},
}

func (s *Server) findProcedure(c *sunrpc.Call) (procedure, sunrpc.AcceptStat) {
	p, ok := programs[c.Prog]
	switch {
	case !ok || p.locks && s.cfg.Locks == nil:
		return nil, sunrpc.ProgUnavail
	case c.Vers != p.version:
		return nil, sunrpc.ProgMismatch
	case c.Proc >= uint32(len(p.procs)) || p.procs[c.Proc] == nil:
		return nil, sunrpc.ProcUnavail
	}
	return p.procs[c.Proc], sunrpc.Success
}

// procName returns the name of the procedure that c calls, for people.
func procName(c *sunrpc.Call) string {
	if p, ok := programs[c.Prog]; ok {
		return p.name(c.Proc)
	}
	return nfs3.ProcName(c.Proc)
}

func (r *request) name() string { return procName(&r.call) }
