package report

import (
	"fmt"
	"slices"
	"strings"

	"loopnfs/harness"
)

// takeover is a fault in a cluster, as it is shown.
type takeover struct {
	harness.Takeover
	Phases []fact
	Bars   []bar
}

// bar is the gap that clients of a host saw, against the longest of all.
type bar struct {
	Client  string
	Text    string
	Percent int
}

// Headline says what happened where.
func (t *takeover) Headline() string {
	switch {
	case t.To == "":
		return fmt.Sprintf("%s on %s", t.Fault, t.From)
	case t.To == t.From:
		return fmt.Sprintf("%s: %s had the service, and kept it", t.Fault, t.From)
	}
	return fmt.Sprintf("%s: the service went from %s to %s", t.Fault, t.From, t.To)
}

// Disruptions returns the faults of a run in a cluster.
func (r *run) Disruptions() []takeover {
	var longest int64 = 1
	for i := range r.Takeovers {
		for _, g := range r.Takeovers[i].Gaps {
			longest = max(longest, g.Ms)
		}
	}
	var all []takeover
	for _, t := range r.Takeovers {
		shown := takeover{Takeover: t, Phases: phases(&t)}
		for _, g := range t.Gaps {
			shown.Bars = append(shown.Bars, bar{g.Client, seconds(g.Ms), int(100 * g.Ms / longest)})
		}
		all = append(all, shown)
	}
	return all
}

// phases are the times of what happened at all, in their order.
func phases(t *harness.Takeover) []fact {
	var facts []fact
	for _, p := range []struct {
		name string
		ms   int64
	}{
		{"Node off for certain", t.FencedMs}, {"Server there", t.ServerMs}, {"Address there", t.AddressMs}, {"Clients let in", t.OpenMs},
	} {
		if p.ms > 0 {
			facts = append(facts, fact{Name: p.name, Value: "+" + seconds(p.ms)})
		}
	}
	return facts
}

// clusterFacts are what was measured in a cluster.
func (r *run) clusterFacts() []fact {
	return []fact{
		r.timeFact(),
		{Name: "Longest gap", Value: seconds(r.StallMs), Note: "for which a client got no answer"},
		{Name: "Changes promised", Value: fmt.Sprint(r.Promises), Note: "creations, renames, removals, locks"},
		{Name: "Lost", Value: fmt.Sprint(r.Lost), Bad: r.Lost > 0},
		{Name: "Applied twice", Value: fmt.Sprint(r.Twice), Bad: r.Twice > 0},
	}
}

// clusterStory says in a sentence what went wrong and what came of it.
func (r *run) clusterStory() string {
	var faults []string
	for _, t := range r.Takeovers {
		faults = append(faults, t.Fault)
	}
	if r.Outcome != harness.Survived || len(faults) == 0 {
		return ""
	}
	return fmt.Sprintf("While clients worked on both nodes and elsewhere: %s (seed %d). They waited, and went on; everything that they had been promised was there.", strings.Join(faults, ", then "), r.Seed)
}

// maxEvents bounds what is shown of one fault.
const maxEvents = 100

func cleanTakeovers(all []harness.Takeover) []harness.Takeover {
	all = slices.Clone(all[:min(len(all), maxLines)])
	for i := range all {
		t := &all[i]
		for _, s := range []*string{&t.Fault, &t.From, &t.To} {
			*s = cleanText(*s, maxName)
		}
		t.Says = cleanText(t.Says, maxText)
		for _, n := range []*int64{&t.FencedMs, &t.ServerMs, &t.AddressMs, &t.OpenMs} {
			*n = boundedInt(*n)
		}
		t.Gaps = slices.Clone(t.Gaps[:min(len(t.Gaps), maxLines)])
		for j := range t.Gaps {
			t.Gaps[j].Client, t.Gaps[j].Ms = cleanText(t.Gaps[j].Client, maxName), boundedInt(t.Gaps[j].Ms)
		}
		t.Events = slices.Clone(t.Events[:min(len(t.Events), maxEvents)])
		for j := range t.Events {
			e := &t.Events[j]
			e.Node, e.What, e.Ms = cleanText(e.Node, maxName), cleanText(e.What, 2*maxName), boundedInt(e.Ms)
		}
	}
	return all
}
