package failover

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/failover/host"
	"loopnfs/scripts/cluster"
)

// agentBed is a host in which the resource agents are installed.
type agentBed struct {
	*testing.T
	h     *host.Host
	setup string // what is /run/setup there
}

func newAgentBed(t *testing.T) *agentBed {
	opt := options(t)
	dir := t.TempDir()
	setup := filepath.Join(dir, "setup")
	if err := cluster.Write(setup); err != nil {
		t.Fatal(err)
	}
	h, err := host.Start(host.Config{Name: "agent", Scratch: filepath.Join(dir, "scratch"), Exe: opt.Exe, Binds: map[string]string{"/run/setup": setup}}, "", initArgs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Kill(); err != nil {
			t.Error(err)
		}
	})
	b := &agentBed{t, h, setup}
	b.sh("mkdir -p /usr/lib/ocf/resource.d/loopnfs /run/export /run/resource-agents && cp /run/setup/ocf/* /usr/lib/ocf/resource.d/loopnfs/")
	return b
}

// sh runs a command line, which must succeed, and returns what it says.
func (b *agentBed) sh(line string) string {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	out, err := b.h.Run(ctx, "sh", "-c", line)
	if err != nil {
		b.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

const agentEnv = "OCF_ROOT=/usr/lib/ocf OCF_RESOURCE_INSTANCE=t OCF_RESKEY_export=/run/export:/data OCF_RESKEY_state=/run/state " +
	"OCF_RESKEY_memory=16MiB OCF_RESKEY_listen=:20490 OCF_RESKEY_log=/run/server.log "

// agent has the agent carry out an action, and returns its exit code and how long it took.
func (b *agentBed) agent(action, env string) (code string, took time.Duration) {
	b.Helper()
	start := time.Now()
	code = strings.TrimSpace(b.sh(agentEnv + env + " /usr/lib/ocf/resource.d/loopnfs/server " + action + " >/run/out 2>&1; echo $?"))
	return code, time.Since(start)
}

func (b *agentBed) want(action, env, code string, limit time.Duration) {
	b.Helper()
	if got, took := b.agent(action, env); got != code || took > limit {
		b.Fatalf("%s %s: exit code %s after %v, want %s within %v\n%s%s", action, env, got, took, code, limit, b.sh("cat /run/out"), b.sh("tail -n 5 /run/server.log 2>&1 || :"))
	}
}

// The suite of resource-agents finds nothing wrong with them.
func TestOCF(t *testing.T) {
	for _, tool := range []string{"/usr/sbin/ocf-tester", "/usr/bin/xmllint"} {
		if _, err := os.Stat(tool); err != nil {
			t.Skip(err, ": run scripts/setup.sh cluster")
		}
	}
	b := newAgentBed(t)
	for _, args := range []string{
		"-o export=/run/export:/data -o state=/run/state -o memory=16MiB -o listen=:20490 -o log=/run/server.log server",
		"-o action=open -o address=10.0.0.9 -o connections=/run gate",
		"-o action=close -o address=10.0.0.9 gate",
	} {
		i := strings.LastIndex(args, " ") + 1
		out := b.sh("ocf-tester -n t " + args[:i] + "/usr/lib/ocf/resource.d/loopnfs/" + args[i:] + " 2>&1; :")
		if !strings.Contains(out, "passed all tests") {
			t.Errorf("%s", out)
		}
	}
}

// A server that was killed is not there for monitor, and stop has nothing to wait for.
func TestAgentServerKilled(t *testing.T) {
	b := newAgentBed(t)
	b.want("monitor", "", "7", 5*time.Second)
	b.want("start", "", "0", 20*time.Second)
	b.want("start", "", "0", 5*time.Second)
	b.want("monitor", "", "0", 5*time.Second)
	b.want("monitor", "OCF_CHECK_LEVEL=10", "0", 5*time.Second)
	// One that ends loses its command line first.
	b.sh("all=$(pgrep -f '[l]oopnfs serve'); kill -KILL $all; for p in $all; do while [ -e /proc/$p ]; do sleep 0.05; done; done")
	b.want("monitor", "", "7", 5*time.Second)
	b.want("stop", "", "0", 3*time.Second)
	b.want("start", "", "0", 20*time.Second)
	b.want("stop", "", "0", 20*time.Second)
	b.want("stop", "", "0", 3*time.Second)
}

// A server whose first thread has ended, while another one waits in the kernel, still has
// the disk. It is not taken for one that serves, nor for one that has stopped, whether it is
// the first process of the server or the second, whose first has gone.
func TestAgentServerEnding(t *testing.T) {
	b := newAgentBed(t)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.setup, "ending"), self, 0o700); err != nil {
		t.Fatal(err)
	}
	const env = "OCF_RESKEY_binary=/run/setup/ending OCF_RESKEY_pidfile=/run/ending.pid OCF_RESKEY_CRM_meta_timeout=14000"
	const note = `echo "$$ $(sed "s/^.*) //" /proc/$$/stat | cut -d " " -f 20)" >/run/ending.pid; `
	for _, c := range []struct{ name, script, then string }{
		{"first", note + "exec /run/setup/ending", ""},
		{"second", note + "/run/setup/ending & wait", ""},
		{"second alone", note + "/run/setup/ending & wait", `read -r pid rest </run/ending.pid; kill -KILL "$pid"; while [ -e "/proc/$pid" ]; do sleep 0.05; done`},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &agentBed{t, b.h, b.setup}
			b.sh("rm -f /run/ending.pid; ENDING=1 setsid sh -c '" + c.script + "' </dev/null >/dev/null 2>&1 & while ! pgrep -r Z -x ending; do sleep 0.05; done")
			b.sh(c.then)
			b.want("monitor", env, "1", 5*time.Second)
			b.want("stop", env, "0", 14*time.Second)
			b.want("monitor", env, "7", 5*time.Second)
			if out := b.sh("pgrep -x ending || :"); out != "" {
				t.Fatalf("still there: %s", out)
			}
		})
	}
}

