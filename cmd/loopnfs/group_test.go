package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/memgroup"
	"loopnfs/internal/nfs3"
)

// groupFiles is how many files there are: they take twice as much in the kernel as all
// that the server has.
const groupFiles = 100_000

// groupMemory is --memory of the server, and groupPeak what it has resident at most, in
// MiB.
const groupMemory, groupPeak = 16, groupMemory + 32

// groupSpare is what the limit leaves above what the server takes when it starts, bytes.
const groupSpare = 32 << 20

// A server whose control group has hardly more memory than it has locked serves clients
// that list and look up far more files than the kernel can keep there, and others
// meanwhile. Without the mechanism it is killed at once.
func TestServeInTightGroup(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	if raceDetector {
		t.Skip("the race detector's own memory would fill the group")
	}
	export := ext4Export(t)
	makeGroupFiles(t, filepath.Join(export, "many"))
	for _, x := range []struct {
		name  string
		flags []string
		dies  bool
	}{
		{name: "with", flags: nil},
		{name: "without", flags: []string{"--without", groupReclaim}, dies: true},
	} {
		t.Run(x.name, func(t *testing.T) {
			remount(t, export) // what was charged to others is not charged to the server
			s := serveInGroup(t, export, x.flags...)
			worst, err := s.load()
			t.Logf("the longest call of a bystander took %v; error: %v", worst, err)
			switch {
			case x.dies && err == nil:
				t.Log("it lives without the mechanism: now and then the kernel has the luck to shrink its caches in time")
			case x.dies:
			case err != nil:
				t.Errorf("%v\n%s", err, s.said)
			case worst > 2*time.Second:
				t.Errorf("a bystander waited %v", worst)
			}
			// The program of tests is larger than that of users.
			if peak := s.peak(); !x.dies && os.Getenv("LOOPNFS") != "" && (peak == 0 || peak > groupPeak) {
				t.Errorf("the server had %d MiB resident, want at most %d", peak, groupPeak)
			} else {
				t.Logf("the server had %d MiB resident", peak)
			}
		})
	}
}

