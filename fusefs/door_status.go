package fusefs

import (
	"context"
	"errors"
	"syscall"

	"loopnfs/alloc"
	"loopnfs/internal/vfs"
)

// doorErrno is the one table from an error of the file system to what the
// caller gets.
func doorErrno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return syscall.EINTR
	case errors.Is(err, alloc.ErrNoMemory):
		return syscall.ENOMEM
	case errors.Is(err, alloc.ErrClosed):
		return syscall.ESHUTDOWN
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno == 0 {
		return syscall.EIO
	}
	switch errno {
	case vfs.ErrBadCookie: // readdir(3) has no error for it
		return syscall.ESTALE
	case syscall.ENOSYS: // FUSE would never ask again
		return syscall.EOPNOTSUPP
	}
	return errno
}
