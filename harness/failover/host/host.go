package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a running host.
type Host struct {
	Name string

	cmd  *exec.Cmd // nil for a machine of its own
	in   io.Writer
	errs strings.Builder // valid after done
	end  func()          // as a loss of power does
	gone func()          // waits until every process of it is gone
	done chan struct{}   // closed after that

	mu      sync.Mutex
	lastID  int
	waiting map[int]chan reply
}

// ErrGone is the error of what was asked of a host that has been killed.
var ErrGone = errors.New("the host is gone")

// Start starts a host with an init that runs argv, a command line that calls Main.
// group, if not empty, is a directory of a control group that it is put into.
func Start(c Config, group string, argv ...string) (*Host, error) {
	if err := errors.Join(c.Validate(), mkdirs(c.Scratch)); err != nil {
		return nil, err
	}
	h := &Host{Name: c.Name, done: make(chan struct{}), waiting: map[int]chan reply{}}
	h.cmd = exec.Command(c.Exe, argv...)
	h.cmd.Env = []string{}
	h.cmd.Stderr = &h.errs
	h.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	in, inErr := h.cmd.StdinPipe()
	out, outErr := h.cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, h.cmd.Start()); err != nil {
		return nil, fmt.Errorf("cannot start host %s: %w", c.Name, err)
	}
	h.in = in
	h.end = func() { _ = h.cmd.Process.Kill() } // process 1: the kernel ends all the others
	h.gone = func() { _ = h.cmd.Wait() }        // it was killed, or its input has ended
	go h.listen(out)
	if err := h.begin(&c, group); err != nil {
		h.Kill()
		return nil, err
	}
	return h, nil
}

// Remote returns a machine of its own, a guest, whose agent is at the other end of conn. end
// ends it as a loss of power does, and gone waits until nothing of it is left.
func Remote(name string, conn io.ReadWriter, end, gone func()) *Host {
	h := &Host{Name: name, in: conn, end: end, gone: gone, done: make(chan struct{}), waiting: map[int]chan reply{}}
	go h.listen(conn)
	return h
}

// begin puts the host into its group, lets it begin, and waits until it answers.
func (h *Host) begin(c *Config, group string) error {
	if group != "" {
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Appendln(nil, h.PID()), 0); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(h.in).Encode(c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if _, err := h.Run(ctx, "true"); err != nil {
		h.Kill()
		return fmt.Errorf("host %s does not start: %w: %s", h.Name, err, h.errs.String())
	}
	return nil
}

const startLimit = 10 * time.Second

// PID returns the number of the host's process 1, on this machine.
func (h *Host) PID() int { return h.cmd.Process.Pid }

// listen takes replies until there are no more, and notes the end of the host.
func (h *Host) listen(out io.Reader) {
	dec := json.NewDecoder(out)
	for {
		var r reply
		if dec.Decode(&r) != nil {
			break
		}
		h.mu.Lock()
		if c := h.waiting[r.ID]; c != nil {
			c <- r
			if r.Ended {
				delete(h.waiting, r.ID)
			}
		}
		h.mu.Unlock()
	}
	h.gone()
	close(h.done)
}

// ask sends a request. What comes of it is in the channel, which has room for all of it.
func (h *Host) ask(r request) (int, chan reply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastID++
	r.ID = h.lastID
	replies := make(chan reply, 2)
	h.waiting[r.ID] = replies
	if err := json.NewEncoder(h.in).Encode(r); err != nil {
		delete(h.waiting, r.ID)
		return 0, nil, fmt.Errorf("%s: %w", h.Name, ErrGone)
	}
	return r.ID, replies, nil
}

func (h *Host) await(ctx context.Context, replies chan reply) (reply, error) {
	select {
	case r := <-replies:
		return r, nil
	case <-h.done:
		return reply{}, fmt.Errorf("%s: %w", h.Name, ErrGone)
	case <-ctx.Done():
		return reply{}, fmt.Errorf("%s: %w", h.Name, ctx.Err())
	}
}

// Run runs a program in the host and returns its output.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	return h.RunWith(ctx, "", argv...)
}

// RunWith is Run with standard input.
func (h *Host) RunWith(ctx context.Context, in string, argv ...string) (string, error) {
	_, replies, err := h.ask(request{Argv: argv, In: in})
	if err != nil {
		return "", err
	}
	r, err := h.await(ctx, replies)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s: %s: exit code %d: %s", h.Name, argv[0], r.Code, strings.TrimSpace(r.Err))
	}
	return r.Out, err
}

// Process is one that runs in a host by itself.
type Process struct {
	h       *Host
	pid     int
	replies chan reply
}

// Ended reports whether the process is gone, and Wait was not called yet.
func (p *Process) Ended() bool { return len(p.replies) > 0 || p.h.Gone() }

// Start starts a program that runs by itself. Its output goes to a file of the host.
func (h *Host) Start(output, in string, argv ...string) (*Process, error) {
	_, replies, err := h.ask(request{Argv: argv, In: in, Output: output})
	if err != nil {
		return nil, err
	}
	r, err := h.await(context.Background(), replies)
	if err == nil && r.Ended {
		err = fmt.Errorf("%s: cannot start %s: %s", h.Name, argv[0], r.Err)
	}
	return &Process{h, r.PID, replies}, err
}

// PID returns the number of the process in its host.
func (p *Process) PID() int { return p.pid }

// Signal sends a signal to the process.
func (p *Process) Signal(s syscall.Signal) error { return p.h.Signal(p.pid, s) }

// Wait waits until the process has ended. A host that is gone has ended it.
func (p *Process) Wait(ctx context.Context) error {
	r, err := p.h.await(ctx, p.replies)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s: exit code %d: %s", p.h.Name, r.Code, r.Err)
	}
	return err
}

// Signal sends a signal to a process of the host, by its number there.
func (h *Host) Signal(pid int, s syscall.Signal) error {
	_, replies, err := h.ask(request{PID: pid, Signal: int(s)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	r, err := h.await(ctx, replies)
	if err == nil && r.Err != "" {
		err = fmt.Errorf("%s: kill %d: %s", h.Name, pid, r.Err)
	}
	return err
}

// Clock returns what the host's CLOCK_MONOTONIC showed when this machine's showed at, which
// is known to within half of the time that the question took.
func (h *Host) Clock(ctx context.Context) (theirs, at int64, err error) {
	before := monotonic()
	_, replies, err := h.ask(request{Clock: true})
	if err != nil {
		return 0, 0, err
	}
	r, err := h.await(ctx, replies)
	return r.Clock, before + (monotonic()-before)/2, err
}

// SetClock sets the host's time of day to this machine's, which it may only if it has a
// clock of its own.
func (h *Host) SetClock(ctx context.Context) error {
	_, replies, err := h.ask(request{Time: time.Now().UnixNano()})
	if err != nil {
		return err
	}
	r, err := h.await(ctx, replies)
	if err == nil && r.Err != "" {
		err = fmt.Errorf("%s: cannot set its clock: %s", h.Name, r.Err)
	}
	return err
}

// monotonic returns the time of CLOCK_MONOTONIC in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
	return ts.Nano()
}

// Gone reports whether every process of the host has ended.
func (h *Host) Gone() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// Kill ends the host as a loss of power does, and waits until all of it is gone. One
// that waits in the kernel for a disk does not go before that answers: then Kill
// returns an error after a while.
func (h *Host) Kill() error {
	h.end()
	select {
	case <-h.done:
		return nil
	case <-time.After(killLimit):
		return fmt.Errorf("host %s: its processes do not end, and wait in the kernel", h.Name)
	}
}

const killLimit = 10 * time.Second
