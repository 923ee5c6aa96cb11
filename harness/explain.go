package harness

import (
	"fmt"
	"slices"
	"strings"

	"loopnfs/harness/vm/job"
)

// edges are functions of the kernel in which a task waits for something that
// matters here, and what for. The first that a stack has is what it waits for.
var edges = []struct{ frame, waits string }{
	{"wait_on_commit", "for the reply to COMMIT"},
	{"nfs_wb_folio", "until a page is written and committed"},
	{"nfs_wb_all", "until the file is written and committed"},
	{"balance_dirty_pages", "for dirty pages to fall below the limit"},
	{"rpc_wait_bit_killable", "for a reply of the server"},
	{"folio_wait_writeback", "until a page has been written"},
	{"folio_wait_bit_common", "until a page has been written"},
	{"reclaim_throttle", "for reclaim to make progress"},
	{"throttle_direct_reclaim", "for kswapd to free pages"},
	{"__swap_writepage", "to swap a page out, until earlier ones are out"},
	{"shrink_node", "for pages that can be freed"},
	{"jbd2_log_wait_commit", "for the journal"},
}

// reclaim is in the stack of a task that frees memory for itself.
const reclaimFrame = "try_to_free_pages"

// needs are functions of the kernel that tell what a task wants memory for.
var needs = []struct{ frame, what string }{
	{"refill_work", " for the receive ring of the network card"},
	{"tcp_sendmsg_locked", " to send"},
}

// ExplainStacks returns a sentence for each kind of waiting, that of tasks in
// direct reclaim first.
func ExplainStacks(stacks []job.Stack) []string {
	var reclaiming, others []string
	for _, s := range stacks {
		line, ok := explainStack(s)
		if !ok {
			continue
		}
		if slices.Contains(s.Frames, reclaimFrame) {
			reclaiming = appendNew(reclaiming, line)
		} else {
			others = appendNew(others, line)
		}
	}
	return append(append([]string{}, reclaiming...), others...)
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

func explainStack(s job.Stack) (string, bool) {
	frames := s.Frames
	reclaim := slices.Index(frames, reclaimFrame)
	if reclaim >= 0 {
		frames = frames[:reclaim] // why it needs memory is not what it waits for
	}
	for _, e := range edges {
		if !has(frames, e.frame) {
			continue
		}
		if reclaim < 0 {
			return s.Comm + " waits " + e.waits, true
		}
		return fmt.Sprintf("%s needs memory%s -> direct reclaim%s waits %s", s.Comm, whatFor(s.Frames), inRelease(frames), e.waits), true
	}
	return "", false
}

// has reports whether a frame's name has part in it.
func has(frames []string, part string) bool {
	return slices.ContainsFunc(frames, func(f string) bool { return strings.Contains(f, part) })
}

// whatFor says what a task in direct reclaim needs memory for; empty if unknown.
func whatFor(frames []string) string {
	for _, n := range needs {
		if has(frames, n.frame) {
			return n.what
		}
	}
	return ""
}

func inRelease(frames []string) string {
	if slices.Contains(frames, "nfs_release_folio") {
		return " -> nfs_release_folio"
	}
	return ""
}
