package hostguard

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// apartName is the name of a thread that is no I/O flusher on purpose, at most 15 bytes.
const apartName = "loopnfs-reclaim"

// LeaveFlushers makes this thread one that may enter file systems for memory, and names
// it so that an audit can tell it from one that was forgotten. The caller has locked it
// to the goroutine, and nobody waits for it without a limit: it may come to wait for what
// only this process can end.
func LeaveFlushers() error {
	err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0)
	if err != nil && !ownThreadFlusher() {
		err = nil // who may not leave has not joined
	}
	if err != nil {
		return fmt.Errorf("a thread that is no I/O flusher: %w", err)
	}
	name := append([]byte(apartName), 0)
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0))
}

// ownThreadFlusher reports whether this thread keeps out of file systems.
func ownThreadFlusher() bool {
	stat, err := os.ReadFile("/proc/thread-self/stat")
	if err != nil {
		return true
	}
	flags, err := taskFlags(stat)
	return err != nil || flags&flagMemallocNoIO != 0
}
