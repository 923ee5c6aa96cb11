package nfsmount

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// What a loop-back mount may make dirty, in bytes, when that is not between
// minPercent and maxPercent of the dirty limit of the host anyway. Enough
// requests to keep a server busy, and no more than a slow disk takes in seconds.
const (
	usualPercent           = 10
	leastBytes, mostBytes  = 4 << 20, 256 << 20
	minPercent, maxPercent = 1, 25
)

// Cap is what part of the dirty limit of this host a mount may fill.
type Cap struct {
	Percent int
	// Bytes is how much that is now; the limit moves with the memory that
	// is available.
	Bytes int64
	// Strict says that it holds even while the host has few dirty pages.
	Strict bool
}

// capPercent returns the part of a dirty limit, in bytes, for a loop-back mount.
//
// A tenth, as FUSE has a hundredth: what is left of memory is then reclaimed without
// the server. On a host of 192 MiB with a limit of 14 MiB that would be less than two
// WRITEs, so it is at least leastBytes there, but never more than maxPercent; on one
// of 100 GiB with a limit of 18 GiB it is mostBytes. In guests of 192 MiB,
// release-page took the same 13 s with the cap and without.
func capPercent(limit int64) int {
	want := min(max(limit*usualPercent/100, leastBytes), mostBytes)
	if limit <= 0 {
		return usualPercent
	}
	return int(min(max((want*100+limit/2)/limit, minPercent), maxPercent))
}

// setCap caps the dirty pages of the mount on device. The error says what that
// costs; nothing is undone then.
//
// min_ratio is not 0, or a strict limit would start there: the share of a device
// is what it has written lately, which is nothing at first (kernel: __wb_calc_thresh).
// It is taken from everybody else, so it is the least that can be had.
func (h *Host) setCap(device string) (Cap, error) {
	limit, err := h.dirtyLimit()
	if err != nil {
		return Cap{}, err
	}
	percent := capPercent(limit)
	c := Cap{Percent: percent, Bytes: limit * int64(percent) / 100}
	bdi := h.path("/sys/class/bdi", device)
	err = errors.Join(
		writeNumber(bdi, "min_ratio", 0), // it may not be above the maximum
		writeNumber(bdi, "max_ratio", percent),
		writeNumber(bdi, "min_ratio", minPercent),
	)
	if err != nil {
		return c, fmt.Errorf("its dirty pages are not capped, so they may fill memory while the server needs some: %w", err)
	}
	err = writeNumber(bdi, "strict_limit", 1)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("this kernel has no strict_limit, which came with Linux 6.2: the cap on dirty pages holds only while the whole host has many of them")
	}
	c.Strict = err == nil
	return c, err
}

// dirtyLimit returns the dirty limit of the host, in bytes.
func (h *Host) dirtyLimit() (int64, error) {
	text, err := os.ReadFile(h.path("/proc/vmstat"))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if string(key) == "nr_dirty_threshold" {
			pages, err := strconv.ParseInt(string(value), 10, 52)
			return pages * int64(os.Getpagesize()), err
		}
	}
	return 0, errors.New("/proc/vmstat has no nr_dirty_threshold")
}

// writeNumber sets an attribute and makes sure that it is set.
func writeNumber(dir, name string, n int) error {
	path, want := filepath.Join(dir, name), strconv.Itoa(n)
	if err := writeAttribute(path, want); err != nil {
		return err
	}
	got, err := os.ReadFile(path)
	if err == nil && string(bytes.TrimSpace(got)) != want {
		err = fmt.Errorf("%s is %s, although %s was written", path, bytes.TrimSpace(got), want)
	}
	return err
}

// writeAttribute writes a file of sysfs; fs.ErrNotExist says that this kernel has
// none.
func writeAttribute(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
