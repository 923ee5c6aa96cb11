package hostguard

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// childEnv tells a copy of the test binary what to do.
const childEnv = "HOSTGUARD_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "enter":
		childEnters(func() error { return nil })
	case "refused":
		childEnters(func() error { return syscall.EPERM })
	case "protect":
		childProtects()
	case "keeper":
		childKeeps()
	case "spare":
		fmt.Println(spare())
	}
}

// run runs a copy of the test binary and returns what it printed.
func run(t *testing.T, child string, args ...string) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Args[0] = "a name"
	cmd.Env = append(os.Environ(), childEnv+"="+child, "KEPT=a=b c", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// childEnters prints one line before entering and one after.
func childEnters(set func() error) {
	fmt.Println("before", os.Getpid())
	g := enter(set, nil)
	fmt.Printf("after %d %q %q %t %t\n", os.Getpid(), os.Args, os.Getenv("KEPT"), os.Getenv(enteredEnv) == "", g.Err() == nil)
}

func TestEnterExecutesOnce(t *testing.T) {
	out := run(t, "enter", "serve", "--export", "a b")
	if len(out) != 3 || out[0] != out[1] {
		t.Fatalf("want two starts of one process: %q", out)
	}
	pid := strings.TrimPrefix(out[0], "before ")
	want := fmt.Sprintf("after %s %q %q true true", pid, []string{"a name", "serve", "--export", "a b"}, "a=b c")
	if out[2] != want {
		t.Errorf("got  %s\nwant %s", out[2], want)
	}
}

func TestEnterGoesOnWithoutTheRight(t *testing.T) {
	out := run(t, "refused")
	if len(out) != 2 || !strings.HasSuffix(out[1], " true false") {
		t.Errorf("want one start, and an error: %q", out)
	}
}

// A child of a guarded process has its own number, so what it inherits does not
// keep it from entering.
func TestEnterHeedsOnlyItsOwnMark(t *testing.T) {
	t.Setenv(enteredEnv, "1")
	if out := run(t, "enter"); len(out) != 3 {
		t.Errorf("want two starts: %q", out)
	}
}

// What Enter really does depends on the rights of the test.
func TestEnterForReal(t *testing.T) {
	restoreAfter(t, "/proc/sys/vm/compact_unevictable_allowed", hugepageDir+"defrag", hugepageDir+"khugepaged/defrag")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=protect", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	if has := strings.Contains(text, "I/O flusher"); has == capable(unix.CAP_SYS_RESOURCE) {
		t.Errorf("CAP_SYS_RESOURCE is %t, and it says:\n%s", !has, text)
	}
	if has := strings.Contains(text, "locked memory"); has == capable(unix.CAP_IPC_LOCK) {
		t.Errorf("CAP_IPC_LOCK is %t, and it says:\n%s", !has, text)
	}
}

