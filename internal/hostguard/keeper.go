package hostguard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The process that serves has a parent, its keeper, that does nothing but start
// it, again if it was killed or crashed. All of the keeper is in memory, and so is
// what it executes: to start a program from the disk takes pages that are not
// there any more once the dead server's clients have filled memory.

const (
	// keptEnv holds the number of the keeper, and how many descriptors it has
	// passed on, in the process that serves.
	keptEnv = "LOOPNFS_KEPT_BY"
	// foundEnv holds what the process before found out about the program.
	foundEnv = "LOOPNFS_FOUND"
	// maxFound is the size of that in bytes.
	maxFound = 16 << 10
	// These descriptors.
	dataFD, ballastFD, readyFD, listenerFD = 3, 4, 5, 6

	// keeperThreads is what the runtime needs to wait for a child and for
	// signals.
	keeperThreads = 8
	// A server that ends so often, each time so early, is not started again.
	maxEarly, early = 20, 10 * time.Second
	// earlyPause is before each start but the first after a crash.
	earlyPause = 100 * time.Millisecond
	// crashed is the exit code of a Go program that panics. Wrong usage has
	// the same, but not once clients can connect.
	crashed = 2
)

// Exit codes by which a server tells its keeper what to do. ExitAgain is that of one that
// has to be started again, as if it were killed, ExitFinal of one that must not be, now or
// later. Any other is final once clients could connect.
const (
	ExitFinal = 5
	ExitAgain = 6
)

// inherited returns what the keeper of this process has passed on; nil if it has
// none.
func inherited() *Keep {
	var keeper, n int
	_, err := fmt.Sscanf(os.Getenv(keptEnv), "%d/%d", &keeper, &n)
	found := os.Getenv(foundEnv)
	os.Unsetenv(keptEnv)
	os.Unsetenv(foundEnv)
	if err != nil || keeper != os.Getppid() {
		return nil
	}
	open := func(fd int, name string) *os.File {
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), name)
	}
	k := &Keep{given: make(chan struct{}, 1), found: parseRanges(found), data: open(dataFD, "data"), ballast: open(ballastFD, "ballast"), ready: open(readyFD, "ready")}
	if n > listenerFD-dataFD {
		k.socket = open(listenerFD, "listener")
	}
	return k
}

// Restarted reports whether this process takes the place of one that served.
func (k *Keep) Restarted() bool { return k != nil && k.socket != nil }

// Listener returns the socket on which the last process listened: clients that
// connect meanwhile wait in it, and are not refused. It is nil if there was none.
func (k *Keep) Listener() (net.Listener, error) {
	if k == nil || k.socket == nil {
		return nil, nil
	}
	defer k.socket.Close()
	return net.FileListener(k.socket)
}

// Ready tells the keeper that clients can connect to l: from now on the process
// is started again if it is killed, and gets l again.
func (k *Keep) Ready(l net.Listener) error {
	if k == nil || k.ready == nil {
		return nil
	}
	defer k.ready.Close()
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return fmt.Errorf("%T cannot be kept", l)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		err = unix.Sendmsg(int(k.ready.Fd()), []byte(formatRanges(k.found)+"\n"), unix.UnixRights(int(fd)), nil, 0)
	})
	return errors.Join(ctlErr, err)
}

// wasReady reports whether the server that has ended said that it was ready, and
// takes its listener, and what it found out.
func (k *Keep) wasReady(ready *os.File) bool {
	buf, oob := make([]byte, maxFound), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(ready.Fd()), buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return false
	}
	if found, whole := strings.CutSuffix(string(buf[:n]), "\n"); whole {
		k.found = parseRanges(found)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) == 0 {
		return true
	}
	if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
		if k.socket != nil {
			k.socket.Close()
		}
		k.socket = os.NewFile(uintptr(fds[0]), "listener")
	}
	return true
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
		if soon > 1 {
			time.Sleep(earlyPause)
		}
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
		go log.Warn("the server ended and is started again", "why", why) // nobody may be reading
	}
}

// serveOnce runs a server until it ends, and reports whether it is to be started
// again: it was killed or crashed, clients could connect or had been able to, and
// nobody had told it to end.
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
		restarted := k.socket != nil
		again = killed || code == crashed || code == ExitAgain
		if !k.wasReady(ready) {
			// The first one may have been told something impossible; a later one
			// has only failed to get what it needs.
			again = restarted && code != 0 && code != ExitFinal
		}
		return code, again && !told, st.String()
	}
}

// start frees the ballast and starts a server. ready can be read once it has
// ended, or said that clients can connect.
func (k *Keep) start() (cmd *exec.Cmd, ready *os.File, err error) {
	if err := k.ballast.Truncate(0); err != nil {
		return nil, nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ready, theirs := os.NewFile(uintptr(pair[0]), "ready"), os.NewFile(uintptr(pair[1]), "ready")
	defer theirs.Close()
	pass := []*os.File{k.data, k.ballast, theirs}
	if k.socket != nil {
		pass = append(pass, k.socket)
	}
	cmd = &exec.Cmd{
		Path: self(), Args: os.Args, Env: append(os.Environ(),
			fmt.Sprintf("%s=%d/%d", keptEnv, os.Getpid(), len(pass)), foundEnv+"="+formatRanges(k.found)),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles: pass,
		// A group of its own: Ctrl-C is for the keeper, which passes it on.
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true},
	}
	if err := cmd.Start(); err != nil {
		ready.Close()
		return nil, nil, err
	}
	return cmd, ready, nil
}
