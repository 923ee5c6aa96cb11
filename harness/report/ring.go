package report

import (
	"slices"
	"strings"

	"loopnfs/harness"
)

// wait is someone who waits for something: for what the next one has, or is about
// to make free.
type wait struct{ Who, Role, For string }

// ring is waits one after another. The last waits for the first, or, if End is
// not nil, for somebody who is not part of it.
type ring struct {
	Waits []wait
	End   *end
}

// end is where a chain of waits ends that is no ring.
type end struct{ Who, Role, Means string }

// exampleRing is the circle in short, for the head of the page.
var exampleRing = ring{Waits: []wait{
	{"NFS server", "must store what was written", "for a free page"},
	{"the kernel", "must free a page of the mount", "until its data is safe on the disk"},
	{"NFS client", "sends it to the server", "for the server's answer"},
}}

// why explains a run that stands still.
type why struct {
	// Drawing is nil if there are too many waits for one.
	Drawing *ringDrawing
	Steps   []step
	End     *end
	// Beside are the other waits that were seen, as sentences.
	Beside []string
}

// step is one wait, in words.
type step struct{ Who, For, Means string }

// Why returns what the run stands still for; nil if it does not, or nobody knows.
func (r *run) Why() *why {
	if len(r.Cycle) == 0 {
		return nil
	}
	g, beside := r.ring()
	w := &why{End: g.End, Beside: beside}
	if len(g.Waits) <= maxRing {
		w.Drawing = drawRing(g)
	}
	for _, x := range g.Waits {
		w.Steps = append(w.Steps, step{x.Who, x.For, x.explain()})
	}
	return w
}

// ring returns the waits that explain the run, and the sentences left over.
//
// Where loopnfs watched itself, the sentences are the circle: each waits for the
// next, the last for the first. Of a stock kernel only stacks are known, and each
// sentence is one stack; it closes a circle if it is one of the server's, and waits
// for what nobody but the server can give.
func (r *run) ring() (ring, []string) {
	var g ring
	if r.Tier != harness.TierVM {
		for _, sentence := range r.Cycle {
			g.Waits = append(g.Waits, r.parse(sentence)...)
		}
		return g, nil
	}
	chosen := 0
	for i, sentence := range r.Cycle {
		if waits := r.parse(sentence); isServer(waits[0].Who, r.Server) && fromServer(waits) {
			chosen = i
			break
		}
	}
	g.Waits = r.parse(r.Cycle[chosen])
	if !isServer(g.Waits[0].Who, r.Server) || !fromServer(g.Waits) {
		g.End = r.end(g.Waits)
	} else if len(g.Waits) == 1 { // between the server and itself is the mount
		const client = "write-back of the mount"
		g.Waits = append(g.Waits, wait{client, roleOf(client, r.Server), "for the server's reply to WRITE"})
	}
	return g, slices.Delete(slices.Clone(r.Cycle), chosen, chosen+1)
}

// fromServer reports whether what the last of waits waits for comes from the NFS
// server in the end.
func fromServer(waits []wait) bool {
	last := waits[len(waits)-1].For
	for _, phrase := range []string{"COMMIT", "committed", "reply of the server", "until a page has been written", "dirty pages"} {
		if strings.Contains(last, phrase) {
			return true
		}
	}
	return false
}

// end returns whom the last of waits waits for, as far as it is known.
func (r *run) end(waits []wait) *end {
	if !fromServer(waits) {
		return &end{Who: "somebody", Role: "not seen", Means: "Who has to end this wait cannot be told from the stacks."}
	}
	for _, k := range r.Killed {
		if isServer(k, r.Server) {
			return &end{
				Who: k, Role: "the NFS server, killed by the OOM killer",
				Means: "Only the server could end this wait. It was killed when memory ran out, so nobody answers any more; what it was waiting for before is gone with it.",
			}
		}
	}
	return &end{
		Who: "NFS server", Role: "none of its tasks is blocked",
		Means: "Only the server could end this wait. None of its tasks was blocked in the kernel when the stacks were taken, so they do not say why it does not.",
	}
}

// parse takes a sentence apart: "A needs B -> C -> D waits for E" is that A waits
// for B, C for a page that D has, and D for E.
func (r *run) parse(sentence string) []wait {
	before, what, _ := strings.Cut(sentence, " waits ")
	parts := strings.Split(before, " -> ")
	var waits []wait
	for i, part := range parts {
		w := wait{Who: part, For: "for a page of the mount"}
		if i == len(parts)-1 {
			w.For = what
		} else if who, need, ok := strings.Cut(part, " needs "); ok {
			w.Who, w.For = who, "for "+need
		}
		w.Role = roleOf(w.Who, r.Server)
		waits = append(waits, w)
	}
	return waits
}
