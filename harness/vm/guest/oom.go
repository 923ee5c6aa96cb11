package main

import (
	"regexp"

	"golang.org/x/sys/unix"
)

var killedProcess = regexp.MustCompile(`Killed process \d+ \(([^)]*)\)`)

// oomKilled returns the names of the processes that the OOM killer took.
func oomKilled() (names []string) {
	buf := make([]byte, 512<<10)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return nil
	}
	for _, m := range killedProcess.FindAllSubmatch(buf[:n], -1) {
		names = append(names, string(m[1]))
	}
	return names
}
