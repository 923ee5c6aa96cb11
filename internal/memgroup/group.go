package memgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// Group is the control group of this process, with everything open. Free and reclaim are
// each called by one goroutine at a time; they allocate nothing.
type Group struct {
	Info
	levels  []level
	file    int // to write to; -1 if there is none
	reclErr error
	names   files
	buf     [8 << 10]byte
	cmd     [32]byte
}

// level is one group with a limit.
type level struct {
	limits []int // descriptors
	usage  int
	stat   int
}

// Open opens the group of this process. It is nil if that has no limit. That it cannot be
// reclaimed is no error: see CannotReclaim.
func Open() (*Group, error) {
	info, err := Find(os.DirFS("/"), "self")
	if err != nil || info.Limit == Unlimited {
		return nil, err
	}
	return open(info)
}

func open(info Info) (g *Group, err error) {
	g = &Group{Info: info, file: -1, names: versions[info.Version]}
	defer func() {
		if err != nil {
			g.Close()
			g, err = nil, fmt.Errorf("cannot watch the memory limit of %s: %w", info.Dir, err)
		}
	}()
	for _, dir := range info.Dirs {
		if limitOf(os.DirFS("/"), dir, info.Version) == Unlimited {
			continue
		}
		if err := g.openLevel(dir); err != nil {
			return g, err
		}
	}
	if g.file, err = openFile(g.ReclaimFile(), unix.O_WRONLY); err != nil {
		g.reclErr, err = fmt.Errorf("%s: %w", g.ReclaimFile(), err), nil
	}
	_, err = g.Free(Unlimited)
	return g, err
}

func (g *Group) openLevel(dir string) error {
	usage, usageErr := openFile(path.Join(dir, g.names.usage), unix.O_RDONLY)
	stat, statErr := openFile(path.Join(dir, "memory.stat"), unix.O_RDONLY)
	l := level{usage: usage, stat: stat}
	for _, name := range g.names.limits {
		fd, err := openFile(path.Join(dir, name), unix.O_RDONLY)
		if err == nil {
			l.limits = append(l.limits, fd)
		}
	}
	g.levels = append(g.levels, l)
	return errors.Join(usageErr, statErr)
}

func openFile(name string, flags int) (int, error) {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// CannotReclaim tells why the group cannot be reclaimed; nil if it can.
func (g *Group) CannotReclaim() error { return g.reclErr }

// Free returns how many bytes a file system can have charged, by the limits as they are
// now: what is free, and clean pages of files, which make way also for who may enter no
// file system. These are counted, which takes longer, only if less than want is free. It
// is less than 0 if a limit was lowered below what is used.
func (g *Group) Free(want int64) (int64, error) {
	least := int64(Unlimited)
	for i := range g.levels {
		free, err := g.freeAt(&g.levels[i], want)
		if err != nil {
			return 0, err
		}
		least = min(least, free)
	}
	return least, nil
}

func (g *Group) freeAt(l *level, want int64) (int64, error) {
	used, err := g.read(l.usage)
	if err != nil {
		return 0, err
	}
	limit := int64(Unlimited)
	for _, fd := range l.limits {
		n, err := g.read(fd)
		if err != nil {
			return 0, err
		}
		limit = min(limit, n)
	}
	if limit == Unlimited || limit-used >= want {
		return limit - used, nil
	}
	n, err := unix.Pread(l.stat, g.buf[:], 0)
	return limit - used + g.names.parseStat(g.buf[:max(n, 0)]), err
}

var errNumber = errors.New("a file of the control group has no number")

func (g *Group) read(fd int) (int64, error) {
	n, err := unix.Pread(fd, g.buf[:], 0)
	if err != nil {
		return 0, err
	}
	v, ok := parseBytes(g.buf[:n])
	if !ok {
		return 0, errNumber
	}
	return v, nil
}

// reclaim has the kernel free n bytes, or all that it can: version 1 does not ask how
// much. It takes as long as that takes, and ends early when its thread gets a signal.
func (g *Group) reclaim(n int64) error {
	cmd := append(g.cmd[:0], '0')
	if g.Version == 2 {
		cmd = strconv.AppendInt(g.cmd[:0], n, 10)
	}
	_, err := unix.Write(g.file, cmd)
	if err == unix.EAGAIN || err == unix.EINTR { // less than n could be freed
		return nil
	}
	return err
}

// Close closes everything.
func (g *Group) Close() error {
	var errs []error
	for _, l := range g.levels {
		for _, fd := range append(l.limits, l.usage, l.stat) {
			errs = append(errs, unix.Close(fd))
		}
	}
	if g.file >= 0 {
		errs = append(errs, unix.Close(g.file))
	}
	g.levels, g.file = nil, -1
	return errors.Join(errs...)
}
