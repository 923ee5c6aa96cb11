package main

import (
	"regexp"

	"golang.org/x/sys/unix"
)

var killedProcess = regexp.MustCompile(`Killed process \d+ \((.*)\) total-vm:`)

// oomKilled returns the names of the processes that the OOM killer took.
func oomKilled() []string {
	buf := make([]byte, 512<<10)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return nil
	}
	return killedIn(buf[:n])
}

// killedIn finds in the kernel's log what mm/oom_kill.c says there.
func killedIn(log []byte) (names []string) {
	for _, m := range killedProcess.FindAllSubmatch(log, -1) {
		names = append(names, string(m[1]))
	}
	return names
}
