package hostguard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childKeeps is a keeper, or the server that it starts; os.Args[1] is where memory
// is kept.
func childKeeps() {
	if k := inherited(); k != nil {
		childServes(k)
		return
	}
	k, err := openKeep(os.Args[1], "/var/lib/x", 1<<20)
	if err != nil {
		fmt.Println(err)
		os.Exit(99)
	}
	os.Exit(k.keep())
}

// childServes says on standard output who it is and where clients can connect, and
// greets them, until it is told to end. It fails at once if the file "broken" is
// there.
func childServes(k *Keep) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if b, err := os.ReadFile(filepath.Join(os.Args[1], "broken")); err == nil {
		if string(b) == "final" {
			os.Exit(ExitFinal)
		}
		os.Exit(3)
	}
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGUSR1)
	l, err := k.Listener()
	if l == nil && err == nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if want := []mapping{{1, 2}}; !k.Restarted() {
		k.found = want
	} else if !slices.Equal(k.found, want) {
		err = fmt.Errorf("the server before found %v, not %v", want, k.found)
	}
	if err := errors.Join(err, k.Ready(l)); err != nil {
		fmt.Println(err)
		os.Exit(98)
	}
	fmt.Println(os.Getpid(), l.Addr())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "hello")
			c.Close()
		}
	}()
	select {
	case <-again:
		os.Exit(ExitAgain)
	case <-stop:
	}
	os.Exit(7)
}

type keeperTest struct {
	t      *testing.T
	parent string
	cmd    *exec.Cmd
	out    *bufio.Reader
}

func startKeeper(t *testing.T) *keeperTest {
	t.Helper()
	f := &keeperTest{t: t, parent: shm(t)}
	f.cmd = exec.Command(os.Args[0], f.parent)
	f.cmd.Env = append(os.Environ(), childEnv+"=keeper", "GORACE=atexit_sleep_ms=0")
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.out = bufio.NewReader(out)
	return f
}

func (f *keeperTest) start() {
	f.t.Helper()
	if err := f.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { f.cmd.Process.Kill(); f.cmd.Wait() })
}

// server waits for the next one.
func (f *keeperTest) server() (pid int, addr string) {
	f.t.Helper()
	line, err := f.out.ReadString('\n')
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := fmt.Sscan(line, &pid, &addr); err != nil {
		f.t.Fatalf("%q: %v", line, err)
	}
	return pid, addr
}

// end waits for the keeper and returns its exit code.
func (f *keeperTest) end() int {
	f.t.Helper()
	io.Copy(io.Discard, f.out)
	f.cmd.Wait()
	return f.cmd.ProcessState.ExitCode()
}

func greeted(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(c); string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

// A server that has lost the right to serve is followed by one that asks for it; one that
// finds that somebody else has it is followed by none.
func TestKeeperHeedsExitCodes(t *testing.T) {
	f := startKeeper(t)
	f.start()
	pid, addr := f.server()
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	next, _ := f.server()
	greeted(t, addr)
	if err := os.WriteFile(filepath.Join(f.parent, "broken"), []byte("final"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(next, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if code := f.end(); code != ExitFinal {
		t.Errorf("the keeper ended with %d, want %d", code, ExitFinal)
	}
}

// A server that is killed is followed by one on the same socket, which refuses
// nobody meanwhile; one that ends when it is told to is not.
func TestKeeperStartsItAgain(t *testing.T) {
	f := startKeeper(t)
	f.start()
	pid, addr := f.server()
	for range 3 {
		syscall.Kill(pid, syscall.SIGKILL)
		greeted(t, addr)
		next, same := f.server()
		if next == pid || same != addr {
			t.Fatalf("%d at %s, then %d at %s", pid, addr, next, same)
		}
		pid = next
	}
	f.cmd.Process.Signal(syscall.SIGTERM)
	if code := f.end(); code != 7 {
		t.Errorf("exit code %d", code)
	}
	if left, _ := os.ReadDir(f.parent); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A server that cannot start is not tried again; one that could is.
func TestKeeperGivesUp(t *testing.T) {
	f := startKeeper(t)
	broken := filepath.Join(f.parent, "broken")
	os.WriteFile(broken, nil, 0o600)
	f.start()
	if code := f.end(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	f = startKeeper(t)
	f.start()
	pid, addr := f.server()
	broken = filepath.Join(f.parent, "broken")
	os.WriteFile(broken, nil, 0o600)
	syscall.Kill(pid, syscall.SIGKILL)
	time.Sleep(300 * time.Millisecond)
	os.Remove(broken)
	if _, same := f.server(); same != addr {
		t.Errorf("%s, then %s", addr, same)
	}
}

// The server does not outlive its keeper: another one is to take its place.
func TestServerEndsWithItsKeeper(t *testing.T) {
	f := startKeeper(t)
	f.start()
	pid, _ := f.server()
	f.cmd.Process.Kill()
	f.end()
	for range 500 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d goes on", pid)
}

func TestRangesOfCode(t *testing.T) {
	want := []mapping{{0x400000, 0x41f000}, {0x7f0000001000, 0x7f0000002000}}
	if got := parseRanges(formatRanges(want)); !slices.Equal(got, want) {
		t.Errorf("%v came back as %v", want, got)
	}
	for _, s := range []string{"", "1000", "1000-2000 x", "-", "1000-2000 3000-"} {
		if got := parseRanges(s); got != nil {
			t.Errorf("%q is %v", s, got)
		}
	}
	code := mapping{0x400000, 0x500000}
	for _, known := range [][]mapping{nil, want, {{0x410000, 0x410000}}, {{0x3ff000, 0x401000}}} {
		if got := code.knownCode(&known); len(got) > 0 {
			t.Errorf("%v is taken for code in %v", known, code)
		}
	}
	known := want[:1]
	if got := code.knownCode(&known); !slices.Equal(got, known) {
		t.Errorf("%v is not taken for code in %v", known, code)
	}
}
