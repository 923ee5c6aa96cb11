package failover

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"loopnfs/harness"
)

var (
	schedules = flag.Int("failover.schedules", 20, "how many random schedules are played")
	seed      = flag.Int64("failover.seed", 1, "of the first one")
	logs      = flag.String("failover.logs", "", "directory in which the logs of all hosts are kept")
)

// options returns those of a cluster for a test, which is skipped where there can be none.
func options(t *testing.T) Options {
	t.Helper()
	exe := os.Getenv("LOOPNFS_CLUSTER")
	if exe == "" {
		t.Skip("LOOPNFS_CLUSTER does not name the loopnfs binary: run make test-cluster, which leaves the machine to the cluster alone")
	}
	if err := checkTools(); err != nil {
		t.Skip(err)
	}
	start := time.Now()
	return Options{
		Exe: exe, Dir: "/var/tmp", Logs: *logs, Token: DefaultToken, Lease: DefaultLease,
		Say: func(format string, args ...any) {
			t.Logf("%6.1f s  "+format, append([]any{time.Since(start).Seconds()}, args...)...)
		},
	}
}

// play plays schedules, all of which must come out well.
func play(t *testing.T, opt Options, schedules ...Schedule) []harness.Result {
	t.Helper()
	results, err := Run(t.Context(), opt, schedules)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if !r.AsDocumented() {
			t.Errorf("seed %d (%s): %s: %s", r.Seed, schedules[i].String(), r.Outcome, r.Error)
		}
	}
	if len(results) != len(schedules) {
		t.Errorf("%d results of %d schedules", len(results), len(schedules))
	}
	return results
}

// Whatever goes wrong, nothing that was promised is lost or done twice, and nobody hangs.
func TestRandomSchedules(t *testing.T) {
	opt := options(t)
	var all []Schedule
	for i := range *schedules {
		all = append(all, Random(*seed+int64(i)))
	}
	play(t, opt, all...)
}

// A node that dies is replaced within five seconds: two of them are what corosync takes to
// be sure, another one what Pacemaker sometimes waits before it fences.
func TestGapAfterNodeKill(t *testing.T) {
	opt := options(t)
	opt.Lease = 0 // it would be waited for, too
	f, err := FindFault("node-kill")
	if err != nil {
		t.Fatal(err)
	}
	shortest := time.Hour
	for range 3 { // others may have the processors
		res := play(t, opt, Schedule{Seed: *seed, Faults: []Fault{f}})
		if len(res) != 1 || res[0].Outcome != harness.Survived {
			return
		}
		if shortest = min(shortest, time.Duration(res[0].StallMs)*time.Millisecond); shortest < 5*time.Second {
			t.Logf("gap: %v", shortest)
			return
		}
	}
	t.Errorf("the shortest of three gaps was %v", shortest)
}

// Ten moves under load: no error, and no lock lost, also when the grace period is over.
func TestMoves(t *testing.T) {
	res := play(t, options(t), Moves(*seed, 10))
	if len(res) == 1 {
		t.Logf("longest gap of %d moves: %d ms", len(res[0].Takeovers), res[0].StallMs)
	}
}

// Two servers with an export each: when a node dies, the other has both.
func TestCrossing(t *testing.T) {
	opt := options(t)
	opt.Crossing = true
	c, err := Up(t.Context(), opt)
	if c != nil {
		defer func() {
			if err := c.Down(); err != nil {
				t.Error(err)
			}
		}()
	}
	if err != nil {
		t.Fatal(err)
	}
	ping := func(source string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), upLimit)
		defer cancel()
		for {
			_, err := c.host(client1).Run(ctx, "loopnfs", "ping", source, "--timeout", "1s")
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	more := moreAddr.String() + ":2050:/more"
	ping(more)
	for name, addr := range map[string]string{node1: serviceAddr.String(), node2: moreAddr.String()} {
		out, err := c.host(name).Run(t.Context(), "ip", "-o", "addr", "show", "to", addr+"/32")
		if err != nil || !strings.Contains(out, addr) {
			t.Errorf("%s does not have %s (%v)", name, addr, err)
		}
	}
	if err := c.off(node1); err != nil {
		t.Fatal(err)
	}
	ping(service())
	ping(more)
}

// start starts loopnfs failover and returns when its cluster is up.
func start(t *testing.T, exe string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(exe, "failover", "--fault", "disk-stall", "--seed", "3")
	said, err := cmd.StderrPipe()
	if err := errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "takes no writes") {
			go io.Copy(io.Discard, said)
			return cmd
		}
	}
	t.Fatal("no cluster came up")
	return nil
}

// left returns what there is of the cluster of a process.
func left(pid int) (found []string) {
	mark := fmt.Sprintf("loopnfs-drill-%d-", pid)
	for _, pattern := range []string{"/proc/[0-9]*/mountinfo", "/sys/block/loop*/loop/backing_file"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), mark) {
				found = append(found, file)
			}
		}
	}
	groups, _ := filepath.Glob(filepath.Join(memoryGroups, groupPrefix+fmt.Sprint(pid)))
	dirs, _ := filepath.Glob("/var/tmp/" + mark + "*")
	return append(append(found, groups...), dirs...)
}

func awaitNothing(t *testing.T, pid int) {
	t.Helper()
	var found []string
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); time.Sleep(100 * time.Millisecond) {
		if found = left(pid); len(found) == 0 {
			return
		}
	}
	t.Errorf("left: %v", found)
}

// Ctrl-C while the disk is stalled takes everything down.
func TestInterrupted(t *testing.T) {
	cmd := start(t, options(t).Exe)
	if len(left(cmd.Process.Pid)) == 0 {
		t.Fatal("nothing is seen of a cluster that is there")
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was interrupted, and says that all is well")
	}
	awaitNothing(t, cmd.Process.Pid)
}

// What kill -9 leaves while the disk is stalled, the next one removes.
func TestKilled(t *testing.T) {
	opt := options(t)
	cmd := start(t, opt.Exe)
	time.Sleep(time.Second) // the stall lasts for two at least
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if _, err := harness.CleanLeftovers(); err != nil {
		t.Error(err)
	}
	if err := cleanLeftovers(t.TempDir()); err != nil {
		t.Error(err)
	}
	awaitNothing(t, cmd.Process.Pid)
}
