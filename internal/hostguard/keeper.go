package hostguard

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The process that serves has a parent, its keeper, that does nothing but start
// it, again if it was killed or crashed. All of the keeper is in memory, and so is
// what it executes: to start a program from the disk takes pages that are not
// there any more once the dead server's clients have filled memory.

const (
	// keptEnv holds the number of the keeper, in the process that serves.
	keptEnv = "LOOPNFS_KEPT_BY"
	// The descriptors that it gets from its keeper.
	dataFD, ballastFD, readyFD = 3, 4, 5

	// keeperThreads is what the runtime needs to wait for a child and for
	// signals.
	keeperThreads = 8
	// A server that ends so often, each time so early, is not started again.
	maxEarly, early = 10, 10 * time.Second
	// crashed is the exit code of a Go program that panics. Wrong usage has
	// the same, but not once clients can connect.
	crashed = 2
)

// inherited returns what the keeper of this process has passed on; nil if it has
// none.
func inherited() *Keep {
	kept := os.Getenv(keptEnv)
	os.Unsetenv(keptEnv)
	if kept == "" || kept != strconv.Itoa(os.Getppid()) {
		return nil
	}
	open := func(fd uintptr, name string) *os.File {
		unix.CloseOnExec(int(fd))
		return os.NewFile(fd, name)
	}
	return &Keep{data: open(dataFD, "data"), ballast: open(ballastFD, "ballast"), ready: open(readyFD, "ready")}
}

// Ready tells the keeper that clients can connect: from now on the process is
// started again if it is killed.
func (k *Keep) Ready() error {
	if k == nil || k.ready == nil {
		return nil
	}
	defer k.ready.Close()
	_, err := k.ready.Write([]byte{1})
	return err
}

// keep is the life of the keeper. It returns the exit code of the last server.
func (k *Keep) keep() int {
	runtime.LockOSThread() // the child's parent-death signal is this thread's
	startThreads(keeperThreads)
	_ = lockAll() // the server tells what could not be had
	_, _ = spare()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	for soon := 0; ; {
		began := time.Now()
		code, again, why := k.serveOnce(signals)
		if soon++; time.Since(began) > early {
			soon = 0
		}
		if !again || soon > maxEarly {
			if err := k.Remove(); err != nil {
				log.Warn("memory for a restart is not given up", "error", err)
			}
			return code
		}
		log.Warn("the server ended and is started again", "why", why)
	}
}

// serveOnce runs a server until it ends, and reports whether it was killed or
// crashed while clients could connect and nobody had told it to end.
func (k *Keep) serveOnce(signals <-chan os.Signal) (code int, again bool, why string) {
	cmd, ready, err := k.start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "loopnfs: cannot start the process that serves:", err)
		return 1, false, ""
	}
	defer ready.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	told := false
	for {
		select {
		case s := <-signals:
			told = told || s != syscall.SIGHUP
			_ = cmd.Process.Signal(s) // it may have ended
			continue
		case <-ended:
		}
		st := cmd.ProcessState
		killed, code := st.Sys().(syscall.WaitStatus).Signaled(), st.ExitCode()
		if killed {
			code = 128 + int(st.Sys().(syscall.WaitStatus).Signal())
		}
		n, _ := ready.Read(make([]byte, 1))
		return code, n == 1 && !told && (killed || code == crashed), st.String()
	}
}

// start frees the ballast and starts a server. ready can be read once it has
// ended, or said that clients can connect.
func (k *Keep) start() (cmd *exec.Cmd, ready *os.File, err error) {
	if err := k.ballast.Truncate(0); err != nil {
		return nil, nil, err
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	cmd = &exec.Cmd{
		Path: self(), Args: os.Args, Env: append(os.Environ(), keptEnv+"="+strconv.Itoa(os.Getpid())),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles: []*os.File{k.data, k.ballast, theirs},
		// A group of its own: Ctrl-C is for the keeper, which passes it on.
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true},
	}
	if err := cmd.Start(); err != nil {
		ready.Close()
		return nil, nil, err
	}
	return cmd, ready, nil
}
