package fusefs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// The documented deadlock nofs-recursion: whoever holds a directory's lock
// allocates a page for its listing, and reclaim wants that lock to free one. The
// process that shows it cannot be saved, so it is a child.

const recursionEnv = "STORE_RECURSION_CHILD"

func TestRecursionChild(t *testing.T) {
	how := os.Getenv(recursionEnv)
	if how == "" {
		t.Skip("runs as a child of TestNoFSRecursion")
	}
	op, scope, _ := strings.Cut(how, " ")
	policy := alloc.DefaultPolicy()
	if scope == "off" {
		policy.Mask = alloc.Unmasked
	}
	f := newFixture(t, options{bytes: 4 << 20, policy: policy, lenient: true})
	go watch(f)
	pressure(f, op)
	fmt.Println("FINISHED")
}

// watch ends the process when tasks wait for each other and do not move.
func watch(f *fixture) {
	var last *waitfor.Cycle
	for range time.Tick(200 * time.Millisecond) {
		c := f.mem.graph.FindCycle()
		if c != nil && c.Same(last) {
			fmt.Println("DEADLOCK")
			for _, e := range c.Edges {
				fmt.Println(e)
			}
			os.RemoveAll(f.dir)
			os.RemoveAll(filepath.Dir(f.state)) // of t.TempDir
			os.Exit(3)
		}
		last = c
	}
}

// pressure uses a directory while another task uses up all memory and gives it
// back only when nobody waits for it.
func pressure(f *fixture, what string) {
	d := f.mkdir(vfs.RootID, "d", 0o755)
	for i := range 300 {
		f.create(d, fmt.Sprint("some file ", i), 0)
	}
	f.list(d, 0)
	var stop atomic.Bool
	done := make(chan bool)
	go hog(f.mem, &stop, done)
	task := f.mem.graph.NewTask("server")
	op := &vfs.Op{Scope: gfp.For(task)}
	for i := range 300 {
		task.Begin(what)
		if what == "CREATE" {
			e, _, err := f.Create(op, d, fmt.Sprint("another file ", i), vfs.Guarded, mode(0), vfs.Verifier{})
			f.ok(err)
			f.Forget(e.Node, 1)
			_, err = f.Remove(op, d, fmt.Sprint("another file ", i))
			f.ok(err)
		} else {
			// Begin anew each time: the listing has to be read.
			f.ok(os.WriteFile(fmt.Sprintf("%s/d/new%d", f.dir, i%2), nil, 0o600))
			_ = os.Remove(fmt.Sprintf("%s/d/new%d", f.dir, (i+1)%2))
			_, _, err := f.ReadDir(op, d, 0, vfs.Verifier{}, &names{})
			f.ok(err)
		}
		task.End()
	}
	stop.Store(true)
	<-done
}

// hog takes all free pages down to the reserve, and gives some back a moment
// after others began to wait.
func hog(m *memory, stop *atomic.Bool, done chan bool) {
	var fs []*alloc.Folio
	defer close(done)
	defer func() { m.arena.PutAll(fs) }()
	for !stop.Load() {
		if f, err := m.arena.Alloc(gfp.For(nil), gfp.NoWait); err == nil {
			fs = append(fs, f)
			continue
		}
		time.Sleep(time.Millisecond)
		if m.arena.Stats().Waiting > 0 && len(fs) > 8 {
			m.arena.PutAll(fs[len(fs)-8:])
			fs = fs[:len(fs)-8]
			for m.arena.Stats().Waiting > 0 && !stop.Load() {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
}

func TestNoFSRecursion(t *testing.T) {
	needRoot(t)
	for _, op := range []string{"CREATE", "READDIR"} {
		t.Run(op+" with scope on", func(t *testing.T) {
			if out := runRecursion(op + " on"); !strings.Contains(out, "FINISHED") {
				t.Error(out)
			}
		})
		// kswapd may free the listing between two calls, and then there is
		// nothing to recurse into: it takes some luck.
		t.Run(op+" with scope off", func(t *testing.T) {
			var out string
			for range 10 {
				out = runRecursion(op + " off")
				if isRecursion(out, op) {
					return
				}
			}
			t.Errorf("never deadlocked as documented:\n%s", out)
		})
	}
}

// runRecursion runs the child and returns what it said.
func runRecursion(how string) string {
	cmd := exec.Command(os.Args[0], "-test.run=^TestRecursionChild$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), recursionEnv+"="+how)
	out, _ := cmd.CombinedOutput()
	return string(out)
}

func isRecursion(out, op string) bool {
	return strings.Contains(out, "DEADLOCK") &&
		strings.Contains(out, "server: "+op+" waits for a free page") &&
		strings.Contains(out, "direct reclaim waits for the lock of directory inode ")
}
