package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// agent carries out requests in a host.
type agent struct {
	command Command
	mu      sync.Mutex // for out
	out     *json.Encoder
}

// Command makes a program that is to be run.
type Command func(name string, args ...string) *exec.Cmd

// Serve carries out the requests of in, side by side, until it ends.
func Serve(in io.Reader, out io.Writer, command Command) error {
	a := &agent{command: command, out: json.NewEncoder(out)}
	dec := json.NewDecoder(in)
	for {
		var r request
		if err := dec.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		go a.perform(r)
	}
}

func (a *agent) tell(r reply) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.out.Encode(r) // who does not listen has gone, and this process goes too
}

func (a *agent) perform(r request) {
	switch {
	case r.Clock:
		a.tell(reply{ID: r.ID, Ended: true, Clock: monotonic()})
	case r.Time != 0:
		ts := unix.NsecToTimespec(r.Time)
		a.tell(reply{ID: r.ID, Ended: true, Err: text(unix.ClockSettime(unix.CLOCK_REALTIME, &ts))})
	case r.Signal != 0:
		err := syscall.Kill(r.PID, syscall.Signal(r.Signal))
		a.tell(reply{ID: r.ID, Ended: true, Code: codeOf(err), Err: text(err)})
	case r.Output != "":
		a.start(r)
	default:
		a.run(r)
	}
}

// run runs a program to its end.
func (a *agent) run(r request) {
	var out, errs bytes.Buffer
	cmd := a.command(r.Argv[0], r.Argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(r.In), &out, &errs
	err := cmd.Run()
	if errs.Len() == 0 {
		errs.WriteString(text(err))
	}
	a.tell(reply{ID: r.ID, Ended: true, Code: codeOf(err), Out: out.String(), Err: errs.String()})
}

// start starts a program that runs by itself.
func (a *agent) start(r request) {
	f, err := os.OpenFile(r.Output, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		a.tell(reply{ID: r.ID, Ended: true, Code: 1, Err: err.Error()})
		return
	}
	defer f.Close()
	cmd := a.command(r.Argv[0], r.Argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(r.In), f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		a.tell(reply{ID: r.ID, Ended: true, Code: 1, Err: err.Error()})
		return
	}
	a.tell(reply{ID: r.ID, PID: cmd.Process.Pid})
	err = cmd.Wait()
	a.tell(reply{ID: r.ID, Ended: true, Code: codeOf(err), Err: text(err)})
}

// program makes one that runs in a host of namespaces.
func program(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = programEnv()
	return cmd
}

// programEnv is the environment of what is started: not what is between init and agent.
func programEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, configEnv) {
			env = append(env, v)
		}
	}
	return env
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// codeOf returns an exit code; -1 for a process that was killed.
func codeOf(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return 1
}