// ext4Export returns a new file system of its own, mounted.
func ext4Export(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system and makes a control group")
	}
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("sh", "-c", `truncate -s 192M "$1" && mkfs.ext4 -q -F -N 120000 "$1"`, "sh", image).CombinedOutput(); err != nil {
		t.Skipf("cannot make a file system: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a file of ext4: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// remount drops the inodes that the kernel has of dir, and reads the device: its pages are
// charged to this process then, and nothing but inodes to the server.
func remount(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.Command("sh", "-c", `dev=$(findmnt -n -o SOURCE --mountpoint "$1") && exec 9<"$dev" && umount "$1" && mount "$dev" "$1" && cat "$dev" > /dev/null`, "sh", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("mount again: %v: %s", err, out)
	}
}

func makeGroupFiles(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for i := range groupFiles {
		fd, err := unix.Open(filepath.Join(dir, groupFile(i)), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o666)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
}

func groupFile(i int) string { return "file-" + strconv.Itoa(i) }

// groupServer is a server in a control group.
type groupServer struct {
	addr string
	said *said
	pid  int
}

// serveInGroup starts a server in a group with a limit that fits what it takes then.
func serveInGroup(t *testing.T, export string, flags ...string) *groupServer {
	t.Helper()
	path, err := exec.LookPath(cmp.Or(os.Getenv("LOOPNFS"), "loopnfs"))
	if err != nil {
		t.Fatal(err)
	}
	g := newTestGroup(t)
	g.write("limit", 1<<30) // it is watched if there is one at the start
	s := &groupServer{said: &said{}}
	argv := append([]string{"-c", `echo $$ > "$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs"), path, "serve",
		"--export", export + ":/e", "--state", t.TempDir(), "--squash", "none", "--memory", fmt.Sprintf("%dMiB", groupMemory), "--listen", "127.0.0.1:0"}, flags...)
	cmd := exec.Command("sh", argv...)
	cmd.Stderr, cmd.SysProcAttr = s.said, &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		g.remove()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not start: %s", s.said)
	}
	s.addr, s.pid = strings.Fields(line)[1], cmd.Process.Pid
	g.write("limit", g.read("usage")+groupSpare)
	return s
}

// peak is what the server and its keeper had resident at most, in MiB; 0 if they are gone.
func (s *groupServer) peak() (mib int) {
	for _, pid := range []int{s.pid, childOf(s.pid)} {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			kib := 0
			if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
				mib += kib >> 10
			}
		}
	}
	return mib
}

// testGroup is a control group with a limit.
type testGroup struct {
	t     *testing.T
	dir   string
	names map[string]string
}

func newTestGroup(t *testing.T) *testGroup {
	t.Helper()
	info, err := memgroup.Find(os.DirFS("/"), "self")
	if err != nil || info.Dir == "" {
		t.Skipf("there are no control groups for memory: %v", err)
	}
	g := &testGroup{t: t, names: map[string]string{"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes"}}
	top := info.Dirs[len(info.Dirs)-1]
	if info.Version == 2 {
		g.names = map[string]string{"limit": "memory.max", "usage": "memory.current"}
		_ = os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte("+memory"), 0)
	}
	if g.dir, err = os.MkdirTemp(top, "loopnfs-test-"); err != nil {
		t.Skipf("cannot make a control group: %v", err)
	}
	return g
}

func (g *testGroup) write(name string, n int64) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, g.names[name]), []byte(strconv.FormatInt(n, 10)), 0); err != nil {
		g.t.Fatal(err)
	}
}

func (g *testGroup) read(name string) int64 {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, g.names[name]))
	if err != nil {
		g.t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// remove waits for the last process.
func (g *testGroup) remove() {
	var err error
	for range 200 {
		if err = os.Remove(g.dir); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.t.Error(err)
}

// load lists all files over three connections, and then looks up over one each those of
// them that are there and some that are not; a bystander looks at one at a time. It returns how long the
// longest call of that one took.
func (s *groupServer) load() (worst time.Duration, err error) {
	var done atomic.Bool
	var bystander error
	var wg, by sync.WaitGroup
	by.Go(func() { worst, bystander = s.bystand(&done) })
	errs := make([]error, 3)
	for i := range errs {
		wg.Go(func() {
			errs[i] = s.client(func(c *rawnfs.Client, dir nfs3.FileHandle) error {
				switch i {
				case 0: // the same at first, so that names alone do not have the kernel reclaim
					return errors.Join(listGroup(c, dir), lookUpGroup(c, dir, "%s", nfs3.StatusOK))
				case 1:
					return errors.Join(listGroup(c, dir), lookUpGroup(c, dir, "no %s", nfs3.StatusNoEnt))
				}
				return listGroup(c, dir)
			})
		})
	}
	wg.Wait()
	done.Store(true)
	by.Wait()
	return worst, errors.Join(append(errs, bystander)...)
}

// client calls f with the directory of the files.
func (s *groupServer) client(f func(*rawnfs.Client, nfs3.FileHandle) error) error {
	c, err := rawnfs.Dial(s.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	root, err := c.Mount("/e")
	if err != nil {
		return err
	}
	res, err := c.Lookup(root, "many")
	if err == nil && res.Status != nfs3.StatusOK {
		err = fmt.Errorf("LOOKUP: %v", res.Status)
	}
	if err != nil {
		return err
	}
	return f(c, res.Handle)
}

func (s *groupServer) bystand(done *atomic.Bool) (worst time.Duration, err error) {
	err = s.client(func(c *rawnfs.Client, dir nfs3.FileHandle) error {
		for !done.Load() {
			began := time.Now()
			if _, err := c.GetAttr(dir); err != nil {
				return err
			}
			if _, err := c.Lookup(dir, groupFile(rand.IntN(groupFiles))); err != nil {
				return err
			}
			worst = max(worst, time.Since(began))
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	})
	return worst, err
}

func lookUpGroup(c *rawnfs.Client, dir nfs3.FileHandle, format string, want nfs3.Status) error {
	for i := range groupFiles / 4 {
		res, err := c.Lookup(dir, fmt.Sprintf(format, groupFile(i)))
		if err == nil && res.Status != want {
			err = fmt.Errorf("LOOKUP: %v", res.Status)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listGroup lists a directory with the attributes of its files.
func listGroup(c *rawnfs.Client, dir nfs3.FileHandle) error {
	n := 0
	args := nfs3.ReaddirplusArgs{Handle: dir, DirCount: 64 << 10, MaxCount: 64 << 10}
	for {
		var res nfs3.ReaddirplusResult
		d, err := c.Call(nfs3.ProcReaddirplus, &args, nil, &res)
		if err == nil && res.Status != nfs3.StatusOK {
			err = fmt.Errorf("READDIRPLUS: %v", res.Status)
		}
		if err != nil {
			return err
		}
		var e nfs3.EntryPlus
		for nfs3.NextEntryPlus(d, &e) {
			args.Cookie = e.Cookie
			n++
		}
		if eof, err := nfs3.ListEOF(d); err != nil || eof {
			if err == nil && n < groupFiles {
				err = fmt.Errorf("%d files were listed", n)
			}
			return err
		}
		args.Verf = res.Verf
	}
}
