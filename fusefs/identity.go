package fusefs

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// identity is the file system identity that a thread had before it took that of
// a caller (override_creds in the kernel, nfsd_setuser in knfsd). The system
// calls are made raw: those of package syscall change every thread.
type identity struct {
	changed bool
	groups  []uint32
}

// noID leaves an identity alone and tells it.
const noID = ^uintptr(0)

// become gives the calling thread the identity of c, and with it the rights: a
// fsuid other than 0 drops the capabilities that override permissions. The
// caller calls restore on the same goroutine. For root nothing is done.
func (s *Store) become(c *vfs.Cred) (identity, error) {
	if c.UID == 0 && c.GID == 0 {
		return identity{}, nil
	}
	runtime.LockOSThread()
	id := identity{changed: true, groups: s.groups}
	if c.UID != 0 {
		if e := setGroups(c.Groups); e != nil {
			id.restore()
			return identity{}, e
		}
	}
	setFS(unix.SYS_SETFSGID, c.GID)
	setFS(unix.SYS_SETFSUID, c.UID)
	// The calls report nothing; an identity that the user namespace does not
	// have is refused silently, and then the caller would act as root.
	if fsID(unix.SYS_SETFSUID) != c.UID || fsID(unix.SYS_SETFSGID) != c.GID {
		id.restore()
		return identity{}, unix.EACCES
	}
	return id, nil
}

// restore gives the thread its own identity back. A thread that cannot be
// restored must never serve anybody else: it stays locked and the panic ends
// the process.
func (id identity) restore() {
	if !id.changed {
		return
	}
	setFS(unix.SYS_SETFSUID, 0)
	setFS(unix.SYS_SETFSGID, 0)
	if err := setGroups(id.groups); err != nil || fsID(unix.SYS_SETFSUID) != 0 || fsID(unix.SYS_SETFSGID) != 0 {
		panic("fusefs: a thread cannot get its identity back: " + errText(err))
	}
	runtime.UnlockOSThread()
}

func errText(err error) string {
	if err == nil {
		return "setfsuid was refused"
	}
	return err.Error()
}

func setFS(call uintptr, id uint32) { _, _, _ = unix.RawSyscall(call, uintptr(id), 0, 0) }

func fsID(call uintptr) uint32 {
	id, _, _ := unix.RawSyscall(call, noID, 0, 0)
	return uint32(id)
}

// setGroups sets the supplementary groups of the calling thread.
func setGroups(groups []uint32) error {
	for try := 0; ; try++ {
		_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)),
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
		if e != unix.ENOMEM || try == 100 {
			return errnoOf(e)
		}
	}
}

// checkIdentity reports whether threads can take another identity at all.
func (s *Store) checkIdentity() error {
	id, err := s.become(&vfs.Cred{UID: 65534, GID: 65534})
	if err != nil {
		return err
	}
	id.restore()
	return nil
}
