package nfs3

import (
	"errors"
	"strconv"
	"syscall"

	"loopnfs/internal/vfs"

	gonfs "github.com/willscott/go-nfs"
)

// Status is the outcome of a procedure, the nfsstat3 of RFC 1813 §2.6.
type Status uint32

// The values of nfsstat3: StatusPerm is NFS3ERR_PERM, and so on.
const (
	StatusOK          = Status(gonfs.NFSStatusOk)
	StatusPerm        = Status(gonfs.NFSStatusPerm)
	StatusNoEnt       = Status(gonfs.NFSStatusNoEnt)
	StatusIO          = Status(gonfs.NFSStatusIO)
	StatusNXIO        = Status(gonfs.NFSStatusNXIO)
	StatusAcces       = Status(gonfs.NFSStatusAccess)
	StatusExist       = Status(gonfs.NFSStatusExist)
	StatusXDev        = Status(gonfs.NFSStatusXDev)
	StatusNoDev       = Status(gonfs.NFSStatusNoDev)
	StatusNotDir      = Status(gonfs.NFSStatusNotDir)
	StatusIsDir       = Status(gonfs.NFSStatusIsDir)
	StatusInval       = Status(gonfs.NFSStatusInval)
	StatusFBig        = Status(gonfs.NFSStatusFBig)
	StatusNoSpc       = Status(gonfs.NFSStatusNoSPC)
	StatusROFS        = Status(gonfs.NFSStatusROFS)
	StatusMLink       = Status(gonfs.NFSStatusMlink)
	StatusNameTooLong = Status(gonfs.NFSStatusNameTooLong)
	StatusNotEmpty    = Status(gonfs.NFSStatusNotEmpty)
	StatusDQuot       = Status(gonfs.NFSStatusDQuot)
	StatusStale       = Status(gonfs.NFSStatusStale)
	StatusRemote      = Status(gonfs.NFSStatusRemote)
	StatusBadHandle   = Status(gonfs.NFSStatusBadHandle)
	StatusNotSync     = Status(gonfs.NFSStatusNotSync)
	StatusBadCookie   = Status(gonfs.NFSStatusBadCookie)
	StatusNotSupp     = Status(gonfs.NFSStatusNotSupp)
	StatusTooSmall    = Status(gonfs.NFSStatusTooSmall)
	StatusServerFault = Status(gonfs.NFSStatusServerFault)
	StatusBadType     = Status(gonfs.NFSStatusBadType)
	StatusJukebox     = Status(gonfs.NFSStatusJukebox)
)

// Decoding errors that a server answers with a status of their own.
var (
	// ErrNameTooLong is returned for a name, path or symbolic link over its
	// limit: NFS3ERR_NAMETOOLONG.
	ErrNameTooLong = errors.New("nfs3: name too long")
	// ErrBadHandle is returned for a handle of more than MaxHandle bytes:
	// NFS3ERR_BADHANDLE.
	ErrBadHandle = errors.New("nfs3: file handle too long")
)

