package crash

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"loopnfs/harness/rawnfs"
	"loopnfs/harness/testserver"
	"loopnfs/internal/nfs3"
)

var (
	points = flag.Int("crash.points", 200, "how many crashes to look at, with each way to write")
	ops    = flag.Int("crash.ops", 150, "how many steps each of the workers makes")
	seed   = flag.Uint64("crash.seed", 0, "of the load and of the crashes; 0 for a new one")
)

func TestMain(m *testing.M) {
	testserver.Main()
	os.Exit(m.Run())
}

// worker loads the server, and knows what it was promised.
type worker interface {
	step(*rand.Rand) error
	check(c *rawnfs.Client, crash int) error
}

// load makes promises, and returns who knows of them and the record of the disk from
// the first of them on.
func load(t *testing.T, d *disk, r *rand.Rand, buffered bool) ([]worker, int) {
	dev := d.attach(t)
	command(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
	dir := t.TempDir()
	command(t, "mount", dev, dir)
	t.Cleanup(func() { command(t, "umount", dir) })
	command(t, "mkdir", filepath.Join(dir, "export"))
	command(t, "sync", "-f", dir)
	s, err := testserver.Start(testserver.Config{Dir: dir, Buffered: buffered})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	workers, err := newWorkers(d, s.Addr)
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
		c, err := rawnfs.Dial(addr)
		if err == nil && i == 0 {
			root, err = c.Mount("/e")
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
	t.Run("direct-io", func(t *testing.T) { testCrash(t, false) })
	t.Run("buffered", func(t *testing.T) { testCrash(t, true) })
}

func testCrash(t *testing.T, buffered bool) {
	r := rand.New(rand.NewPCG(*seed, 0))
	d := &disk{data: make([]byte, diskSize)}
	workers, start := load(t, d, r, buffered)
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
	s, err := testserver.Start(testserver.Config{Dir: dir})
	if err != nil {
		return err
	}
	c, err := rawnfs.Dial(s.Addr)
	if err != nil {
		return errors.Join(err, s.Stop())
	}
	defer c.Close()
	for i, w := range workers {
		if err := w.check(c, crash); err != nil {
			s.Kill()
			return fmt.Errorf("worker %d: %w", i, err)
		}
	}
	return s.Stop()
}
