package doctor

import (
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// flagKThread is PF_KTHREAD (include/linux/sched.h).
const flagKThread = 0x00200000

// process is one that runs.
type process struct {
	pid    int
	name   string
	kernel bool
	// net and mnt name its namespaces; empty if they cannot be seen.
	net, mnt string
}

// processes returns all that run, by their numbers. What ends meanwhile is left
// out.
func (h *Host) processes(f *Facts) ([]process, error) {
	names, err := h.names("proc")
	if err != nil {
		return nil, err
	}
	var list []process
	hidden := 0
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p, err := h.process(pid)
		if errors.Is(err, fs.ErrPermission) {
			hidden++
		}
		if err == nil {
			list = append(list, p)
		}
	}
	if hidden > 0 {
		f.unseen("%d processes: /proc hides them; run this as root", hidden)
	}
	slices.SortFunc(list, func(a, b process) int { return a.pid - b.pid })
	return list, nil
}

func (h *Host) process(pid int) (p process, err error) {
	stat, err := h.read(proc(pid, "stat"))
	if err != nil {
		return p, err
	}
	// pid (name) state ppid pgrp session tty_nr tpgid flags
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return p, fs.ErrInvalid
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 7 {
		return p, fs.ErrInvalid
	}
	flags, err := strconv.ParseUint(fields[6], 10, 32)
	p = process{pid: pid, name: stat[open+1 : end], kernel: flags&flagKThread != 0}
	if !p.kernel {
		p.net, p.mnt = h.link(proc(pid, "ns/net")), h.link(proc(pid, "ns/mnt"))
	}
	return p, err
}

// serviceManager has sockets of servers open that it starts when somebody connects,
// and serves none of them.
const serviceManager = "systemd"

// socketOwners returns the processes that have one of the sockets open, but for
// service managers, and how many processes could not be looked into.
func (h *Host) socketOwners(procs []process, inodes map[string]bool) (owners map[string][]process, hidden int) {
	owners = map[string][]process{}
	for _, p := range procs {
		if p.kernel || p.name == serviceManager {
			continue
		}
		dir := proc(p.pid, "fd")
		fds, err := h.names(dir)
		if err != nil && !gone(err) {
			hidden++
		}
		for _, fd := range fds {
			inode, ok := strings.CutPrefix(h.link(dir+"/"+fd), "socket:[")
			inode = strings.TrimSuffix(inode, "]")
			if ok && inodes[inode] && !slices.Contains(owners[inode], p) {
				owners[inode] = append(owners[inode], p)
			}
		}
	}
	return owners, hidden
}
