package nfs3

import (
	client "github.com/vmware/go-nfs-client/nfs"
	gonfs "github.com/willscott/go-nfs"
)

// The program of RFC 1813 §2.1.
const (
	Program = client.Nfs3Prog // 100003
	Version = client.Nfs3Vers // 3
	Port    = 2049
)

// Procedure numbers of RFC 1813 §3.3.
const (
	ProcNull        = uint32(gonfs.NFSProcedureNull)
	ProcGetAttr     = uint32(gonfs.NFSProcedureGetAttr)
	ProcSetAttr     = uint32(gonfs.NFSProcedureSetAttr)
	ProcLookup      = uint32(gonfs.NFSProcedureLookup)
	ProcAccess      = uint32(gonfs.NFSProcedureAccess)
	ProcReadlink    = uint32(gonfs.NFSProcedureReadlink)
	ProcRead        = uint32(gonfs.NFSProcedureRead)
	ProcWrite       = uint32(gonfs.NFSProcedureWrite)
	ProcCreate      = uint32(gonfs.NFSProcedureCreate)
	ProcMkdir       = uint32(gonfs.NFSProcedureMkDir)
	ProcSymlink     = uint32(gonfs.NFSProcedureSymlink)
	ProcMknod       = uint32(gonfs.NFSProcedureMkNod)
	ProcRemove      = uint32(gonfs.NFSProcedureRemove)
	ProcRmdir       = uint32(gonfs.NFSProcedureRmDir)
	ProcRename      = uint32(gonfs.NFSProcedureRename)
	ProcLink        = uint32(gonfs.NFSProcedureLink)
	ProcReaddir     = uint32(gonfs.NFSProcedureReadDir)
	ProcReaddirplus = uint32(gonfs.NFSProcedureReadDirPlus)
	ProcFSStat      = uint32(gonfs.NFSProcedureFSStat)
	ProcFSInfo      = uint32(gonfs.NFSProcedureFSInfo)
	ProcPathConf    = uint32(gonfs.NFSProcedurePathConf)
	ProcCommit      = uint32(gonfs.NFSProcedureCommit)

	// NumProcs is the number of procedures, NULL included.
	NumProcs = 22
)

var procNames = [NumProcs]string{
	"NULL", "GETATTR", "SETATTR", "LOOKUP", "ACCESS", "READLINK", "READ",
	"WRITE", "CREATE", "MKDIR", "SYMLINK", "MKNOD", "REMOVE", "RMDIR", "RENAME",
	"LINK", "READDIR", "READDIRPLUS", "FSSTAT", "FSINFO", "PATHCONF", "COMMIT",
}

// ProcName returns the name of an NFS procedure in RFC 1813, or "UNKNOWN".
func ProcName(proc uint32) string {
	if proc >= NumProcs {
		return "UNKNOWN"
	}
	return procNames[proc]
}

// Limits of RFC 1813 §2.4, and this package's own for what it leaves open.
const (
	MaxHandle  = gonfs.FHSize // NFS3_FHSIZE, 64
	MaxName    = 255          // of a file name
	MaxSymlink = 4096         // of the target of a symbolic link, PATH_MAX
	VerfLen    = 8            // NFS3_COOKIEVERFSIZE, _CREATEVERFSIZE, _WRITEVERFSIZE

	// MaxArgs is the size in bytes of the largest encoded arguments, those of
	// SYMLINK; WRITE is counted without its payload.
	MaxArgs = 4 + MaxHandle + 4 + MaxName + 1 + sattr3Max + 4 + MaxSymlink
	// MaxResult is the size in bytes of the largest encoded results but for
	// payload and directory entries, those of READLINK.
	MaxResult = 4 + 4 + AttrLen + 4 + MaxSymlink

	sattr3Max = 3*8 + 12 + 2*12
)
