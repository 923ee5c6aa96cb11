package failover

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"loopnfs/harness/vm/job"
)

// freeAddr returns an address at which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A QEMU that was switched off has ended by the time that the switch says so.
func TestMonitorsOff(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	addr := freeAddr(t)
	cmd := exec.Command(qemu, "-machine", "none", "-display", "none", "-nodefaults", "-qmp", "tcp:"+addr+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	device := monitorsPrefix + "n1=" + addr
	for limit := time.Now().Add(20 * time.Second); Power(device, "status", "n1") != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("QEMU does not listen")
		}
	}
	if err := Power(device, "off", "n1"); err != nil {
		t.Fatal(err)
	}
	if nc, err := net.Dial("tcp", addr); err == nil {
		nc.Close()
		t.Error("somebody listens at the monitor after the node was switched off")
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("QEMU was not ended in order: %v", err)
	}
	if err := Power(device, "off", "n1"); err != nil {
		t.Errorf("off of a node that is off: %v", err)
	}
	if err := Power(device, "status", "n1"); err == nil {
		t.Error("status of a node that is off: on")
	}
	if err := Power(device, "off", "n3"); err == nil {
		t.Error("a node that there is not was switched off")
	}
}

// A monitor that takes connections and says nothing, or ends them, has not ended its guest.
func TestMonitorsSilent(t *testing.T) {
	for name, answer := range map[string]func(net.Conn){"silent": func(net.Conn) {}, "ends": func(c net.Conn) { c.Close() }} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				answer(c)
			}
		}()
		if err := switchOff(l.Addr().String(), 300*time.Millisecond); err == nil {
			t.Errorf("%s: taken for off", name)
		}
	}
}

func TestMonitorsParse(t *testing.T) {
	m := monitors{"n1": "10.0.0.1:4001", "n2": "10.0.0.1:4002"}
	got, err := parseMonitors(strings.TrimPrefix(m.String(), monitorsPrefix))
	if err != nil || fmt.Sprint(got) != fmt.Sprint(m) {
		t.Errorf("%v, %v; want %v", got, err, m)
	}
	for _, bad := range []string{"", "n1", "n1=10.0.0.1", "n1=10.0.0.1:1,"} {
		if _, err := parseMonitors(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestReadStacks(t *testing.T) {
	const text = "task 12 pacemaker-execd\n[<0>] nfs_wb_folio+0x3d/0x110 [nfs]\n[<0>] shrink_folio_list+0x1/0x2\ntask 7 a b\n"
	got := readStacks(text)
	want := []job.Stack{
		{PID: 12, Comm: "pacemaker-execd", State: "D", Frames: []string{"nfs_wb_folio", "shrink_folio_list"}},
		{PID: 7, Comm: "a b", State: "D"},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
