package hostguard

import (
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
)

// Exec becomes another program, none of whose memory allocations enter a file system, nor
// those of the programs that it starts. It returns only what kept it. Without the right to
// that (CAP_SYS_RESOURCE) nothing is started.
func Exec(argv, env []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the flag is that of a thread, and exec keeps it
	defer runtime.UnlockOSThread()
	if err := setIOFlusher(); err != nil {
		return fmt.Errorf("PR_SET_IO_FLUSHER: %w", err)
	}
	return fmt.Errorf("%s: %w", path, syscall.Exec(path, argv, env))
}
