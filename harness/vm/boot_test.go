package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"loopnfs/harness/vm/job"
)

// needGuest returns a guest that can be booted at once: LOOPNFS_GUEST is the version
// of its kernel, and LOOPNFS the program, as make build leaves it.
func needGuest(t *testing.T) Config {
	t.Helper()
	kernel, exe := os.Getenv("LOOPNFS_GUEST"), os.Getenv("LOOPNFS")
	if kernel == "" || exe == "" {
		t.Skip("it boots guests: set LOOPNFS_GUEST=6.12.43 and LOOPNFS=.../bin/loopnfs")
	}
	if !Cached(kernel) {
		t.Skipf("kernel %s or the guest image is not in %s: loopnfs drill guest --kernel %s -- true", kernel, CacheDir(), kernel)
	}
	return Config{
		Kernel: kernel, MemoryMiB: 192, CPUs: 1, DiskMiB: 64, Limit: 3 * time.Minute, Say: t.Logf,
		Init: filepath.Join(filepath.Dir(exe), "loopnfs-guest"), Handle: func(job.Event) {},
		Job: job.Job{Command: []string{"sleep", "600"}},
	}
}

// qemus returns the QEMU processes that are children of a process.
func qemus(t *testing.T, parent int) (pids []string) {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, _ := os.ReadFile(path)
		var state string
		var ppid int
		end := bytes.LastIndexByte(stat, ')')
		if end < 0 || !bytes.Contains(stat[:end], []byte("(qemu-system")) {
			continue
		}
		if _, err := fmt.Sscan(string(stat[end+1:]), &state, &ppid); err == nil && ppid == parent {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute, not yet: %s", what)
		}
	}
}

// nothingLeft fails if there is a QEMU of ours, or a disk. That of another
// process has its name for a moment only.
func nothingLeft(t *testing.T) {
	t.Helper()
	if left := qemus(t, os.Getpid()); len(left) > 0 {
		t.Errorf("QEMU still runs: %v", left)
	}
	noDisks(t)
}

func noDisks(t *testing.T) {
	t.Helper()
	eventually(t, "no disks in /var/tmp", func() bool {
		disks, _ := filepath.Glob("/var/tmp/loopnfs-vm-*")
		return len(disks) == 0
	})
}

// All that a command writes arrives, though it is read slowly and the machine
// ends at once, and who it leaves in the background is not waited for.
func TestGuestCommand(t *testing.T) {
	c := needGuest(t)
	c.Job.Command = []string{"sh", "-c", `sleep 600 & head -c 300000 /dev/zero | tr '\0' x; cat tool; cat missing; exit 7`}
	c.Files = map[string]string{"tool": write(t, filepath.Join(t.TempDir(), "tool"), []byte("\xff\x00tool\n"))}
	c.Job.Disk, c.Job.Modules = "ext4", AllModules()
	var out bytes.Buffer
	var exit *int
	var ready *job.Ready
	c.Handle = func(e job.Event) {
		if len(e.Output) > 0 && out.Len() == 0 {
			time.Sleep(time.Second)
		}
		out.Write(e.Output)
		if e.Exit != nil {
			exit = e.Exit
		}
		if e.Ready != nil {
			ready = e.Ready
		}
	}
	version, err := Run(t.Context(), c)
	if err != nil || !strings.HasPrefix(version, c.Kernel) {
		t.Fatalf("%s, %v", version, err)
	}
	if exit == nil || *exit != 7 {
		t.Errorf("exit code %v", exit)
	}
	if ready == nil || !strings.HasPrefix(ready.Kernel, c.Kernel) || ready.MemKB < 100<<10 {
		t.Errorf("ready: %+v", ready)
	}
	want := strings.Repeat("x", 300000) + "\xff\x00tool\ncat: missing: No such file or directory\n"
	if out.String() != want {
		t.Errorf("%d bytes of output, want %d: ...%q", out.Len(), len(want), out.Bytes()[max(0, out.Len()-100):])
	}
	nothingLeft(t)
}

func TestGuestWhoseInitFails(t *testing.T) {
	c := needGuest(t)
	c.Init = write(t, filepath.Join(t.TempDir(), "init"), []byte("not a program"))
	var console strings.Builder
	c.Console = &console
	_, err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "ended before its job did") || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(console.String(), "Linux version "+c.Kernel) {
		t.Errorf("the console has %.200q", console.String())
	}
	nothingLeft(t)
}

// What keeps a guest from its job is told.
func TestGuestThatCannotDoItsJob(t *testing.T) {
	c := needGuest(t)
	c.Job.Disk, c.DiskMiB, c.Job.Modules = "xfs", 16, AllModules()
	if _, err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "mkfs.xfs") {
		t.Errorf("XFS on 16 MiB: %v", err)
	}
	nothingLeft(t)
}

func TestGuestIsInterrupted(t *testing.T) {
	c := needGuest(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	running := 0
	c.Handle = func(e job.Event) {
		if e.Ready != nil {
			running = len(qemus(t, os.Getpid()))
			cancel()
		}
	}
	if _, err := Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if running != 1 {
		t.Errorf("%d times QEMU while it ran: the test sees nothing", running)
	}
	nothingLeft(t)
}

func TestGuestThatIsOutOfTime(t *testing.T) {
	c := needGuest(t)
	c.Limit = 3 * time.Second
	began := time.Now()
	_, err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "did not end within 3s") || !strings.Contains(err.Error(), "the end of its console") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("after %v", took)
	}
	nothingLeft(t)
}

// Whoever kills the program that started a guest kills the guest.
func TestGuestOfAKilledDrill(t *testing.T) {
	c := needGuest(t)
	cmd := exec.Command(os.Getenv("LOOPNFS"), "drill", "--tier", "vm", "release-page", "--kernel", c.Kernel)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() // it was killed
	defer cmd.Process.Kill()
	var pids []string
	eventually(t, "QEMU runs", func() bool {
		pids = qemus(t, cmd.Process.Pid)
		return len(pids) > 0
	})
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "QEMU is gone", func() bool {
		return !slices.ContainsFunc(pids, runs)
	})
	noDisks(t)
}
