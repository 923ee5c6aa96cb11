package failover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// groups are control groups of memory, one for each host; none where the host has
// version 2 or no right to make any.
type groups struct{ top string }

const (
	memoryGroups = "/sys/fs/cgroup/memory"
	groupPrefix  = "loopnfs-failover-" // before the number of the process
)

func newGroups() *groups {
	if _, err := os.Stat(filepath.Join(memoryGroups, "memory.limit_in_bytes")); err != nil {
		return &groups{}
	}
	return &groups{filepath.Join(memoryGroups, groupPrefix+fmt.Sprint(os.Getpid()))}
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

// apart moves the processes of a host whose program has that name to a group of their own,
// which has no limit.
func (g *groups) apart(name, program string) error {
	if g.top == "" {
		return nil
	}
	own, err := g.make(name + "-" + program)
	if err != nil {
		return err
	}
	procs, err := os.ReadFile(filepath.Join(g.of(name), "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(procs)) {
		comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil || strings.TrimSpace(string(comm)) != program {
			continue // or it has ended
		}
		if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte(pid), 0); err != nil {
			return err
		}
	}
	return nil
}

// limit has the host use no more than what it uses and spare, until release.
func (g *groups) limit(name string, spare int64) (release func() error, err error) {
	var used int64
	b, err := os.ReadFile(filepath.Join(g.of(name), "memory.usage_in_bytes"))
	if err == nil {
		_, err = fmt.Sscan(string(b), &used)
	}
	file := filepath.Join(g.of(name), "memory.limit_in_bytes")
	if err == nil {
		err = os.WriteFile(file, fmt.Appendln(nil, used+spare), 0)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot limit the memory of %s: %w", name, err)
	}
	return func() error { return os.WriteFile(file, []byte("-1\n"), 0) }, nil
}

// find returns the processes of a host, by their numbers on this machine, whose command
// line begins with words.
func (g *groups) find(name string, words []string) (pids []int) {
	procs, err := os.ReadFile(filepath.Join(g.of(name), "cgroup.procs"))
	if err != nil {
		return nil
	}
	want := strings.Join(words, "\x00") + "\x00"
	for text := range strings.FieldsSeq(string(procs)) {
		cmdline, err := os.ReadFile(filepath.Join("/proc", text, "cmdline"))
		if pid, _ := strconv.Atoi(text); err == nil && strings.HasPrefix(string(cmdline), want) {
			pids = append(pids, pid)
		}
	}
	return pids
}

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
