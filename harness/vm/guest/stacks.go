package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"loopnfs/harness/vm/job"
)

// maxStacks and maxFrames bound what is told of a standstill.
const (
	maxStacks = 40
	maxFrames = 24
)

// blockedStacks returns the stacks of all tasks that wait uninterruptibly, or
// that run in the kernel, looking for memory. The kernel writes them to its log, too.
func blockedStacks() []job.Stack {
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
	var stacks []job.Stack
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	for _, dir := range tasks {
		if s, ok := blocked(dir); ok && len(stacks) < maxStacks {
			stacks = append(stacks, s)
		}
	}
	return stacks
}

func blocked(dir string) (s job.Stack, ok bool) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return s, false
	}
	var rest string
	if s.PID, s.Comm, rest, err = parseStat(stat); err != nil {
		return s, false
	}
	if s.State = rest[:1]; s.State != "D" && s.State != "R" {
		return s, false
	}
	text, _ := os.ReadFile(dir + "/stack")
	for line := range strings.Lines(string(text)) {
		if f := frame(line); f != "" && len(s.Frames) < maxFrames {
			s.Frames = append(s.Frames, f)
		}
	}
	return s, len(s.Frames) > 0 && s.State == "D" || strings.Contains(string(text), "shrink_")
}

// parseStat reads "PID (COMM) STATE ..." of /proc/PID/stat, and returns what
// follows COMM, which may have parentheses and spaces of its own.
func parseStat(stat []byte) (pid int, comm, rest string, err error) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open || end+2 >= len(stat) {
		return 0, "", "", errors.New("it is not that of a task")
	}
	pid, err = strconv.Atoi(string(bytes.TrimSpace(stat[:open])))
	return pid, string(stat[open+1 : end]), string(stat[end+2:]), err
}

// frame takes the function out of "[<0>] wait_on_commit+0x4a/0x80 [nfs]".
func frame(line string) string {
	_, f, ok := strings.Cut(line, "] ")
	if !ok {
		return ""
	}
	f, _, _ = strings.Cut(f, "+")
	return strings.TrimSpace(f)
}
