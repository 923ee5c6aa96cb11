package fusefs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// childDrops is the command of a DoorConfig.Dropper.
func childDrops(args []string) error {
	id, err := strconv.Atoi(args[1])
	return check(err, ServeDrops(args[0], id, os.Stdin, os.Stdout))
}

// childHang never answers.
func childHang([]string) error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// testDropper is a DoorConfig.Dropper.
func testDropper(mountpoint string, id int) (*exec.Cmd, error) {
	return childCommand("drops", mountpoint, strconv.Itoa(id)), nil
}

// Ways to have the kernel drop nodes.
var pruneWays = map[string]func(*DoorConfig){
	"notify": func(*DoorConfig) {},
	"helper": func(c *DoorConfig) { c.noPruneMsg, c.Dropper = true, testDropper },
}

// eachPruneWay mounts with room for limit nodes, by each way there is.
func eachPruneWay(t *testing.T, limit int, test func(t *testing.T, m *mounted)) {
	for name, set := range pruneWays {
		t.Run(name, func(t *testing.T) {
			m := mountTest(t, func(_ *faultFS, c *DoorConfig) {
				c.MaxNodes = limit
				set(c)
			})
			if name == "notify" && m.door.conn.minor < minPruneMinor {
				t.Skip("this kernel has no NOTIFY_PRUNE")
			}
			test(t, m)
		})
	}
}

// childTree makes so many files, a hundred in a directory.
func childTree(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for i := range n {
		dir := filepath.Join(args[0], fmt.Sprint("d", i/100))
		if i%100 == 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), []byte(fmt.Sprint(i)), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// childWalk looks at all files of such a tree.
func childWalk(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for i := range n {
		if _, err := os.Stat(filepath.Join(args[0], fmt.Sprint("d", i/100), fmt.Sprint("f", i))); err != nil {
			return err
		}
	}
	return nil
}

// fewNodes waits until there are at most n. The kernel keeps some for a while that others
// look at.
func (m *mounted) fewNodes(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); m.door.fs.nodes.len() > n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d nodes, want at most %d", m.door.fs.nodes.len(), n)
		}
	}
}

// The kernel would keep a file of which it has heard for as long as it has memory.
func TestDoorPrunes(t *testing.T) {
	const limit, files = 500, 5000
	eachPruneWay(t, limit, func(t *testing.T, m *mounted) {
		inChild(t, "tree", m.dir, fmt.Sprint(files))
		for range 3 {
			inChild(t, "walk", m.dir, fmt.Sprint(files))
			m.fewNodes(t, limit+limit/4)
		}
		s := m.FS.(*Store)
		if n := len(s.nodes.all()); n > DefaultMaxInodes {
			t.Errorf("%d inodes in memory", n)
		}
	})
}

