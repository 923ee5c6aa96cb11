package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// maxUsers is how many users of a mount are named.
const maxUsers = 5

// usersOf says who uses the mount at path: mounts below it, and processes that
// have a file or directory of it open. It reads links in /proc only and never
// looks at the mount. What belongs to other users, only root can see.
func usersOf(path string) string {
	users := append(mountsBelow(path), processesIn(path)...)
	if len(users) == 0 {
		return ""
	}
	if len(users) > maxUsers {
		users = append(users[:maxUsers], fmt.Sprintf("%d more", len(users)-maxUsers))
	}
	return " by " + strings.Join(users, ", ")
}

func mountsBelow(path string) []string {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return nil
	}
	var users []string
	for _, m := range all {
		if m.Mountpoint != path {
			users = append(users, "the mount on "+m.Mountpoint)
		}
	}
	return users
}

func processesIn(path string) []string {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	sort.Slice(dirs, func(i, j int) bool { return pidOf(dirs[i]) < pidOf(dirs[j]) })
	var users []string
	for _, dir := range dirs {
		if pidOf(dir) != os.Getpid() && usesPath(dir, path) {
			name, _ := os.ReadFile(dir + "/comm")
			users = append(users, fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(name)), pidOf(dir)))
		}
	}
	return users
}

func pidOf(dir string) int {
	n, _ := strconv.Atoi(filepath.Base(dir))
	return n
}

// usesPath reports whether the process of a directory in /proc uses path.
func usesPath(proc, path string) bool {
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	for _, sub := range []string{"/fd", "/map_files"} {
		entries, _ := os.ReadDir(proc + sub)
		for _, e := range entries {
			links = append(links, proc+sub+"/"+e.Name())
		}
	}
	for _, l := range links {
		target, err := os.Readlink(l)
		if err == nil && (target == path || strings.HasPrefix(target, path+"/")) {
			return true
		}
	}
	return false
}
