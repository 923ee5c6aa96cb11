package hostguard

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
)

// stat is a line of /proc/PID/stat with flags.
func stat(name, flags string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte("7 (" + name + ") S 1 7 7 0 -1 " + flags + " 0 0 0 0 1 2\n")}
}

func text(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func tree() fstest.MapFS {
	return fstest.MapFS{
		"7/status":        text("Name:\tnfs ) d\nVmLck:\t   16 kB\nVmRSS:\t 2048 kB\nVmSwap:\t 4 kB\nThreads:\t3\n"),
		"7/oom_score_adj": text("-900\n"),
		"7/task/7/stat":   stat("nfs ) d", "1572928"), // 0x180040
		"7/task/8/stat":   stat("a", "524352"),        // PF_MEMALLOC_NOIO only
		"7/task/9/stat":   stat("b", "64"),
		"7/task/10/x":     text("ended: there is no stat"),
	}
}

func TestAudit(t *testing.T) {
	p, err := AuditFS(tree(), 7)
	want := Process{PID: 7, Name: "nfs ) d", Threads: 3, NoIO: 2, LocalThrottle: 1,
		LockedBytes: 16 << 10, ResidentBytes: 2 << 20, SwapBytes: 4 << 10, OOMScoreAdj: -900}
	if err != nil || p != want || p.Guarded() {
		t.Errorf("%+v, %v, want %+v", p, err, want)
	}
	all := tree()
	delete(all, "7/task/8/stat")
	delete(all, "7/task/9/stat")
	if p, err := AuditFS(all, 7); err != nil || !p.Guarded() {
		t.Errorf("all threads have both flags: %+v, %v", p, err)
	}
	thread := tree() // of the kernel: it has no memory of its own
	thread["7/status"] = text("Name:\tnfsd\n")
	if p, err := AuditFS(thread, 7); err != nil || p.ResidentBytes != 0 || p.Threads != 3 {
		t.Errorf("a kernel thread: %+v, %v", p, err)
	}
}

func TestAuditOfDamagedFiles(t *testing.T) {
	for name, f := range map[string]*fstest.MapFile{
		"7/status":        text("VmLck: many kB\n"),
		"7/oom_score_adj": text(""),
		"7/task/8/stat":   text("7 (x) S 1"),
		"7/task/9/stat":   text(""),
		"7/task/7/stat":   stat("x", "-1"),
	} {
		damaged := tree()
		damaged[name] = f
		if p, err := AuditFS(damaged, 7); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is damaged: %+v, %v", name, p, err)
		}
	}
	if _, err := AuditFS(fstest.MapFS{}, 7); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such process: %v", err)
	}
}

// dying is a /proc whose process ends once one of its files is open.
type dying struct {
	fstest.MapFS
	name string
}

type deadFile struct{ fs.File }

func (deadFile) Read([]byte) (int, error) { return 0, syscall.ESRCH }

func (d dying) Open(name string) (fs.File, error) {
	f, err := d.MapFS.Open(name)
	if err == nil && strings.HasSuffix(name, d.name) {
		f = deadFile{f}
	}
	return f, err
}

func TestAuditOfAProcessThatEnds(t *testing.T) {
	for _, name := range []string{"status", "oom_score_adj", "stat"} {
		if _, err := AuditFS(dying{tree(), name}, 7); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Audit(cmd.Process.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that has ended: %v", err)
	}
}

func TestAuditOfThisProcess(t *testing.T) {
	page := make([]byte, 1<<20)
	if err := unix.Mlock(page); err != nil {
		t.Skip("cannot lock memory: ", err)
	}
	defer unix.Munlock(page)
	p, err := Audit(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p.Threads < 2 || p.LockedBytes < 1<<20 || p.ResidentBytes < 1<<20 || p.OOMScoreAdj < -1000 || p.OOMScoreAdj > 1000 {
		t.Errorf("%+v", p)
	}
	runtime.KeepAlive(page)
}
