package lease

import (
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process tells a process from all others, on all hosts and at all times.
type Process struct {
	Host     string // for people
	BootID   ID
	PID      int
	PIDSpace uint64 // inode number of the PID name space
	Started  uint64 // after the boot, in clock ticks
}

// thisProcess returns who we are.
func thisProcess() (p Process, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return p, err
	}
	if _, err := hex.Decode(p.BootID[:], []byte(strings.ReplaceAll(strings.TrimSpace(string(boot)), "-", ""))); err != nil {
		return p, fmt.Errorf("boot_id: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return p, fmt.Errorf("/proc/self/ns/pid: %w", err)
	}
	p.PID, p.PIDSpace = os.Getpid(), st.Ino
	if p.Started, _, err = startOf(p.PID); err != nil {
		return p, err
	}
	p.Host, _ = os.Hostname()
	p.Host = p.Host[:min(len(p.Host), hostLen)]
	return p, nil
}

// startOf returns when a process has started, and in what state it is.
func startOf(pid int) (ticks uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // from the state, the third, on
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	ticks, err = strconv.ParseUint(f[19], 10, 64)
	return ticks, f[0][0], err
}

// isDead reports whether p is known to be gone, with all that it had under way. A process
// of another host, or of another PID name space of this one, is not known.
func (p *Process) isDead(us *Process) bool {
	if p.BootID != us.BootID || p.PIDSpace != us.PIDSpace {
		return false
	}
	ticks, state, err := startOf(p.PID)
	switch {
	case os.IsNotExist(err) || err == unix.ESRCH:
		return true
	case err != nil:
		return false
	case ticks != p.Started:
		return true // another one has its number
	case state != 'Z':
		return false
	}
	// A thread that waits for a disk outlives the first one, which is a zombie then.
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID))
	return err == nil && len(tasks) == 1
}
