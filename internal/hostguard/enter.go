package hostguard

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// enteredEnv holds the number of the process that has executed itself again. A
// child that inherits it has another number, and goes its own way.
const enteredEnv = "LOOPNFS_GUARD_ENTERED"

// Enter makes this thread an I/O flusher and executes the program again with the
// same arguments, so that every thread there will be inherits it: set later, it
// reaches one thread of many. It is called before anything is open that does not
// survive that. The second time, and where it may not be set, it returns.
func Enter() *Guard { return enter(setIOFlusher) }

func enter(set func() error) *Guard {
	again := os.Getenv(enteredEnv) == strconv.Itoa(os.Getpid())
	os.Unsetenv(enteredEnv)
	g := &Guard{}
	if again || selfGuarded() {
		return g // Check tells whether it worked
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := set()
	if err == nil {
		err = fmt.Errorf("execute the program again: %w", executeAgain())
	}
	g.Miss(missingFlusher(err))
	return g
}

func selfGuarded() bool {
	p, err := Audit(os.Getpid())
	return err == nil && p.Guarded()
}

func setIOFlusher() error { return unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) }

// executeAgain does not return unless it fails.
func executeAgain() error {
	env := append(os.Environ(), enteredEnv+"="+strconv.Itoa(os.Getpid()))
	return syscall.Exec(self(), os.Args, env)
}

// self returns a path of the running program: its own, so that ps(1) shows its
// name, unless the file was replaced meanwhile.
func self() string {
	const running = "/proc/self/exe"
	path, err := os.Executable()
	if err != nil {
		return running
	}
	named, err := os.Stat(path)
	if err != nil {
		return running
	}
	real, err := os.Stat(running)
	if err != nil || !os.SameFile(named, real) {
		return running
	}
	return path
}

func missingFlusher(err error) Missing {
	m := Missing{
		What: "the I/O flusher flag of all threads (PR_SET_IO_FLUSHER)",
		Why:  err,
		Costs: "when memory runs out, a thread may wait for pages that only this process can clean; " +
			"and its writes are throttled for the dirty pages of its own clients",
		Remedy: "give the process CAP_SYS_RESOURCE",
	}
	if errors.Is(err, unix.EINVAL) {
		m.Remedy = "use Linux 5.6 or later"
	}
	return m
}
