package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// spawner starts child processes that die with this process, however it dies.
// The kernel sends the parent-death signal when the thread that forked ends, so
// all of them are started from one thread that does not.
type spawner struct{ requests chan func() }

func newSpawner() *spawner {
	s := &spawner{requests: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: see above
		for start := range s.requests {
			start()
		}
	}()
	return s
}

func (s *spawner) close() { close(s.requests) }

// child is a running child process.
type child struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  io.ReadCloser
	errs tail
	done chan struct{} // closed when it has ended
	err  error         // why; valid after done
}

// start starts a program with stdin and stdout connected to pipes. Its last
// output on stderr is kept for error messages.
func (s *spawner) start(name string, argv ...string) (*child, error) {
	c := &child{name: name, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	c.cmd.Stderr = &c.errs
	// A killed child may leave a grandchild with our pipe; do not wait for it.
	c.cmd.WaitDelay = time.Second
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.out, c.cmd.Stdout = out, w
	started := make(chan error)
	s.requests <- func() { started <- c.cmd.Start() }
	err = <-started
	w.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// ended reports whether the process is gone.
func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// wait waits for the end of the process, at most d.
func (c *child) wait(d time.Duration) error {
	select {
	case <-c.done:
		return c.failure()
	case <-time.After(d):
		return fmt.Errorf("%s did not end within %v", c.name, d)
	}
}

// failure returns why the process ended, with what it said last.
func (c *child) failure() error {
	if c.err == nil || errors.Is(c.err, exec.ErrWaitDelay) {
		return nil
	}
	return fmt.Errorf("%s: %w: %s", c.name, c.err, c.errs.String())
}

// kill ends the process and its group at once and waits until it is gone. A
// process that is stuck in a system call is waited for a short time only.
func (c *child) kill() {
	if !c.ended() {
		_ = syscall.Kill(-c.pid(), syscall.SIGKILL)
		select {
		case <-c.done:
		case <-time.After(5 * time.Second):
		}
	}
	c.out.Close()
}

// tail keeps the last few KiB written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailBytes; n > 0 {
		t.buf = t.buf[n:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

// startTime returns when process pid started, in clock ticks since boot; with
// the pid it names a process for ever. 0 if it has ended.
func startTime(pid int) uint64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The command, in parentheses, may contain anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return 0 // a zombie is gone: nobody may ever collect it
	}
	n, _ := strconv.ParseUint(fields[19], 10, 64)
	return n
}
