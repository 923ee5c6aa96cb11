package linear

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"

	"loopnfs/harness/testserver"
	"loopnfs/internal/nfs3"
)

var (
	rounds     = flag.Int("linear.rounds", 3, "how many histories each group makes")
	ops        = flag.Int("linear.ops", 200, "how many calls each client makes in a history")
	checkLimit = flag.Duration("linear.check", time.Minute, "how long the check of a history may take")
	seed       = flag.Uint64("linear.seed", 0, "of what clients do; 0 for a new one")
)

const (
	groups  = 4
	clients = 4 // of a group
)

func TestMain(m *testing.M) {
	testserver.Main()
	os.Exit(m.Run())
}

// run is one server, or one after the other, and what its clients do.
type run struct {
	cfg     testserver.Config
	addr    string
	server  *testserver.Server
	r       *rand.Rand
	clients int // so far

	resend, cut, repeat bool // of clients

	mu    sync.Mutex
	kills int
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("serving files of others needs root: run make test")
	}
}

// tmpfs mounts one, where nothing waits for a disk.
func tmpfs(t *testing.T) string {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("linear", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newRun(t *testing.T, dir string) *run {
	needRoot(t)
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-linear.seed %d", *seed)
	l, err := testserver.Listen()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "export"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := &run{cfg: testserver.Config{Dir: dir, Listener: l}, addr: l.Addr().String(), r: rand.New(rand.NewPCG(*seed, 0))}
	if r.server, err = testserver.Start(r.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.server.Stop(); err != nil {
			t.Error(err)
		}
		l.Close()
	})
	return r
}

// Concurrent changes of the name space are linearizable.
func TestLinearizable(t *testing.T) {
	t.Run("disk", func(t *testing.T) { newRun(t, t.TempDir()).histories(t) })
	t.Run("tmpfs", func(t *testing.T) { newRun(t, tmpfs(t)).histories(t) })
}

// They are if connections end at any time and calls are sent again: none is carried out
// twice.
func TestConnectionsCut(t *testing.T) {
	r := newRun(t, t.TempDir())
	r.resend, r.cut = true, true
	r.histories(t)
}

// They are if the server is killed and started again at any time.
func TestServerKilled(t *testing.T) {
	r := newRun(t, t.TempDir())
	r.resend, r.repeat = true, true
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		r.killNowAndThen(t, stop)
	}()
	defer func() {
		close(stop)
		<-stopped
		t.Logf("the server was killed %d times", r.kills)
	}()
	r.histories(t)
}

func (r *run) killNowAndThen(t *testing.T, stop <-chan struct{}) {
	x := rand.New(rand.NewPCG(*seed, 1))
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(x.Int64N(int64(200 * time.Millisecond)))):
		}
		r.server.Kill()
		r.mu.Lock()
		r.kills++
		r.mu.Unlock()
		server, err := testserver.Start(r.cfg)
		if err != nil {
			t.Error(err)
			return
		}
		r.server = server
	}
}

func (r *run) histories(t *testing.T) {
	for round := range *rounds {
		var all []*group
		var wg sync.WaitGroup
		for i := range groups {
			g, err := r.newGroup(fmt.Sprintf("%d-%d", round, i), mixes[i%len(mixes)])
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, g)
			r.start(t, g, &wg)
		}
		wg.Wait()
		for _, g := range all {
			if !t.Failed() {
				r.check(t, g)
			}
		}
	}
}

// newGroup makes the directories of a group, whose clients do m.
func (r *run) newGroup(name string, m mix) (*group, error) {
	var dirs [roots]nfs3.FileHandle
	for i := range dirs {
		h, err := mkdir(r.addr, "/e", fmt.Sprint(name, "-", i))
		if err != nil {
			return nil, err
		}
		dirs[i] = h
	}
	return newGroup(m, dirs), nil
}

// start has the clients of a group make their calls.
func (r *run) start(t *testing.T, g *group, wg *sync.WaitGroup) {
	for range clients {
		r.clients++
		c := newClient(g, r.clients, r.addr, rand.New(rand.NewPCG(r.r.Uint64(), 2)))
		c.resend, c.cut, c.repeat = r.resend, r.cut, r.repeat
		wg.Go(func() {
			defer c.close()
			for range *ops {
				if err := c.step(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
}

// check has porcupine look at the history of a group.
func (r *run) check(t *testing.T, g *group) {
	h := history(g.calls)
	began := time.Now()
	switch porcupine.CheckOperationsTimeout(model, h, *checkLimit) {
	case porcupine.Ok:
		t.Logf("%d calls, checked in %v", len(g.calls), time.Since(began).Round(time.Millisecond))
	case porcupine.Unknown:
		t.Errorf("the check took longer than %v: take fewer calls (-linear.ops) or more time (-linear.check)", *checkLimit)
	default:
		_, info := porcupine.CheckOperationsVerbose(model, h, *checkLimit)
		t.Errorf("not linearizable; see %s\n%s", draw(t, info), excerpt(h, info))
	}
}

// draw writes porcupine's picture of a history and returns where.
func draw(t *testing.T, info porcupine.LinearizationInfo) string {
	dir := os.TempDir()
	if f := flag.Lookup("test.artifacts"); f != nil && f.Value.String() == "true" {
		dir = t.ArtifactDir() // goes with the test otherwise
	}
	f, err := os.CreateTemp(dir, "linear-*.html")
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if err := porcupine.Visualize(model, info, f); err != nil {
		return err.Error()
	}
	return f.Name()
}