// statusTable has a row for each status, its name in the RFC and the errno that
// a client returns for it; rows with more errnos for one status follow. Of rows
// with the same errno the first one counts.
var statusTable = [...]struct {
	status Status
	name   string
	errno  syscall.Errno
}{
	{StatusOK, "NFS3_OK", 0},
	{StatusNoEnt, "NFS3ERR_NOENT", syscall.ENOENT},
	{StatusPerm, "NFS3ERR_PERM", syscall.EPERM},
	{StatusIO, "NFS3ERR_IO", syscall.EIO},
	{StatusNXIO, "NFS3ERR_NXIO", syscall.ENXIO},
	{StatusAcces, "NFS3ERR_ACCES", syscall.EACCES},
	{StatusExist, "NFS3ERR_EXIST", syscall.EEXIST},
	{StatusXDev, "NFS3ERR_XDEV", syscall.EXDEV},
	{StatusNoDev, "NFS3ERR_NODEV", syscall.ENODEV},
	{StatusNotDir, "NFS3ERR_NOTDIR", syscall.ENOTDIR},
	{StatusIsDir, "NFS3ERR_ISDIR", syscall.EISDIR},
	{StatusInval, "NFS3ERR_INVAL", syscall.EINVAL},
	{StatusFBig, "NFS3ERR_FBIG", syscall.EFBIG},
	{StatusNoSpc, "NFS3ERR_NOSPC", syscall.ENOSPC},
	{StatusROFS, "NFS3ERR_ROFS", syscall.EROFS},
	{StatusMLink, "NFS3ERR_MLINK", syscall.EMLINK},
	{StatusNameTooLong, "NFS3ERR_NAMETOOLONG", syscall.ENAMETOOLONG},
	{StatusNotEmpty, "NFS3ERR_NOTEMPTY", syscall.ENOTEMPTY},
	{StatusDQuot, "NFS3ERR_DQUOT", syscall.EDQUOT},
	{StatusStale, "NFS3ERR_STALE", vfs.ErrStale},
	{StatusRemote, "NFS3ERR_REMOTE", syscall.EREMOTE},
	{StatusBadHandle, "NFS3ERR_BADHANDLE", vfs.ErrBadHandle},
	{StatusNotSync, "NFS3ERR_NOT_SYNC", vfs.ErrNotSync},
	{StatusBadCookie, "NFS3ERR_BAD_COOKIE", vfs.ErrBadCookie},
	{StatusNotSupp, "NFS3ERR_NOTSUPP", syscall.EOPNOTSUPP},
	{StatusTooSmall, "NFS3ERR_TOOSMALL", syscall.EINVAL},
	{StatusServerFault, "NFS3ERR_SERVERFAULT", syscall.EREMOTEIO},
	{StatusBadType, "NFS3ERR_BADTYPE", syscall.EINVAL},
	{StatusJukebox, "NFS3ERR_JUKEBOX", vfs.ErrJukebox},

	{StatusNotSupp, "", syscall.ENOSYS},
	{StatusInval, "", syscall.ELOOP},
	{StatusJukebox, "", syscall.ENOMEM},
	{StatusJukebox, "", syscall.EINTR},
	{StatusJukebox, "", syscall.ETIMEDOUT},
}

// String returns the name in RFC 1813.
func (s Status) String() string {
	for i := range statusTable {
		if r := &statusTable[i]; r.status == s {
			return r.name
		}
	}
	return "nfsstat3 " + strconv.FormatUint(uint64(s), 10)
}

// StatusOf returns the status that answers err: NFS3_OK for nil, a row of the
// table for a syscall.Errno, NFS3ERR_IO for an errno that has none, and
// NFS3ERR_SERVERFAULT for all other errors. Wrapped errors are looked into.
func StatusOf(err error) Status {
	if err == nil {
		return StatusOK
	}
	if errno, ok := err.(syscall.Errno); ok { // spares errors.As its allocation
		return statusOfErrno(errno)
	}
	return statusOfWrapped(err)
}

func statusOfWrapped(err error) Status {
	var errno syscall.Errno
	switch {
	case errors.Is(err, ErrNameTooLong):
		return StatusNameTooLong
	case errors.Is(err, ErrBadHandle):
		return StatusBadHandle
	case errors.As(err, &errno):
		return statusOfErrno(errno)
	}
	return StatusServerFault
}

func statusOfErrno(errno syscall.Errno) Status {
	for i := range statusTable {
		if r := &statusTable[i]; r.errno == errno {
			return r.status
		}
	}
	return StatusIO
}

// Errno returns the error that a client reports for s, a syscall.Errno: nil for
// NFS3_OK, EIO for a value that RFC 1813 does not have.
func Errno(s Status) error {
	if s == StatusOK {
		return nil
	}
	for i := range statusTable {
		if r := &statusTable[i]; r.status == s {
			return r.errno
		}
	}
	return syscall.EIO
}
