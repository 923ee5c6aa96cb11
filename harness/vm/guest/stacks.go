package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
	// pid (comm) state
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < 0 || end+2 >= len(stat) {
		return s, false
	}
	s.Comm, s.State = string(stat[open+1:end]), string(stat[end+2])
	fmt.Sscan(string(stat[:open]), &s.PID)
	if s.State != "D" && s.State != "R" {
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

// frame takes the function out of "[<0>] wait_on_commit+0x4a/0x80 [nfs]".
func frame(line string) string {
	_, f, ok := strings.Cut(line, "] ")
	if !ok {
		return ""
	}
	f, _, _ = strings.Cut(f, "+")
	return strings.TrimSpace(f)
}
