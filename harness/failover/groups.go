package failover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// groups are control groups of memory, one for each host; none where the host has
// version 2 or no right to make any.
type groups struct{ top string }

const memoryGroups = "/sys/fs/cgroup/memory"

func newGroups() *groups {
	if _, err := os.Stat(filepath.Join(memoryGroups, "memory.limit_in_bytes")); err != nil {
		return &groups{}
	}
	return &groups{filepath.Join(memoryGroups, fmt.Sprintf("loopnfs-failover-%d", os.Getpid()))}
}

// make returns the group of a host, a new one if need be; empty if there are none.
func (g *groups) make(name string) (string, error) {
	if g.top == "" {
		return "", nil
	}
	dir := g.of(name)
	err := os.MkdirAll(dir, 0o755)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrInvalid) {
		g.top = ""
		return "", nil
	}
	return dir, err
}

func (g *groups) of(name string) string { return filepath.Join(g.top, name) }

// remove removes all of them; their processes have just ended.
func (g *groups) remove() error {
	if g.top == "" {
		return nil
	}
	limit := time.Now().Add(5 * time.Second)
	for {
		subs, _ := filepath.Glob(filepath.Join(g.top, "*", "cgroup.procs"))
		for _, s := range subs {
			_ = os.Remove(filepath.Dir(s))
		}
		err := os.Remove(g.top)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("control group %s: %w", g.top, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
