package hostguard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
)

// Process flags of the kernel (include/linux/sched.h).
const (
	flagMemallocNoIO  = 0x00080000 // PF_MEMALLOC_NOIO
	flagLocalThrottle = 0x00100000 // PF_LOCAL_THROTTLE
)

// Limits of what an audit reads.
const (
	maxProcFile = 64 << 10 // bytes of one file
	maxTasks    = 1 << 16
)

// Process is what /proc tells of how a process would fare when memory is short.
type Process struct {
	PID  int
	Name string

	Threads int
	// NoIO and LocalThrottle are how many of the threads have
	// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE.
	NoIO, LocalThrottle int
	// Apart is how many have neither, and say by their name that they are to: see
	// LeaveFlushers.
	Apart int

	// LockedBytes is VmLck: the size of what is locked, touched or not.
	LockedBytes   int64
	ResidentBytes int64 // VmRSS
	SwapBytes     int64 // VmSwap
	OOMScoreAdj   int   // -1000 (never killed) to 1000
}

// Guarded reports whether every thread is an I/O flusher, but for those that stand apart.
func (p *Process) Guarded() bool {
	n := p.Threads - p.Apart
	return n > 0 && p.NoIO == n && p.LocalThrottle == n
}

// Audit looks at a process of this host. The error is fs.ErrNotExist if there is
// no such process, or it has ended meanwhile.
func Audit(pid int) (Process, error) { return AuditFS(os.DirFS("/proc"), pid) }

// AuditFS is Audit with another /proc.
func AuditFS(proc fs.FS, pid int) (Process, error) {
	p := Process{PID: pid}
	err := p.read(proc, strconv.Itoa(pid))
	if gone(err) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Process{}, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	return p, nil
}

func (p *Process) read(proc fs.FS, dir string) error {
	status, err := readSmall(proc, path.Join(dir, "status"))
	if err != nil {
		return err
	}
	if err := p.parseStatus(status); err != nil {
		return err
	}
	adj, err := readSmall(proc, path.Join(dir, "oom_score_adj"))
	if err != nil {
		return err
	}
	if p.OOMScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(adj))); err != nil {
		return fmt.Errorf("oom_score_adj: %w", err)
	}
	return p.readTasks(proc, path.Join(dir, "task"))
}

// parseStatus takes what there is: a kernel thread has no memory of its own.
func (p *Process) parseStatus(status []byte) (err error) {
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Name":
			p.Name = value
		case "VmLck":
			p.LockedBytes, err = kibibytes(value)
		case "VmRSS":
			p.ResidentBytes, err = kibibytes(value)
		case "VmSwap":
			p.SwapBytes, err = kibibytes(value)
		}
		if err != nil {
			return fmt.Errorf("status: %s: %w", key, err)
		}
	}
	return nil
}

func kibibytes(s string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSuffix(s, " kB"), 10, 53)
	return n << 10, err
}

// readTasks counts the threads. Those that end meanwhile do not count.
func (p *Process) readTasks(proc fs.FS, dir string) error {
	tasks, err := readDir(proc, dir)
	if err != nil {
		return err
	}
	for _, t := range tasks {
		stat, err := readSmall(proc, path.Join(dir, t.Name(), "stat"))
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		flags, err := taskFlags(stat)
		if err != nil {
			return fmt.Errorf("thread %s: %w", t.Name(), err)
		}
		p.Threads++
		p.NoIO += int(flags & flagMemallocNoIO / flagMemallocNoIO)
		p.LocalThrottle += int(flags & flagLocalThrottle / flagLocalThrottle)
		if flags&(flagMemallocNoIO|flagLocalThrottle) == 0 && bytes.Contains(stat, []byte("("+apartName+") ")) {
			p.Apart++
		}
	}
	if p.Threads == 0 {
		return fs.ErrNotExist
	}
	return nil
}

// gone reports whether err is that of reading about a thread that has ended.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) }

// taskFlags returns the flags in a line of /proc/PID/stat. The name before them
// may contain anything, but nothing behind it contains ')'.
func taskFlags(stat []byte) (uint64, error) {
	const flags = 6 // state, ppid, pgrp, session, tty_nr, tpgid, flags
	_, rest, ok := strings.Cut(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]), ")")
	f := strings.Fields(rest)
	if !ok || len(f) <= flags {
		return 0, errors.New("stat: too few fields")
	}
	return strconv.ParseUint(f[flags], 10, 32)
}

// readSmall reads a file that has a limited size.
func readSmall(proc fs.FS, name string) ([]byte, error) {
	f, err := proc.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxProcFile))
}

func readDir(proc fs.FS, name string) ([]fs.DirEntry, error) {
	f, err := proc.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, ok := f.(fs.ReadDirFile)
	if !ok {
		return nil, fmt.Errorf("%s is not a directory", name)
	}
	entries, err := d.ReadDir(maxTasks)
	if err == io.EOF {
		err = nil
	}
	return entries, err
}
