package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// proc names a process for ever.
type proc struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

func procOf(pid int) proc { return proc{pid, startTime(pid)} }

func (p proc) alive() bool { return p.PID > 0 && startTime(p.PID) == p.Start && p.Start != 0 }

// awaitEnd waits until the process is gone; one that is stuck in a system call
// only for a while.
func (p proc) awaitEnd() {
	for end := time.Now().Add(5 * time.Second); p.alive() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

// Ledger says what a drill has on this machine; it is written before the thing
// is made, and removed when everything is gone.
type Ledger struct {
	path string

	Owner    proc   `json:"owner"`
	Dir      string `json:"dir"` // everything on disk, mount points included
	Children []proc `json:"children"`
}

const ledgerPattern = "drill-*.json"

// ledgerDir is where ledgers are; gone after a reboot, as is what they list.
func ledgerDir() string {
	if os.Geteuid() == 0 {
		return "/run/loopnfs"
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("loopnfs-%d", os.Getuid()))
}

// NewLedger makes the work directory of this process and records it.
func NewLedger(parent string) (*Ledger, error) {
	if err := os.MkdirAll(ledgerDir(), 0o700); err != nil {
		return nil, err
	}
	l := &Ledger{
		Owner: procOf(os.Getpid()),
		Dir:   filepath.Join(parent, fmt.Sprintf("loopnfs-drill-%d-%d", os.Getpid(), time.Now().UnixNano())),
		path:  filepath.Join(ledgerDir(), fmt.Sprintf("drill-%d.json", os.Getpid())),
	}
	if err := l.save(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		os.Remove(l.path)
		return nil, fmt.Errorf("cannot make a work directory: %w; choose another place with --dir", err)
	}
	return l, nil
}

func (l *Ledger) save() error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	tmp := l.path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, l.path)
}

// addChild records a child process.
func (l *Ledger) addChild(pid int) error {
	l.Children = append(l.Children, procOf(pid))
	return l.save()
}

// dropChildren forgets children that are gone.
func (l *Ledger) dropChildren() error {
	l.Children = nil
	return l.save()
}

// Remains counts what was cleaned up.
type Remains struct{ procs, mounts, dirs int }

func (r Remains) any() bool { return r != Remains{} }

func (r Remains) String() string {
	return fmt.Sprintf("%d processes, %d mounts, %d directories", r.procs, r.mounts, r.dirs)
}

// Clean ends and removes everything that l lists, and the ledger itself.
func (l *Ledger) Clean() (Remains, error) {
	var r Remains
	for _, p := range l.Children {
		if p.alive() && syscall.Kill(-p.PID, syscall.SIGKILL) == nil {
			r.procs++
			p.awaitEnd()
		}
	}
	n, err := unmountUnder(l.Dir)
	r.mounts = n
	if err != nil {
		return r, err
	}
	if _, err := os.Lstat(l.Dir); err == nil {
		r.dirs++
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		return r, err
	}
	return r, os.Remove(l.path)
}

// unmountUnder detaches every mount below dir. It never touches what is
// mounted: its server may be dead. An aborted FUSE connection lets go of
// everybody who waits for it.
func unmountUnder(dir string) (int, error) {
	if !strings.Contains(dir, "loopnfs-drill-") {
		return 0, fmt.Errorf("%s is not a work directory of a drill", dir)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return 0, err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		m := mounts[i]
		if strings.HasPrefix(m.FSType, "fuse") {
			abortFuse(m.Minor)
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return len(mounts) - 1 - i, fmt.Errorf("cannot unmount %s: %w", m.Mountpoint, err)
		}
	}
	return len(mounts), nil
}

// abortFuse fails every request of a FUSE connection, now and later.
func abortFuse(minor int) {
	_ = os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", minor), []byte("1"), 0o200)
}

// CleanLeftovers removes what drills that were killed have left behind and
// returns a sentence for each.
func CleanLeftovers() ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(ledgerDir(), ledgerPattern))
	if err != nil {
		return nil, err
	}
	var said []string
	for _, path := range paths {
		l, err := readLedger(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && l.Owner.alive() {
			continue
		}
		if err != nil {
			return said, fmt.Errorf("cannot read %s, the record of an earlier drill: %w; look at it and remove it", path, err)
		}
		r, err := l.Clean()
		if r.any() {
			said = append(said, fmt.Sprintf("cleaned up after drill %d, which was killed: %v", l.Owner.PID, r))
		}
		if err != nil {
			return said, err
		}
	}
	return said, nil
}

func readLedger(path string) (*Ledger, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l := &Ledger{path: path}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(l.Dir) || l.Dir != filepath.Clean(l.Dir) ||
		!strings.HasPrefix(filepath.Base(l.Dir), fmt.Sprintf("loopnfs-drill-%d-", l.Owner.PID)) {
		return nil, fmt.Errorf("%q is not a work directory of drill %d", l.Dir, l.Owner.PID)
	}
	return l, nil
}
