package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"loopnfs/fusefs"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"loopnfs": main})
}

// TestScript runs the scripts of testdata/script, with some commands besides the
// usual ones:
//
//	serve DIR ARG...  starts a server of DIR; $ADDR is where, $PORT its port
//	stopserve         ends it with SIGTERM; it must succeed
//	killserve         ends it with SIGKILL
//	hupserve TEXT     sends it SIGHUP and waits until it says what matches TEXT
//	busyport          $PORT is a port that somebody listens on
//	deadport          $PORT is a port that nobody listens on
//	await FILE TEXT   waits until FILE contains TEXT
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": cmdServe, "stopserve": cmdStopServe, "killserve": cmdKillServe, "hupserve": cmdHupServe,
			"busyport": cmdBusyPort, "deadport": cmdDeadPort, "await": cmdAwait,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(env *testscript.Env) error {
			env.Defer(func() { detachAll(t, env.WorkDir) })
			// The race detector lets processes sleep for a second at their end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
	})
}

// detachAll takes down what a script has left mounted.
func detachAll(t *testing.T, dir string) {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Error(err)
	}
	for _, m := range all {
		t.Errorf("left mounted: %s", m.Mountpoint)
		if mp, _ := fusefs.FindMount(m.Mountpoint); mp != nil {
			mp.Detach()
		} else {
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
		}
	}
}

// server is the one that a script has started.
type server struct {
	cmd *exec.Cmd
	err *said
}

// said is what a process has said, while it says more.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (m *said) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text.Write(b)
}

func (m *said) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text.String()
}

func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: serve DIR ARG...")
	}
	argv := append([]string{"serve", "--export", ts.MkAbs(args[0]), "--state", ts.MkAbs("state")}, args[1:]...)
	if !strings.Contains(strings.Join(args, " "), "--listen") {
		argv = append(argv, "--listen", "127.0.0.1:0")
	}
	path, err := exec.LookPath("loopnfs")
	ts.Check(err)
	s := &server{cmd: exec.Command(path, argv...), err: &said{}}
	s.cmd.Dir, s.cmd.Stderr = ts.MkAbs("."), s.err
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := s.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	ts.Defer(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.cmd.Wait()
		ts.Fatalf("the server did not start: %s", s.err)
	}
	words := strings.Fields(line)
	if len(words) < 3 || words[0] != "ready" {
		ts.Fatalf("the server said %q", line)
	}
	_, port, err := net.SplitHostPort(words[1])
	ts.Check(err)
	ts.Setenv("ADDR", words[1])
	ts.Setenv("PORT", port)
	ts.Setenv("SERVER", strconv.Itoa(s.serving(ts)))
	servers.Store(ts, s)
}

// serving returns the process that serves: the one that was started, or a child that it
// keeps.
func (s *server) serving(ts *testscript.TestScript) int {
	pids, err := viewable()
	ts.Check(err)
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest) // state, parent
		if pid == s.cmd.Process.Pid || err == nil && len(fields) > 1 && fields[1] == strconv.Itoa(s.cmd.Process.Pid) {
			return pid
		}
	}
	ts.Fatalf("none of %v is the server", pids)
	return 0
}

// servers maps each running script to its *server.
var servers sync.Map

func serverOf(ts *testscript.TestScript) *server {
	s, ok := servers.Load(ts)
	if !ok {
		ts.Fatalf("no server was started")
	}
	return s.(*server)
}

func cmdStopServe(ts *testscript.TestScript, _ bool, _ []string) {
	s := serverOf(ts)
	ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
	if err := s.cmd.Wait(); err != nil {
		ts.Fatalf("the server ended badly: %v\n%s", err, s.err)
	}
}

func cmdKillServe(ts *testscript.TestScript, _ bool, _ []string) {
	s := serverOf(ts)
	ts.Check(s.cmd.Process.Kill())
	s.cmd.Wait()
}

func cmdHupServe(ts *testscript.TestScript, _ bool, args []string) {
	s := serverOf(ts)
	before := len(s.err.String())
	ts.Check(s.cmd.Process.Signal(syscall.SIGHUP))
	want := regexp.MustCompile(args[0])
	for deadline := time.Now().Add(10 * time.Second); !want.MatchString(s.err.String()[before:]); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("the server said %q", s.err.String()[before:])
		}
	}
}

func cmdBusyPort(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	ts.Setenv("PORT", port)
}

func cmdDeadPort(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	ts.Check(l.Close())
	ts.Setenv("PORT", port)
}

func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && strings.Contains(string(b), args[1]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s has no %q: %q, %v", args[0], args[1], b, err)
		}
	}
}
