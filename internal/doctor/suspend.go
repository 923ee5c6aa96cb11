package doctor

import (
	"path"
	"strings"
)

// Suspend is what would happen if the host were suspended.
type Suspend struct {
	// States are those that the kernel offers, like freeze, mem, disk; empty if
	// it cannot be suspended.
	States []string `json:"states"`
	// Masked says that systemd has been told never to.
	Masked bool `json:"masked"`
	// Hooks are what runs before, of those that have to do with NFS.
	Hooks []Hook `json:"hooks"`
}

// Hook is a script, or a unit of systemd, that runs before a suspend.
type Hook struct {
	Path string `json:"path"`
	// Unmounts and StopsServer say what its text looks like; UnmountsFirst that
	// it does both, in the order that works.
	Unmounts      bool `json:"unmounts"`
	StopsServer   bool `json:"stops_server"`
	UnmountsFirst bool `json:"unmounts_first"`
}

// Possible reports whether the host may be suspended.
func (s *Suspend) Possible() bool { return len(s.States) > 0 && !s.Masked }

var (
	hookDirs = []string{
		"etc/systemd/system-sleep", "usr/lib/systemd/system-sleep", "lib/systemd/system-sleep", "etc/pm/sleep.d",
		"etc/systemd/system/sleep.target.wants", "etc/systemd/system/suspend.target.wants", "etc/systemd/system/hibernate.target.wants",
	}
	sleepTargets = []string{"suspend.target", "hibernate.target"}
	serverWords  = []string{"nfs-server", "nfs-kernel-server", "rpc.nfsd", "ganesha", "loopnfs.service"}
)

// maxHooks of a directory are read.
const maxHooks = 256

func (h *Host) suspend() Suspend {
	s := Suspend{States: []string{}, Hooks: []Hook{}}
	states, err := h.read("sys/power/state")
	if err == nil {
		s.States = append(s.States, strings.Fields(states)...)
	}
	s.Masked = h.masked("sleep.target")
	if !s.Masked {
		s.Masked = h.masked(sleepTargets[0]) && h.masked(sleepTargets[1])
	}
	for _, dir := range hookDirs {
		names, _ := h.names(dir) // most do not exist
		for _, name := range names[:min(len(names), maxHooks)] {
			if hook, ok := h.hook(path.Join(dir, name)); ok {
				s.Hooks = append(s.Hooks, hook)
			}
		}
	}
	return s
}

// masked reports whether systemd must not start a unit.
func (h *Host) masked(unit string) bool {
	return h.link("etc/systemd/system/"+unit) == "/dev/null" || h.link("run/systemd/system/"+unit) == "/dev/null"
}

// hook reads a script. ok is whether it touches mounts or NFS servers.
func (h *Host) hook(name string) (hook Hook, ok bool) {
	text, err := h.read(name)
	if err != nil {
		return hook, false
	}
	unmount, stop := -1, -1
	at := 0
	for line := range strings.Lines(text) {
		code, _, _ := strings.Cut(line, "#")
		if unmount < 0 && strings.Contains(code, "umount ") {
			unmount = at
		}
		if stop < 0 && containsAny(code, serverWords) && containsAny(code, []string{"stop", "kill", "rpc.nfsd 0"}) {
			stop = at
		}
		at++
	}
	return Hook{
		Path: "/" + name, Unmounts: unmount >= 0, StopsServer: stop >= 0,
		UnmountsFirst: unmount >= 0 && stop >= 0 && unmount < stop,
	}, unmount >= 0 || stop >= 0
}

func containsAny(s string, words []string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}
