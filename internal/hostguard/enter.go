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
func Enter() *Guard { return enter(setIOFlusher, nil) }

// EnterKeeping is Enter for a process that is started again when it is killed, by
// a keeper, and finds memory then: that for data, n bytes, and what a start needs.
// stateDir tells this server from others. It returns in the process that serves.
// The Keep is nil where nothing can be kept; without the right to be a flusher
// there is no keeper.
func EnterKeeping(stateDir string, n int64) (*Guard, *Keep) {
	if k := inherited(); k != nil {
		return &Guard{hot: &k.found}, k
	}
	// To fill the files takes memory, of which a host that takes over may have none but
	// what its own mount's pages hold. This thread must not wait for these.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = setIOFlusher() // enter tells
	k, err := openKeep(keepParent, stateDir, n)
	g := enter(setIOFlusher, k)
	if err != nil {
		g.Miss(Missing{
			What:   "a keeper, and memory for a restart",
			Why:    err,
			Costs:  "nobody starts the server again when it is killed, and it may find no memory to start with, as its clients' pages fill it",
			Remedy: fmt.Sprintf("have a tmpfs at %s with room for --memory and 32 MiB, and a --state for each server", keepParent),
		})
		return g, nil
	}
	if g.Err() == nil {
		os.Exit(k.keep())
	}
	g.Miss(Missing{
		What:   "a keeper",
		Why:    errors.New("there is none for a process without PR_SET_IO_FLUSHER"),
		Costs:  "nobody starts the server again when it is killed or crashes",
		Remedy: "give the process CAP_SYS_RESOURCE, or have its supervisor start it again (Restart=always in systemd)",
	})
	return g, k
}

func enter(set func() error, k *Keep) *Guard {
	again := os.Getenv(enteredEnv) == strconv.Itoa(os.Getpid())
	os.Unsetenv(enteredEnv)
	g := &Guard{}
	if again {
		return g // Check tells whether it worked
	}
	guarded := selfGuarded()
	if guarded && k == nil {
		return g
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if !guarded {
		if err := set(); err != nil {
			g.Miss(missingFlusher(err))
			return g
		}
	}
	err := fmt.Errorf("execute the program again: %w", executeAgain(k))
	g.Miss(missingFlusher(err))
	return g
}

func selfGuarded() bool {
	p, err := Audit(os.Getpid())
	return err == nil && p.Guarded()
}

func setIOFlusher() error { return unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) }

// executeAgain does not return unless it fails. Where files of tmpfs may not be
// executed, the program file itself is.
func executeAgain(k *Keep) error {
	env := append(os.Environ(), enteredEnv+"="+strconv.Itoa(os.Getpid()))
	path := self()
	if k != nil {
		if kept, err := k.program(path); err == nil {
			_ = syscall.Exec(kept, os.Args, env)
		}
	}
	return syscall.Exec(path, os.Args, env)
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
