package fusefs

import (
	"bytes"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel passes every signal on, also those that have a handler and those
// that a Go program sends to itself all day. NFS mounts heed only signals that
// kill (TASK_KILLABLE), and so does this door.

// deathWatch is how often a caller that got a signal is looked at.
const deathWatch = 50 * time.Millisecond

// abandoned reports whether nobody waits for a request of pid any more.
func (f *doorFS) abandoned(pid uint32) bool { return f.dead() || dying(pid) }

// dying reports whether thread pid is gone or about to be (fatal_signal_pending).
// Of a thread that this process cannot see it is not known: false.
func dying(pid uint32) bool {
	if pid == 0 {
		return false
	}
	var buf [procStatusSize]byte
	status, err := readProcStatus(pid, buf[:])
	if err == unix.ENOENT || err == unix.ESRCH {
		return true
	}
	return pendingKill(status, "\nSigPnd:") || pendingKill(status, "\nShdPnd:")
}

func pendingKill(status []byte, field string) bool {
	v, ok := procField(status, field)
	if !ok {
		return false
	}
	mask, err := strconv.ParseUint(string(v), 16, 64)
	return err == nil && mask&(1<<(unix.SIGKILL-1)) != 0
}

// procField returns the value of a line of /proc/PID/status, trimmed; field has
// the newline before it and the colon.
func procField(status []byte, field string) ([]byte, bool) {
	_, rest, ok := bytes.Cut(status, []byte(field))
	if !ok {
		return nil, false
	}
	line, _, ok := bytes.Cut(rest, []byte("\n"))
	return bytes.TrimSpace(line), ok
}
