package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"loopnfs/harness/vm/job"
	"loopnfs/harness/work"
)

// The test binary stands in for loopnfs: a drill starts it as node and worker,
// and tests start it as a drill that they can kill.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "drill" {
		if err := runChild(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runChild(args []string) error {
	ctx := context.Background()
	switch args[0] {
	case "node":
		return RunNode(ctx, os.Stdin, os.Stdout)
	case "worker":
		return work.Main(ctx, args[1], os.Stdin, os.Stdout)
	}
	drills, err := Find(args[1:])
	if err != nil {
		return err
	}
	results, err := Run(ctx, drills, testOptions(func(format string, args ...any) { fmt.Printf(format+"\n", args...) }))
	_ = WriteTable(os.Stdout, results)
	return err
}

// testOptions runs the processes of a drill from the binary that LOOPNFS names,
// as the Makefile does: the race detector makes a node ten times slower, which is
// no drill of a starved machine any more.
func testOptions(say func(string, ...any)) Options {
	exe := os.Getenv("LOOPNFS")
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			panic(err)
		}
	}
	return Options{Exe: exe, Dir: "/var/tmp", Memory: DefaultMemory, Seed: 1, Say: say}
}

func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: open_by_handle_at")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse")
	}
	if err := checkTools(); err != nil {
		t.Skip(err)
	}
}

// nothingLeft fails if a drill of process pid has left something.
func nothingLeft(t *testing.T, pid int) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.Contains(m.Mountpoint, fmt.Sprintf("loopnfs-drill-%d-", pid)), false
	})
	if err != nil || len(mounts) > 0 {
		t.Errorf("mounts left: %v %v", mounts, err)
	}
	for _, pattern := range []string{
		fmt.Sprintf("/var/tmp/loopnfs-drill-%d-*", pid), filepath.Join(ledgerDir(), fmt.Sprintf("drill-%d.json", pid)),
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// Each drill, both ways, as a user runs it.
func TestDrillsComeOutAsDocumented(t *testing.T) {
	needMounts(t)
	if testing.Short() {
		t.Skip("takes a minute")
	}
	results, err := Run(t.Context(), Drills(), testOptions(t.Logf))
	if err != nil {
		t.Fatal(err)
	}
	for i := range results {
		if r := &results[i]; !r.AsDocumented() {
			t.Errorf("%s without %q: %s, expected %s: %s", r.Drill, r.Without, r.Outcome, r.Expected, r.Error)
		}
	}
	nothingLeft(t, os.Getpid())
}

// startDrill starts a drill in a process and waits until its load runs.
func startDrill(t *testing.T) (*exec.Cmd, *Ledger) {
	t.Helper()
	exe, _ := os.Executable()
	cmd := exec.Command(exe, "drill", "run", "release-page")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(ledgerDir(), fmt.Sprintf("drill-%d.json", cmd.Process.Pid))
	for range 200 {
		if l, err := readLedger(path); err == nil && len(l.Children) >= 3 {
			return cmd, l
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	t.Fatal("the drill did not get under way")
	return nil, nil
}

func TestTheNextDrillCleansUpAfterAKilledOne(t *testing.T) {
	needMounts(t)
	cmd, l := startDrill(t)
	pid := cmd.Process.Pid
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	said, err := CleanLeftovers()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, fmt.Sprintf("drill %d,", pid)) }) {
		t.Errorf("it does not say so: %q", said)
	}
	nothingLeft(t, pid)
	for _, p := range l.Children {
		waitGone(t, p)
	}
}

func waitGone(t *testing.T, p proc) {
	t.Helper()
	for range 100 {
		if !p.alive() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("process %d still runs", p.PID)
}

func TestALiveDrillIsLeftAlone(t *testing.T) {
	l, err := NewLedger("/var/tmp")
	if err != nil {
		t.Skip(err)
	}
	defer l.Clean()
	if _, err := CleanLeftovers(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.Dir); err != nil {
		t.Errorf("the directory of a live drill is gone: %v", err)
	}
}

func TestADamagedLedgerIsNotActedOn(t *testing.T) {
	if err := os.MkdirAll(ledgerDir(), 0o700); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(ledgerDir(), "drill-0.json")
	for _, content := range []string{"{", `{"owner":{"pid":0},"dir":"etc"}`, `{"owner":{"pid":0},"dir":"/etc"}`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := CleanLeftovers(); err == nil {
			t.Errorf("%s was acted on", content)
		}
	}
	os.Remove(path)
}

func TestInterruptedDrillLeavesNothing(t *testing.T) {
	needMounts(t)
	ctx, cancel := context.WithCancel(t.Context())
	opt := testOptions(t.Logf)
	timer := time.AfterFunc(3*time.Second, cancel)
	defer timer.Stop()
	if _, err := Run(ctx, Drills(), opt); err == nil {
		t.Error("an interrupted run ended without an error")
	}
	nothingLeft(t, os.Getpid())
}

func TestChildrenDieWithTheirParent(t *testing.T) {
	s := newSpawner()
	defer s.close()
	c, err := s.start("sleep", "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	p := procOf(c.pid())
	if sig := c.cmd.SysProcAttr.Pdeathsig; sig != syscall.SIGKILL {
		t.Errorf("parent-death signal %v", sig)
	}
	c.kill()
	waitGone(t, p)
	if _, err := s.start("nothing", "/nonexistent"); err == nil {
		t.Error("a program that is not there was started")
	}
}

func TestJSONHasTheDocumentedFields(t *testing.T) {
	var b strings.Builder
	if err := WriteJSON(&b, []Result{{Drill: "release-page", Cycle: []string{"a waits for b"}}}); err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"drill", "tier", "server", "kernel", "without", "outcome", "expected", "cycle",
		"seconds", "bytes", "max_latency_ms", "data_verified", "seed"} {
		if _, ok := got[0][key]; !ok {
			t.Errorf("no field %q", key)
		}
	}
}

func TestResultsAreReadBack(t *testing.T) {
	want := []Result{{
		Drill: "release-page", Tier: TierVM, Outcome: Hung, Cycle: []string{"a waits for b"}, Rate: 1.5,
		Stacks: []job.Stack{{PID: 1, Comm: "nfsd", Frames: []string{"f"}}}, Timeline: []job.Sample{{Seconds: 0.5, Bytes: 7}},
	}, {Drill: "freeze"}}
	var b strings.Builder
	if err := WriteJSON(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadJSON(strings.NewReader(b.String()))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "{}", `[{"seconds":"many"}]`, b.String()[:b.Len()/2]} {
		if _, err := ReadJSON(strings.NewReader(bad)); err == nil {
			t.Errorf("%.20q was taken for results", bad)
		}
	}
}

func TestResultsAreHeldAgainstTheDocumentation(t *testing.T) {
	for _, c := range []struct {
		r    Result
		want bool
	}{
		{Result{Expected: Survived, Outcome: Survived, DataVerified: true}, true},
		{Result{Expected: Survived, Outcome: Survived}, false},
		{Result{Expected: Survived, Outcome: Hung}, false},
		{Result{Expected: Hung, Outcome: Hung}, true},
		{Result{Expected: Hung, Outcome: Collapsed}, true},
		{Result{Expected: Hung, Outcome: Survived, DataVerified: true}, false},
		{Result{Expected: Hung, Outcome: Hung, Error: "another circle"}, false},
	} {
		if got := c.r.AsDocumented(); got != c.want {
			t.Errorf("%+v: %v", c.r, got)
		}
	}
}
