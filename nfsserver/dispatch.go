package nfsserver

import (
	"loopnfs/internal/nfs3"
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

// null answers NULL (RFC 1813 §3.3.0): no arguments, no results.
func null(*request) {}

// dispatch finds the procedure and runs it.
func (r *request) dispatch() {
	if r.headerErr != nil {
		r.startReply()
		sunrpc.ReplyDecodeError(&r.enc, r.call.XID, r.headerErr)
		return
	}
	proc, stat := findProcedure(&r.call)
	if proc == nil {
		r.accept = stat
		return
	}
	r.srv.count.call(&r.call)
	proc(r)
}

func findProcedure(c *sunrpc.Call) (procedure, sunrpc.AcceptStat) {
	var procs []procedure
	switch c.Prog {
	case nfs3.Program:
		procs = nfsProcs[:]
	case nfs3.MountProgram:
		procs = mountProcs[:]
	default:
		return nil, sunrpc.ProgUnavail
	}
	switch {
	case c.Vers != nfs3.Version: // MOUNT has the same
		return nil, sunrpc.ProgMismatch
	case c.Proc >= uint32(len(procs)):
		return nil, sunrpc.ProcUnavail
	}
	return procs[c.Proc], sunrpc.Success
}

// procName returns the name of the procedure that c calls, for people.
func procName(c *sunrpc.Call) string {
	if c.Prog == nfs3.MountProgram {
		return nfs3.MountProcName(c.Proc)
	}
	return nfs3.ProcName(c.Proc)
}

func (r *request) name() string { return procName(&r.call) }