// What is in use stays as it is while everything else goes.
func TestDoorPruneLeavesWhatIsUsed(t *testing.T) {
	const limit, files = 200, 2000
	eachPruneWay(t, limit, func(t *testing.T, m *mounted) {
		inChild(t, "tree", m.dir, fmt.Sprint(files))
		user := childCommand("use", m.path("d3"))
		in, err := user.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := user.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := user.Start(); err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewScanner(out)
		ask := func() {
			t.Helper()
			fmt.Fprintln(in)
			if !answers.Scan() || answers.Text() != "good" {
				t.Fatalf("the user said %q", answers.Text())
			}
		}
		ask()
		for range 5 {
			inChild(t, "walk", m.dir, fmt.Sprint(files))
			m.fewNodes(t, limit+limit/4)
			ask()
		}
		in.Close()
		if err := user.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// childUse is in a directory, has a file open, and one in its memory, and looks whether
// all that goes on to work.
func childUse(args []string) error {
	if err := os.Mkdir(filepath.Join(args[0], "sub"), 0o755); err != nil {
		return err
	}
	dir := filepath.Join(args[0], "sub")
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	f, err := os.Create("open")
	if err != nil {
		return err
	}
	if err := f.Truncate(8192); err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	n := 0
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); n++ {
		buf := make([]byte, 4096)
		k, err := unix.Getcwd(buf)
		if err != nil || string(buf[:k-1]) != dir {
			return fmt.Errorf("getcwd: %q, %v", buf[:max(k, 1)-1], err)
		}
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err != nil || link != dir+"/open" {
			return fmt.Errorf("the open file is %q, %v", link, err)
		}
		want := fmt.Sprint("round ", n)
		if err := os.WriteFile("relative", []byte(want), 0o600); err != nil {
			return err
		}
		if b, err := os.ReadFile("../sub/relative"); err != nil || string(b) != want {
			return fmt.Errorf("read %q, %v", b, err)
		}
		if n > 0 && (mem[5000] != byte(n-1) || mem[0] != byte('a'+n-1)) {
			return errors.New("the file in memory is not what was written")
		}
		mem[5000] = byte(n) // a dirty page
		if _, err := f.WriteAt([]byte{byte('a' + n)}, 0); err != nil {
			return err
		}
		fmt.Println("good")
	}
	if err := unix.Munmap(mem); err != nil {
		return err
	}
	b, err := os.ReadFile("open")
	if err == nil && (b[5000] != byte(n-1) || b[0] != byte('a'+n-1)) {
		err = errors.New("what was written is not in the file")
	}
	return errors.Join(err, f.Close())
}

// More nodes in use than there should be are no reason to stop anybody, nor to ask the
// kernel all the time.
func TestDoorPruneInVain(t *testing.T) {
	const limit, files = 100, 1000
	eachPruneWay(t, limit, func(t *testing.T, m *mounted) {
		inChild(t, "tree", m.dir, fmt.Sprint(files))
		user := childCommand("hold-all", m.dir, fmt.Sprint(files))
		in, err := user.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := user.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := user.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "good\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if n := m.door.fs.nodes.len(); n < files {
			t.Errorf("%d nodes while %d files are open", n, files)
		}
		in.Close()
		if err := user.Wait(); err != nil {
			t.Error(err)
		}
		m.fewNodes(t, limit+limit/4)
	})
}

func childHoldAll(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for i := range n {
		if _, err := unix.Open(filepath.Join(args[0], fmt.Sprint("d", i/100), fmt.Sprint("f", i)), unix.O_RDONLY, 0); err != nil {
			return err
		}
	}
	fmt.Println("good")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A helper that does not answer, or cannot be started, or is killed, holds nobody up.
func TestDoorHelperFails(t *testing.T) {
	for name, dropper := range map[string]func(string, int) (*exec.Cmd, error){
		"nobody": nil,
		"refused": func(string, int) (*exec.Cmd, error) {
			return nil, errors.New("not today")
		},
		"missing": func(string, int) (*exec.Cmd, error) { return exec.Command("/nothing/here"), nil },
		"ends":    func(string, int) (*exec.Cmd, error) { return exec.Command("/proc/self/exe", "-test.run=^$"), nil },
		"hangs":   func(string, int) (*exec.Cmd, error) { return childCommand("hang"), nil },
		"another mount": func(mp string, id int) (*exec.Cmd, error) {
			return testDropper(mp, id+1000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log lockedBuffer
			m := mountTest(t, func(_ *faultFS, c *DoorConfig) {
				c.MaxNodes, c.noPruneMsg, c.Dropper = 100, true, dropper
				c.Logger = slog.New(slog.NewTextHandler(&log, nil))
			})
			inChild(t, "tree", m.dir, "1000")
			inChild(t, "walk", m.dir, "1000")
			if n := m.door.fs.nodes.len(); n < 1000 {
				t.Errorf("%d nodes", n)
			}
			if n := strings.Count(log.String(), "cannot be made to forget"); name == "nobody" && n != 1 {
				t.Errorf("%d warnings:\n%s", n, log.String())
			}
		})
	}
}

// A store that is full refuses, instead of having its callers wait for what may never come.
func TestDoorFullStore(t *testing.T) {
	m := mountTest(t, func(f *faultFS, c *DoorConfig) {
		f.FS.(*Store).nodes.limit = 1
		c.noPruneMsg = true
	})
	inChild(t, "tree", m.dir, fmt.Sprint(referencedShare-3)) // and the root, and two directories
	inChild(t, "errno", "mkdir", m.path("more"), fmt.Sprint(int(unix.ENOMEM)))
}

// lockedBuffer is a buffer that several write to.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestOldestNodes(t *testing.T) {
	var n nodeTable
	n.init(3)
	for id := range 10 {
		n.add(100+vfs.NodeID(id), 1, 1)
	}
	if len(n.full) != 1 {
		t.Error("nobody was told that it is full")
	}
	if ids := n.oldest(20); len(ids) != 10 {
		t.Errorf("%d nodes of 10", len(ids))
	}
	n.add(103, 1, 1)
	n.add(200, 1, 1)
	ids := n.oldest(9)
	if len(ids) != 9 || slices.Contains(ids, 103) || slices.Contains(ids, 200) {
		t.Errorf("%v: those that were looked up last are to stay", ids)
	}
	if ids = n.oldest(11); len(ids) != 11 {
		t.Errorf("%d nodes of 11", len(ids))
	}
}
