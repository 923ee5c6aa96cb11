package hostaddr

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inOwnNetwork runs the rest of the test in a process with a network of its own, and
// reports whether this is it.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	const env = "HOSTADDR_TEST_NETWORK"
	if os.Getenv(env) != "" {
		return true
	}
	if _, err := exec.LookPath("ip"); os.Geteuid() != 0 || err != nil {
		t.Skip("it needs root and ip(8)")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// ip runs ip(8) with a command on each line.
func ip(t *testing.T, batch string) {
	t.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// Addresses that come and go are heard of, also those that came while more was said than
// there was room for.
func TestWatch(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	ip(t, "link set lo up\n")
	hold, holding := make(chan struct{}), make(chan struct{}, 1000)
	w, err := Watch(func() { holding <- struct{}{}; <-hold })
	if err != nil {
		t.Fatal(err)
	}
	has := func(addr string) bool { return w.IsLocal(netip.MustParseAddr(addr), netip.Addr{}) }
	raw, err := w.sock.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sockErr error
	if err := raw.Control(func(fd uintptr) { sockErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) }); err != nil || sockErr != nil {
		t.Fatal(err, sockErr)
	}
	ip(t, "addr add 192.0.2.1/32 dev lo\n")
	<-holding // and nothing is heard now
	var many strings.Builder
	for i := range 300 {
		fmt.Fprintf(&many, "addr add 198.51.%d.%d/32 dev lo\n", i/250, i%250+1)
	}
	ip(t, many.String()+"addr add 2001:db8::9/128 dev lo nodad\naddr del 192.0.2.1/32 dev lo\n")
	if !has("192.0.2.1") || has("198.51.0.1") {
		t.Error("something was heard of meanwhile: the test shows nothing")
	}
	overflowed := false
	if err := raw.Control(func(fd uintptr) { overflowed = dropped(t, int(fd)) > 0 }); err != nil || !overflowed {
		t.Errorf("nothing was lost (%v): the test shows nothing", err)
	}
	close(hold)
	eventually(t, "all is known", func() bool { return has("198.51.1.50") && has("2001:db8::9") && !has("192.0.2.1") })
	gen := w.Generation()
	ip(t, "addr del 2001:db8::9/128 dev lo\n")
	eventually(t, "it has gone", func() bool { return !has("2001:db8::9") })
	eventually(t, "the generation is another", func() bool { return w.Generation() > gen })
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if !has("198.51.1.50") || !has("127.0.0.1") || has("203.0.113.1") {
		t.Error("the addresses are not those of before after Close")
	}
}

// dropped returns how many messages of a netlink socket were lost.
func dropped(t *testing.T, fd int) (n int) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/net/netlink")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line) // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if len(f) == 10 && f[9] == fmt.Sprint(st.Ino) {
			fmt.Sscan(f[8], &n)
		}
	}
	return n
}
