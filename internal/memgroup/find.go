package memgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Unlimited is the limit of a group that has none.
const Unlimited = math.MaxInt64

// errHidden is returned where the mounted control groups do not show that of the process.
var errHidden = errors.New("its control group is not among those that are mounted")

// files are the names that one version of control groups has for the same things.
type files struct {
	limits  []string // the least of them counts; those that are not there do not
	usage   string
	reclaim string
	// In memory.stat: pages of files on the lists for reclaim, and those of them that
	// cannot be dropped at once. Those below the group are counted.
	cached, unclean [2]string
}

// versions: to be above memory.high is to be held up at the end of each system call, so
// it is a limit as well.
var versions = map[int]files{
	1: {[]string{"memory.limit_in_bytes"}, "memory.usage_in_bytes", "memory.force_empty",
		[2]string{"total_inactive_file", "total_active_file"}, [2]string{"total_dirty", "total_writeback"}},
	2: {[]string{"memory.max", "memory.high"}, "memory.current", "memory.reclaim",
		[2]string{"inactive_file", "active_file"}, [2]string{"file_dirty", "file_writeback"}},
}

// Info is what can be seen of the memory control group of a process.
type Info struct {
	Version int `json:"version"`
	// Dir is where it is mounted; Dirs are it and those above that can be seen.
	Dir  string   `json:"dir"`
	Dirs []string `json:"-"`
	// Limit is the least of theirs, in bytes, or Unlimited.
	Limit int64 `json:"limit_bytes"`
}

// ReclaimFile returns the file that has the group reclaimed when it is written to. It
// need not be there: Linux has memory.reclaim since 5.19.
func (i *Info) ReclaimFile() string { return path.Join(i.Dir, versions[i.Version].reclaim) }

// Find returns the group of a process, "self" or a number. root is "/" as the caller sees
// it. A host without control groups for memory has an Info without a Dir.
func Find(root fs.FS, pid string) (Info, error) {
	info, err := find(root, pid)
	if err != nil {
		return info, fmt.Errorf("cannot tell the memory limit of process %s: %w", pid, err)
	}
	return info, nil
}

func find(root fs.FS, pid string) (info Info, err error) {
	info.Limit = Unlimited
	groups, err := fs.ReadFile(root, "proc/"+pid+"/cgroup")
	if err != nil {
		return info, err
	}
	version, group, ok := parseCgroup(groups)
	if !ok {
		return info, nil
	}
	mounts, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return info, err
	}
	m, ok := findMount(mounts, version, group)
	if !ok {
		return info, errHidden
	}
	info.Version, info.Dir = version, m.dir(group)
	if _, err := fs.Stat(root, strings.TrimPrefix(info.Dir, "/")); err != nil {
		return info, fmt.Errorf("%w: %w", errHidden, err)
	}
	for dir := info.Dir; ; dir = path.Dir(dir) {
		info.Dirs = append(info.Dirs, dir)
		info.Limit = min(info.Limit, limitOf(root, dir, version))
		if dir == m.point || dir == "/" {
			return info, nil
		}
	}
}

// limitOf returns the limit of one group; the topmost may have no such file.
func limitOf(root fs.FS, dir string, version int) int64 {
	least := int64(Unlimited)
	for _, name := range versions[version].limits {
		b, err := fs.ReadFile(root, strings.TrimPrefix(path.Join(dir, name), "/"))
		if n, ok := parseBytes(b); err == nil && ok {
			least = min(least, n)
		}
	}
	return least
}

// parseCgroup returns what /proc/PID/cgroup tells of the group that counts memory: a line
// of version 1 that names the controller, or that of version 2.
func parseCgroup(text []byte) (version int, group string, ok bool) {
	for line := range bytes.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		switch {
		case slices.Contains(strings.Split(f[1], ","), "memory"):
			return 1, f[2], true
		case f[0] == "0" && f[1] == "":
			version, group, ok = 2, f[2], true
		}
	}
	return version, group, ok
}

// mount is one of a tree of control groups. Both are clean.
type mount struct {
	root  string // the group that is mounted
	point string
}

// dir returns where a group is that lies in m.
func (m *mount) dir(group string) string {
	return path.Join(m.point, strings.TrimPrefix(group, strings.TrimSuffix(m.root, "/")))
}

// shows reports whether group lies in m. What is outside of the namespace of the caller
// is told with dots, which lead nowhere in a mount.
func (m *mount) shows(group string) bool {
	root := strings.TrimSuffix(m.root, "/")
	rest, ok := strings.CutPrefix(group, root)
	return ok && (rest == "" || rest[0] == '/') && !slices.Contains(strings.Split(rest, "/"), "..")
}

// findMount returns the mount of a version that shows group, and most of what is above
// it; of equals the last, which may lie over the others.
func findMount(mountinfo []byte, version int, group string) (best mount, ok bool) {
	for line := range bytes.Lines(mountinfo) {
		m, v := parseMount(string(line))
		if v == version && m.shows(group) && (!ok || len(m.root) <= len(best.root)) {
			best, ok = m, true
		}
	}
	return best, ok
}

// parseMount reads a line of mountinfo; version 0 is something else than groups that
// count memory.
func parseMount(line string) (m mount, version int) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 3 {
		return m, 0
	}
	m = mount{unescape(f[3]), path.Clean(unescape(f[4]))}
	switch {
	case g[0] == "cgroup2":
		return m, 2
	case g[0] == "cgroup" && slices.Contains(strings.Split(g[2], ","), "memory"):
		return m, 1
	}
	return m, 0
}

// unescape undoes what mountinfo does to white space and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parseStat returns how many bytes of files a group can drop at once, by the names that
// its version has for them. It allocates nothing.
func (f *files) parseStat(text []byte) (n int64) {
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(line, []byte(" "))
		v, ok := parseBytes(value)
		switch {
		case !ok:
		case string(key) == f.cached[0], string(key) == f.cached[1]:
			n += v
		case string(key) == f.unclean[0], string(key) == f.unclean[1]:
			n -= v
		}
	}
	return max(n, 0)
}

// noLimit is less than what version 1 has for no limit, whatever the size of a page.
const noLimit = math.MaxInt64 &^ (1<<20 - 1)

// parseBytes reads the number in a file, or "max". It allocates nothing.
func parseBytes(b []byte) (n int64, ok bool) {
	b = bytes.TrimSpace(b)
	if string(b) == "max" {
		return Unlimited, true
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n > (math.MaxInt64-9)/10 {
			return Unlimited, true
		}
		n = 10*n + int64(c-'0')
	}
	if n >= noLimit {
		n = Unlimited
	}
	return n, len(b) > 0
}
