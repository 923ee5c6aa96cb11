package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testCache returns a cache that builds with a script of the test's.
func testCache(t *testing.T, script string) *cache {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "guest-0123456789ab")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &cache{dir: dir, script: []byte(script), say: t.Logf}
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// frame is how image.sh works: it builds beside the target and moves it there.
const frame = `set -e
target=${*: -1}
work=$(mktemp -d "$(dirname "$target")/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
`

func TestOnlyOneBuilds(t *testing.T) {
	c := testCache(t, frame+`echo "$1" >>"$(dirname "$target")/log"; sleep 0.1; mv "$work" "$target"`)
	path := filepath.Join(c.dir, "root.ext4")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := c.make(t.Context(), path, "building", "root", path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if log, err := os.ReadFile(filepath.Join(c.dir, "log")); string(log) != "root\n" {
		t.Errorf("built %q, %v", log, err)
	}
	c.script = []byte("exit 1")
	if err := c.make(t.Context(), path, "building again", "root", path); err != nil {
		t.Errorf("what is there is built again: %v", err)
	}
}

func TestABuildThatFails(t *testing.T) {
	c := testCache(t, frame+`touch "$work/half"; echo "the mirror is gone" >&2; exit 3`)
	path := filepath.Join(c.dir, "root.ext4")
	err := c.make(t.Context(), path, "building it", "root", path)
	if err == nil || !strings.Contains(err.Error(), "building it failed") || !strings.Contains(err.Error(), "the mirror is gone") {
		t.Errorf("got %v", err)
	}
	if left := names(t, c.dir); !slices.Equal(left, []string{"lock"}) {
		t.Errorf("left: %v", left)
	}
}

// Ctrl-C ends the script and what it runs, and nothing is left of the build.
func TestABuildThatIsInterrupted(t *testing.T) {
	c := testCache(t, frame+`sh -c 'echo $$ >"$0/pid"; exec sleep 60' "$work"; mv "$work" "$target"`)
	path := filepath.Join(c.dir, "root.ext4")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var child string
	go func() {
		for child == "" {
			time.Sleep(5 * time.Millisecond)
			child = startedIn(c.dir)
		}
		cancel()
	}()
	began := time.Now()
	if err := c.make(ctx, path, "building", "root", path); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it ended after %v: what the script runs was waited for", took)
	}
	if runs(child) {
		t.Errorf("process %s of the script still runs", child)
	}
	if left := names(t, c.dir); !slices.Equal(left, []string{"lock"}) {
		t.Errorf("left: %v", left)
	}
}

// startedIn returns the process that a script has started; empty until then.
func startedIn(dir string) string {
	for _, e := range entries(dir) {
		if pid, _ := os.ReadFile(filepath.Join(dir, e.Name(), "pid")); bytes.HasSuffix(pid, []byte("\n")) {
			return strings.TrimSpace(string(pid))
		}
	}
	return ""
}