// A file that was left, and whose number another process has got, names nobody.
func TestAgentStranger(t *testing.T) {
	b := newAgentBed(t)
	b.sh("setsid sleep 100 </dev/null >/dev/null 2>&1 & echo \"$! 1\" >/run/stranger.pid; sleep 0.2")
	const env = "OCF_RESKEY_pidfile=/run/stranger.pid"
	b.want("monitor", env, "7", 5*time.Second)
	b.want("stop", env, "0", 5*time.Second)
	b.sh("pgrep -x sleep")
	b.sh("echo nonsense >/run/stranger.pid")
	b.want("monitor", env, "7", 5*time.Second)
	b.want("stop", env, "0", 5*time.Second)
}

// init is run by the first thread of the process.
func init() {
	if os.Getenv("ENDING") != "" {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0) // that of the runtime goes on
	}
}

// A server that does not react is seen in depth 10 only, and killed by stop, in the time
// that both have.
func TestAgentServerStands(t *testing.T) {
	b := newAgentBed(t)
	b.want("start", "", "0", 20*time.Second)
	b.sh("pkill -STOP -f '[l]oopnfs serve'")
	b.want("monitor", "", "0", 5*time.Second)
	b.want("monitor", "OCF_CHECK_LEVEL=10 OCF_RESKEY_CRM_meta_timeout=4000", "1", 4*time.Second)
	b.want("stop", "OCF_RESKEY_CRM_meta_timeout=14000", "0", 14*time.Second)
	if out := b.sh("pgrep -f '[l]oopnfs serve' || :"); out != "" {
		t.Fatalf("still there: %s", out)
	}
}

// What cannot work is said to be so, with the code that keeps Pacemaker from trying again
// on this node, or on any.
func TestAgentWrongParameters(t *testing.T) {
	b := newAgentBed(t)
	for env, code := range map[string]string{
		"OCF_RESKEY_export=": "6", "OCF_RESKEY_state=": "6", "OCF_RESKEY_listen=2049x": "6", "OCF_RESKEY_listen=:0": "6",
		"OCF_RESKEY_export=data:/data": "6", "OCF_RESKEY_binary=/nowhere": "5", "OCF_RESKEY_export=/nowhere:/data": "5",
	} {
		b.want("validate-all", env, code, 5*time.Second)
		b.want("start", env, code, 5*time.Second)
	}
	b.want("start", "OCF_RESKEY_options=--nonsense", "1", 5*time.Second)
	b.want("monitor", "", "7", 5*time.Second)
}

// A host lacks what reaches the machine. None of it is tried: if this failed, so would the
// machine.
func TestHostsAreHarmless(t *testing.T) {
	b := newAgentBed(t)
	fields := strings.Fields(b.sh("grep CapBnd /proc/self/status"))
	rights, err := strconv.ParseUint(fields[1], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]int{"CAP_SYS_BOOT": unix.CAP_SYS_BOOT, "CAP_SYS_TIME": unix.CAP_SYS_TIME, "CAP_SYS_MODULE": unix.CAP_SYS_MODULE, "CAP_SYS_RAWIO": unix.CAP_SYS_RAWIO} {
		if rights&(1<<c) != 0 {
			t.Errorf("a host has %s", name)
		}
	}
	b.sh("[ ! -e /proc/sysrq-trigger ] || [ -c /proc/sysrq-trigger ]")
	for _, file := range []string{"/proc/sys/vm/swappiness", "/sys/kernel/mm/transparent_hugepage/defrag"} {
		if out := b.sh("[ ! -e " + file + " ] || (true >>" + file + ") 2>/dev/null && echo writable || :"); strings.Contains(out, "writable") && b.sh("ls "+file+" || :") != "" {
			t.Errorf("%s can be written in a host", file)
		}
	}
}