// childProtects fails if something is neither there nor reported missing.
func childProtects() {
	const threads = 30
	g := Enter()
	g.Protect(Config{Threads: threads, KernelWaits: true})
	g.Check()
	p, err := Audit(os.Getpid())
	var b bytes.Buffer
	g.Log(slog.New(slog.NewTextHandler(&b, nil)))
	missing := func(what string) bool {
		return slices.ContainsFunc(g.Missing(), func(m Missing) bool { return strings.Contains(m.What, what) })
	}
	switch {
	case err != nil:
	case p.Threads < threads:
		err = fmt.Errorf("%d threads", p.Threads)
	case !p.Guarded() && !missing("I/O flusher"):
		err = errors.New("threads without the flags")
	case p.LockedBytes == 0 && !missing("locked memory"):
		err = errors.New("nothing is locked")
	case movable() && !missing("stays where it is"):
		err = errors.New("compaction moves locked memory, and nobody says so")
	case waitsForHugepages() && !missing("huge pages"):
		err = errors.New("processes compact memory for huge pages, and nobody says so")
	case p.OOMScoreAdj != oomNever && !missing("oom_score_adj"):
		err = fmt.Errorf("oom_score_adj is %d", p.OOMScoreAdj)
	case p.ResidentBytes > 64<<20:
		err = fmt.Errorf("%d MiB are resident: what is not touched costs memory", p.ResidentBytes>>20)
	case len(g.Missing()) != strings.Count(b.String(), "level=WARN"):
		err = fmt.Errorf("not one warning for each thing:\n%s", &b)
	}
	fmt.Print(&b)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// movable is whether this kernel compacts memory that is locked.
func movable() bool {
	text, err := os.ReadFile("/proc/sys/vm/compact_unevictable_allowed")
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

func waitsForHugepages() bool {
	defrag, err := os.ReadFile(hugepageDir + "defrag")
	background, _ := os.ReadFile(hugepageDir + "khugepaged/defrag")
	return err == nil && (!compactsLater(string(defrag)) || strings.TrimSpace(string(background)) != "0")
}

// restoreAfter has settings of this host as they were when the test ends.
func restoreAfter(t *testing.T, names ...string) {
	for _, name := range names {
		old, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		_, chosen, ok := strings.Cut(string(old), "[")
		if ok {
			chosen, _, _ = strings.Cut(chosen, "]")
		} else {
			chosen = strings.TrimSpace(string(old))
		}
		t.Cleanup(func() { _ = os.WriteFile(name, []byte(chosen), 0) })
	}
}

// A process that may be killed first, as everything that a desktop starts, becomes
// one that may be killed like others, at least.
func TestSpareFromAbove(t *testing.T) {
	cmd := exec.Command("sh", "-c", `echo 50 > /proc/self/oom_score_adj && exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=spare", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var is int
	if _, err := fmt.Sscan(string(out), &is); err != nil || is > 0 {
		t.Errorf("it has %s", out)
	}
}

func TestErrNamesEverything(t *testing.T) {
	var g Guard
	if g.Err() != nil {
		t.Error("an error though nothing is missing")
	}
	g.Miss(Missing{What: "one", Why: syscall.EPERM, Remedy: "do this"})
	g.Miss(Missing{What: "two", Why: syscall.EPERM, Remedy: "do that"})
	g.Miss(Missing{What: "one", Why: syscall.EINVAL})
	err := g.Err().Error()
	for _, want := range []string{"one is missing", "do this", "two is missing", "do that"} {
		if !strings.Contains(err, want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if len(g.Missing()) != 2 {
		t.Errorf("%+v", g.Missing())
	}
}

func TestFileConstant(t *testing.T) {
	for line, want := range map[string]string{
		"00400000-00a02000 r-xp 00000000 fe:00 997 /bin/a b": "code 400000-a02000",
		"00a02000-010be000 r--p 00602000 fe:00 997 /bin/a":   "constants a02000-10be000",
		"010be000-01126000 rw-p 00cbe000 fe:00 997 /bin/a":   "",
		"01126000-01200000 ---p 00cbe000 fe:00 997 /bin/a":   "",
		"7ffd000-7ffe000 r-xp 00000000 00:00 0 [vdso]":       "",
		"7ffd000-7ffe000 r--p 00000000 00:00 0":              "",
		"7ffe000-7ffd000 r-xp 00000000 fe:00 997 /bin/a":     "",
		"x-y r-xp 00000000 fe:00 997 /bin/a":                 "",
		"00400000 r 0 fe:00 997 /bin/a":                      "",
		"":                                                   "",
	} {
		m, exec, ok := fileConstant(line)
		got := fmt.Sprintf("%x-%x", m.start, m.end)
		switch {
		case !ok:
			got = ""
		case exec:
			got = "code " + got
		default:
			got = "constants " + got
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// The code that is locked is all that may run, and little else.
func TestHotCode(t *testing.T) {
	text := codeOf(t, runtime.FuncForPC(reflect.ValueOf(TestHotCode).Pointer()).Entry())
	all := hotCode(text, nil)
	cold := []string{"testing.", "net/", "flag."}
	hot := hotCode(text, cold)
	size := func(ms []mapping) (n uintptr) {
		for _, m := range ms {
			n += m.end - m.start
		}
		return n
	}
	has := func(ms []mapping, f any) bool {
		pc := reflect.ValueOf(f).Pointer()
		return slices.ContainsFunc(ms, func(m mapping) bool { return m.start <= pc && pc < m.end })
	}
	if !has(all, testing.Main) || !has(hot, Audit) || !has(hot, runtime.GC) {
		t.Errorf("hot: %x, all: %x", hot, all)
	}
	if size(hot) >= size(all) || size(all) > text.end-text.start {
		t.Errorf("%d bytes are hot, of %d in %d", size(hot), size(all), text.end-text.start)
	}
	for pc := text.start; pc < text.end; pc++ {
		f := runtime.FuncForPC(pc)
		if f == nil || f.Entry() != pc || hasPrefix(f.Name(), cold) {
			continue
		}
		if !slices.ContainsFunc(hot, func(m mapping) bool { return m.start <= pc && pc < m.end }) {
			t.Fatalf("%s at %x is not hot", f.Name(), pc)
		}
	}
	wrapper := new(sync.Mutex).Lock // its code lies in this package, which is cold here
	if few := hotCode(text, []string{"loopnfs/", "testing.", "net/", "flag."}); !has(few, wrapper) {
		t.Error("the wrapper of a method value is not hot")
	}
	for i, m := range hot {
		if m.start < text.start || m.end > text.end || m.start >= m.end || i > 0 && m.start <= hot[i-1].end+codeGap {
			t.Errorf("range %d is %x", i, m)
		}
	}
}

func BenchmarkHotCode(b *testing.B) {
	text := codeOf(b, reflect.ValueOf(Audit).Pointer())
	for b.Loop() {
		hotCode(text, []string{"testing."})
	}
}

// codeOf returns the mapping with pc.
func codeOf(t testing.TB, pc uintptr) mapping {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if m, exec, ok := fileConstant(line); ok && exec && m.start <= pc && pc < m.end {
			return m
		}
	}
	t.Fatal("this code is nowhere")
	return mapping{}
}