// runs reports whether a process has not ended, known to its parent or not.
func runs(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

func TestWhoWaitsForABuildCanBeInterrupted(t *testing.T) {
	c := testCache(t, "exit 1")
	lock, err := c.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	ctx, cancel := context.WithCancel(t.Context())
	said := 0
	c.say = func(string, ...any) { said++; cancel() }
	path := filepath.Join(c.dir, "root.ext4")
	if err := c.make(ctx, path, "building", "root", path); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if said != 1 {
		t.Errorf("it was said %d times what is waited for", said)
	}
}

func TestOtherVersionsAreRemovedAndNothingElse(t *testing.T) {
	c := testCache(t, `touch "${*: -1}"`)
	parent := filepath.Dir(c.dir)
	foreign := []string{"guest-windows", "guest-0123456789abc", "guest-0123456789AB", "images"}
	for _, name := range append([]string{"guest-ba9876543210", "guest-0123456789ab/.build.abcdef"}, foreign...) {
		if err := os.Mkdir(filepath.Join(parent, name), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(parent, name, "file"), nil)
	}
	path := filepath.Join(c.dir, "root.ext4")
	if err := c.make(t.Context(), path, "building", "root", path); err != nil {
		t.Fatal(err)
	}
	want := append(foreign, filepath.Base(c.dir))
	slices.Sort(want)
	if got := names(t, parent); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := names(t, c.dir); !slices.Equal(got, []string{"lock", "root.ext4"}) {
		t.Errorf("got %v", got)
	}
}

func TestKernelVersions(t *testing.T) {
	c := testCache(t, `mkdir -p "$3/modules"; touch "$3/modules/modules.builtin"; echo "$2.99" >"$3/version"`)
	for _, bad := range []string{
		"", ".", "..", "6.", ".1", "6..1", "6.1.", "6.1.2.3", "../6.1", "6.1/..", "6.1;true", "-6.1", "6.1 ", "6.1\n", "v6.1",
		"6.1*", "$(id)", "6.12.43+deb12", "6,1", strings.Repeat("6", 300),
	} {
		if _, err := c.kernel(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "is not a kernel version") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if left := names(t, c.dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, good := range []string{"6", "6.1", "6.12.43"} {
		k, err := c.kernel(t.Context(), good)
		if err != nil || k.Version != good+".99" || k.image() != filepath.Join(c.dir, "kernel-"+good, "vmlinuz") {
			t.Errorf("%s: %+v, %v", good, k, err)
		}
	}
}

func TestCacheDir(t *testing.T) {
	t.Setenv("LOOPNFS_CACHE", "")
	if dir := CacheDir(); dir != "/var/cache/loopnfs" {
		t.Errorf("got %s", dir)
	}
	file := write(t, filepath.Join(t.TempDir(), "file"), nil)
	t.Setenv("LOOPNFS_CACHE", file)
	if _, err := openCache(t.Logf); err == nil || !strings.Contains(err.Error(), "LOOPNFS_CACHE") {
		t.Errorf("in a file: %v", err)
	}
	t.Chdir(t.TempDir())
	t.Setenv("LOOPNFS_CACHE", "nbd:cache")
	c, err := openCache(t.Logf)
	if err != nil || !filepath.IsAbs(c.dir) || !ofImages.MatchString(filepath.Base(c.dir)) {
		t.Errorf("got %+v, %v", c, err)
	}
	if Cached("6.1") {
		t.Error("an empty cache has a kernel")
	}
	write(t, filepath.Join(c.dir, "root.ext4"), nil)
	write(t, filepath.Join(c.dir, "kernel-6.1"), nil)
	if !Cached("6.1") || Cached("6.12") {
		t.Error("what is there is not found")
	}
}

// What is known is kept for one boot of the host; what is damaged is not known.
func TestAcceleration(t *testing.T) {
	c := testCache(t, "")
	c.kvm = filepath.Join(c.dir, "kvm")
	k := testKernel(t, "", nil) // nothing boots with it
	if got, err := c.accel(t.Context(), k, "", ""); got != "tcg" || err != nil {
		t.Errorf("without KVM: %q, %v", got, err)
	}
	write(t, c.kvm, nil)
	if got, err := c.accel(t.Context(), k, "", ""); !errors.Is(err, errNotStarted) {
		t.Errorf("a guest that cannot be started says that it is %q (%v)", got, err)
	}
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	path := filepath.Join(c.dir, "accel-"+strings.TrimSpace(string(id)))
	for _, known := range []string{"kvm", "tcg"} {
		write(t, path, []byte(known))
		if got, err := c.accel(t.Context(), k, "", ""); got != known || err != nil {
			t.Errorf("%s: %q, %v", known, got, err)
		}
	}
	for _, damaged := range []string{"", "kv", "kvm\n", "tcg -device x"} {
		write(t, path, []byte(damaged))
		if got, err := c.accel(t.Context(), k, "", ""); !errors.Is(err, errNotStarted) {
			t.Errorf("%q is taken for %q (%v)", damaged, got, err)
		}
	}
}

func TestAccelerationIsTriedOncePerBoot(t *testing.T) {
	const works, fails = `echo '{"Exit":0}'`, "echo no KVM here >&2; exit 1"
	k := bareKernel(t)
	for _, try := range []struct{ first, then, want string }{{works, fails, "kvm"}, {fails, works, "tcg"}} {
		c := testCache(t, "")
		c.kvm = write(t, filepath.Join(c.dir, "kvm"), nil)
		old := write(t, filepath.Join(c.dir, "accel-of-an-earlier-boot"), []byte("kvm"))
		fakeQEMU(t, try.first)
		if got, err := c.accel(t.Context(), k, "", "/dev/null"); got != try.want || err != nil {
			t.Errorf("got %q, %v, want %s", got, err, try.want)
		}
		if _, err := os.Stat(old); err == nil {
			t.Error("what was known of an earlier boot is still there")
		}
		fakeQEMU(t, try.then)
		if got, err := c.accel(t.Context(), k, "", "/dev/null"); got != try.want || err != nil {
			t.Errorf("it was tried again: %q, %v", got, err)
		}
	}
}

// bareKernel returns a kernel that needs no modules to boot.
func bareKernel(t *testing.T) *Kernel {
	t.Helper()
	return testKernel(t, strings.Join(bootModules, ".ko ")+".ko", nil)
}

// fakeQEMU has a script stand in for QEMU.
func fakeQEMU(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "qemu-system-x86_64")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", fmt.Sprintf("%s:%s", dir, os.Getenv("PATH")))
}
