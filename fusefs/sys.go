package fusefs

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The wrappers of this file exist because those of package unix allocate, or
// change the identity of every thread. They return bare errno values.

// resolveCached is RESOLVE_CACHED: EAGAIN if a look-up needs more than what is cached
// (Linux 5.12; before that EINVAL).
const resolveCached = 0x20

// maxName is the longest name, without the NUL that ends it (NAME_MAX).
const maxName = 255

// cname is a name for the kernel.
type cname [maxName + 1]byte

func (c *cname) set(name string) { c[copy(c[:maxName], name)] = 0 }

func errnoOf(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func fstat(fd int, st *unix.Stat_t) error {
	_, _, e := unix.Syscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(st)), 0)
	return errnoOf(e)
}

// fstatat follows no link, and mounts nothing.
func fstatat(dir int, name *cname, st *unix.Stat_t) error {
	_, _, e := unix.Syscall6(unix.SYS_NEWFSTATAT, uintptr(dir), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(st)), unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, 0)
	return errnoOf(e)
}

// openat2 opens name in the directory dir as how says.
func openat2(dir int, name *cname, how *unix.OpenHow) (int, error) {
	for {
		fd, _, e := unix.Syscall6(unix.SYS_OPENAT2, uintptr(dir), uintptr(unsafe.Pointer(name)),
			uintptr(unsafe.Pointer(how)), unix.SizeofOpenHow, 0, 0)
		if e == unix.EINTR || e == unix.EAGAIN && how.Resolve&resolveCached == 0 { // EAGAIN: a rename raced with ".."
			continue
		}
		return int(fd), errnoOf(e)
	}
}

// rawHandle is struct file_handle with room for the largest handle.
type rawHandle struct {
	bytes uint32
	typ   int32
	data  [128]byte
}

var emptyName [1]byte

// nameToHandle gets the handle of the open file fd.
func nameToHandle(fd int, h *rawHandle, mountID *int32) error {
	h.bytes = uint32(len(h.data))
	_, _, e := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(&emptyName)),
		uintptr(unsafe.Pointer(h)), uintptr(unsafe.Pointer(mountID)), unix.AT_EMPTY_PATH, 0)
	return errnoOf(e)
}

// nameToHandleAt gets the handle of what has a name in the directory open as dir. It
// follows no link.
func nameToHandleAt(dir int, name *cname, h *rawHandle, mountID *int32) error {
	h.bytes = uint32(len(h.data))
	_, _, e := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dir), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(h)), uintptr(unsafe.Pointer(mountID)), 0, 0)
	return errnoOf(e)
}

// ino returns the number of the inode that the kernel means by h, where the kind of the
// handle tells (enum fid_type); 0 if it does not.
func (h *rawHandle) ino() uint64 {
	const (
		ino32Gen = 1    // ext4, f2fs and others
		xfsIno64 = 0x81 // XFS
		btrfs    = 0x4d // without the parent
	)
	switch {
	case h.typ == ino32Gen && h.bytes == 8:
		return uint64(binary.NativeEndian.Uint32(h.data[:]))
	case (h.typ == xfsIno64 || h.typ == btrfs) && h.bytes >= 12:
		return binary.NativeEndian.Uint64(h.data[:])
	}
	return 0
}

func openByHandle(mountFD int, h *rawHandle, flags int) (int, error) {
	for {
		fd, _, e := unix.Syscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(mountFD),
			uintptr(unsafe.Pointer(h)), uintptr(flags|unix.O_CLOEXEC))
		if e == unix.EINTR {
			continue
		}
		return int(fd), errnoOf(e)
	}
}

// preadv fills iov from off; it may return fewer bytes, 0 at the end.
func preadv(fd int, iov []unix.Iovec, off int64) (int, error) {
	return readWrite(unix.SYS_PREADV, fd, iov, off)
}

func pwritev(fd int, iov []unix.Iovec, off int64) (int, error) {
	return readWrite(unix.SYS_PWRITEV, fd, iov, off)
}

func readWrite(call uintptr, fd int, iov []unix.Iovec, off int64) (int, error) {
	for {
		n, _, e := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))),
			uintptr(len(iov)), uintptr(off), uintptr(uint64(off)>>32), 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, e
		}
		return int(n), nil
	}
}

// advance takes n bytes off the front of iov.
func advance(iov []unix.Iovec, n int) []unix.Iovec {
	for n > 0 {
		if uint64(n) < iov[0].Len {
			iov[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(iov[0].Base), n))
			iov[0].Len -= uint64(n)
			break
		}
		n -= int(iov[0].Len)
		iov = iov[1:]
	}
	return iov
}

// setMtime sets the modification time of fd and leaves the access time.
func setMtime(fd int, sec int64, nsec uint32) error {
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: int64(nsec)}}
	return setTimes(fd, &ts)
}

func setTimes(fd int, ts *[2]unix.Timespec) error {
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if e == unix.EBADF { // O_PATH
		_, _, e = unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(&emptyName)),
			uintptr(unsafe.Pointer(ts)), unix.AT_EMPTY_PATH, 0, 0)
	}
	return errnoOf(e)
}

// aclXattr is where the kernel shows a POSIX ACL, if there is one.
var aclXattr = unsafe.StringData("system.posix_acl_access\x00")

// hasXattr returns nil if the open file fd has the extended attribute, ENODATA if not.
func hasXattr(fd int, name *byte) error {
	_, _, e := unix.Syscall6(unix.SYS_FGETXATTR, uintptr(fd), uintptr(unsafe.Pointer(name)), 0, 0, 0, 0)
	return errnoOf(e)
}

// faccess asks the kernel whether the identity of this thread has the rights
// mode (R_OK and so on) to the open file fd.
func faccess(fd int, mode uint32) error {
	_, _, e := unix.Syscall6(unix.SYS_FACCESSAT2, uintptr(fd), uintptr(unsafe.Pointer(&emptyName)),
		uintptr(mode), unix.AT_EACCESS|unix.AT_EMPTY_PATH, 0, 0)
	return errnoOf(e)
}

// readlink appends the target of the symbolic link that is open as fd.
func readlink(fd int, buf []byte) ([]byte, error) {
	const most = 4096 // PATH_MAX
	n := len(buf)
	if cap(buf)-n < most {
		buf = append(make([]byte, 0, n+most), buf...)
	}
	got, _, e := unix.Syscall6(unix.SYS_READLINKAT, uintptr(fd), uintptr(unsafe.Pointer(&emptyName)),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf[n:n+most]))), most, 0, 0)
	if e != 0 {
		return buf, e
	}
	return buf[:n+int(got)], nil
}
