package main

import (
	"slices"
	"strings"

	"loopnfs/harness"
)

// Mechanisms that serve can do without.
const (
	hostGuard     = "host-guard"
	stableReplies = "stable-replies"
	directIO      = "direct-io"
	localThrottle = "local-throttle"
	groupReclaim  = "group-reclaim" // has no drill: it needs no want of memory of the host
)

// without names the mechanisms that are switched off, to show what each is good
// for.
type without []string

// validate reports a name that is not one of a mechanism.
func (w without) validate() error {
	known := []string{groupReclaim}
	for _, m := range harness.VMMechanisms() {
		known = append(known, m.Name)
	}
	for _, name := range w {
		if !slices.Contains(known, name) {
			return usagef("--without %s: no such mechanism; there are %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}

// has reports whether a mechanism is on.
func (w without) has(mechanism string) bool { return !slices.Contains(w, mechanism) }
