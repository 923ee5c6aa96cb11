package crash

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/stack"
	"loopnfs/nfsserver"
)

var (
	points = flag.Int("crash.points", 200, "how many crashes to look at, with each way to write")
	ops    = flag.Int("crash.ops", 150, "how many steps each of the workers makes")
	seed   = flag.Uint64("crash.seed", 0, "of the load and of the crashes; 0 for a new one")
)

// A process with serveEnv serves that directory. With bufferedEnv, it writes through the
// kernel's page cache.
const (
	serveEnv    = "LOOPNFS_CRASH_SERVE"
	bufferedEnv = "LOOPNFS_CRASH_BUFFERED"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		if err := serveUntilEOF(dir, os.Getenv(bufferedEnv) != ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serveUntilEOF serves what is in dir, with its state there, too, until standard input
// ends.
func serveUntilEOF(dir string, buffered bool) error {
	mem, err := stack.NewMemory(stack.DefaultMemory(8 << 20))
	if err != nil {
		return err
	}
	mem.Start()
	s, err := stack.StartServer(mem, stack.ServerConfig{
		Exports:  []stack.ExportConfig{{Dir: filepath.Join(dir, "export"), Name: "/e", Squash: nfsserver.SquashNone}},
		StateDir: filepath.Join(dir, "state"), Listen: "127.0.0.1:0", Buffered: buffered,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return err
	}
	fmt.Println(s.Addr())
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, s.Stop(context.Background()))
}

// server is serveUntilEOF in another process.
type server struct {
	cmd  *exec.Cmd
	in   io.Closer
	addr string
}

func startServer(dir string, env ...string) (*server, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), serveEnv+"="+dir), env...)
	cmd.Stderr = os.Stderr
	in, inErr := cmd.StdinPipe() // ends with this process
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, in: in}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.kill()
		return nil, fmt.Errorf("the server did not start: %w", err)
	}
	s.addr = strings.TrimSpace(addr)
	return s, nil
}

func (s *server) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

func (s *server) stop() error {
	s.in.Close()
	return s.cmd.Wait()
}

// worker loads the server, and knows what it was promised.
type worker interface {
	step(*rand.Rand) error
	check(c *client, crash int) error
}

// load makes promises, and returns who knows of them and the record of the disk from
// the first of them on.
func load(t *testing.T, d *disk, r *rand.Rand, env ...string) ([]worker, int) {
	dev := d.attach(t)
	command(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
	dir := t.TempDir()
	command(t, "mount", dev, dir)
	t.Cleanup(func() { command(t, "umount", dir) })
	command(t, "mkdir", filepath.Join(dir, "export"))
	command(t, "sync", "-f", dir)
	s, err := startServer(dir, env...)
	if err != nil {
		t.Fatal(err)
	}
	defer s.kill()
	workers, err := newWorkers(d, s.addr)
	if err != nil {
		t.Fatal(err)
	}
	start := d.now()
	var wg sync.WaitGroup
	for _, w := range workers {
		r := rand.New(rand.NewPCG(r.Uint64(), 1))
		wg.Go(func() {
			for range *ops {
				if err := w.step(r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return workers, start
}

func newWorkers(d *disk, addr string) ([]worker, error) {
	var workers []worker
	var root nfs3.FileHandle
	for i := range 6 {
		c, err := dial(addr)
		if err == nil && i == 0 {
			root, err = c.mount("/e")
		}
		var w worker
		if err == nil && i%2 == 0 {
			w, err = newDataWorker(d, c, root, fmt.Sprint("data-", i))
		} else if err == nil {
			w, err = newNamesWorker(d, c, root, fmt.Sprint("names-", i))
		}
		if err != nil {
			return nil, err
		}
		workers = append(workers, w)
	}
	return workers, nil
}

// What was promised is there after a loss of power, whenever that comes.
func TestCrash(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root: run make test")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("it needs loop devices: %v; modprobe loop", err)
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-crash.seed %d", *seed)
	t.Run("direct-io", func(t *testing.T) { testCrash(t) })
	t.Run("buffered", func(t *testing.T) { testCrash(t, bufferedEnv+"=1") })
}

func testCrash(t *testing.T, env ...string) {
	r := rand.New(rand.NewPCG(*seed, 0))
	d := &disk{data: make([]byte, diskSize)}
	workers, start := load(t, d, r, env...)
	if t.Failed() {
		return
	}
	record := d.record[:d.now()]
	crashes := make([]int, *points)
	for i := range crashes {
		crashes[i] = start + r.IntN(len(record)-start+1)
	}
	slices.Sort(crashes)
	w := &wreck{record: record, data: make([]byte, diskSize)}
	for i, crash := range crashes {
		if err := look(t, w, crash, r, workers); err != nil {
			t.Fatalf("crash %d of %d, after %d of %d changes: %v", i+1, len(crashes), crash, len(record), err)
		}
	}
	t.Logf("%d crashes within %d writes and flushes", len(crashes), len(record)-start)
}

// look mounts the disk as a crash has left it, and has the workers look at it.
func look(t *testing.T, w *wreck, crash int, r *rand.Rand, workers []worker) error {
	fd, err := unix.MemfdCreate("crash", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "crash")
	defer f.Close()
	if err := w.cut(crash, r, f); err != nil {
		return err
	}
	dev := command(t, "losetup", "--find", "--show", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd))
	defer command(t, "losetup", "--detach", dev)
	dir := t.TempDir()
	command(t, "mount", dev, dir)
	err = errors.Join(lookAt(dir, crash, workers), unix.Unmount(dir, 0))
	if out, fsck := exec.Command("e2fsck", "-f", "-n", dev).CombinedOutput(); fsck != nil {
		err = errors.Join(err, fmt.Errorf("e2fsck: %w\n%s", fsck, out))
	}
	return err
}

func lookAt(dir string, crash int, workers []worker) error {
	s, err := startServer(dir)
	if err != nil {
		return err
	}
	c, err := dial(s.addr)
	if err != nil {
		return errors.Join(err, s.stop())
	}
	defer c.nc.Close()
	for i, w := range workers {
		if err := w.check(c, crash); err != nil {
			s.kill()
			return fmt.Errorf("worker %d: %w", i, err)
		}
	}
	return s.stop()
}
