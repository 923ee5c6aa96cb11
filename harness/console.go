package harness

import (
	"fmt"
	"strings"

	"loopnfs/harness/vm/job"
)

// consoleStacks returns the stacks that a kernel wrote to its console when it was
// last asked for those of blocked tasks (sysrq w). It is what is left of a
// guest in which nothing can run any more.
func consoleStacks(console string) []job.Stack {
	if i := strings.LastIndex(console, "sysrq: Show Blocked State"); i >= 0 {
		console = console[i:]
	} else {
		return nil
	}
	var stacks []job.Stack
	inTrace := false
	for line := range strings.Lines(console) {
		_, line, _ = strings.Cut(line, "] ")
		line = strings.TrimRight(line, "\r\n")
		switch text := strings.TrimSpace(line); {
		case strings.HasPrefix(text, "task:"):
			stacks = append(stacks, consoleTask(text))
		case text == "<TASK>":
			inTrace = len(stacks) > 0
		case text == "</TASK>":
			inTrace = false
		case inTrace:
			s := &stacks[len(stacks)-1]
			if f, _, ok := strings.Cut(text, "+0x"); ok && !strings.HasPrefix(f, "? ") {
				s.Frames = append(s.Frames, f)
			}
		}
	}
	return stacks
}

// consoleTask reads "task:dd state:D stack:0 pid:241 tgid:241 ppid:1 flags:0x4002".
func consoleTask(text string) (s job.Stack) {
	comm, rest, _ := strings.Cut(strings.TrimPrefix(text, "task:"), " state:")
	s.Comm, s.State = strings.TrimSpace(comm), strings.TrimSpace(rest[:min(1, len(rest))])
	if _, pid, ok := strings.Cut(rest, " pid:"); ok {
		fmt.Sscan(pid, &s.PID)
	}
	return s
}
