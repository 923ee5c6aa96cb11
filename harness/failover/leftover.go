package failover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// What a drill leaves that was killed with -9: its control groups, and a disk that was
// stalled just then. Everything else ends with it, or is in the ledger of package harness.

var leftDisk = regexp.MustCompile(`/loopnfs-drill-(\d+)-`)

// cleanLeftovers removes what drills that were killed have left.
func cleanLeftovers(dir string) error {
	var errs []error
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range loops {
		backing, err := os.ReadFile(file)
		m := leftDisk.FindSubmatch(backing)
		if err != nil || m == nil || !gone(string(m[1])) {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file)))
		if err := (&disk{path: device}).resume(dir); err != nil {
			errs = append(errs, fmt.Errorf("%s was left by a drill that was killed: %w", device, err))
		}
	}
	// Their processes may have waited for the disk.
	tops, _ := filepath.Glob(filepath.Join(memoryGroups, groupPrefix+"*"))
	for _, top := range tops {
		if gone(strings.TrimPrefix(filepath.Base(top), groupPrefix)) {
			errs = append(errs, (&groups{top}).remove())
		}
	}
	return errors.Join(errs...)
}

// gone reports whether there is no process with a number.
func gone(pid string) bool {
	n, err := strconv.Atoi(pid)
	if err != nil || n < 1 {
		return false
	}
	_, err = os.Stat(fmt.Sprintf("/proc/%d", n))
	return errors.Is(err, os.ErrNotExist)
}
