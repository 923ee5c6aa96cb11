package report

import (
	"strings"
	"testing"

	"loopnfs/harness"
)

// cluster is a run with two faults.
func cluster() harness.Result {
	r := harness.Result{
		Drill: harness.TakeoverName, Tier: harness.TierCluster, Server: "loopnfs", Expected: harness.Survived, Outcome: harness.Survived,
		Seconds: 21, DataVerified: true, StallMs: 4172, Promises: 2445, Seed: 7,
		Takeovers: []harness.Takeover{
			{
				Fault: "node-kill", Says: "the node that serves loses its power", From: "n1", To: "n2",
				Gaps: []harness.Gap{{Client: "n2", Ms: 4172}, {Client: "c1", Ms: 4100}},
				Events: []harness.Moment{
					{Ms: 10, What: "node-kill, on n1"}, {Ms: 3200, What: "n1" + harness.SwitchedOff},
					{Ms: 3600, Node: "n2", What: harness.ServerStarted}, {Ms: 3700, Node: "n2", What: harness.AddressTaken},
					{Ms: 3750, Node: "n2", What: harness.PortOpened},
				},
			},
			{Fault: "disk-stall", Says: "the disk takes no writes <b>for some seconds", From: "n2", To: "n2", Gaps: []harness.Gap{{Client: "c1", Ms: 2459}}},
		},
	}
	for i := range r.Takeovers {
		r.Takeovers[i].FillTimes()
	}
	return r
}

// A page says of each fault what happened when, and how long clients waited.
func TestTakeoverPage(t *testing.T) {
	text := inspect(t, render(t, []harness.Result{cluster()}))
	for _, want := range []string{
		"node-kill: the service went from n1 to n2", "disk-stall: n2 had the service, and kept it", "node-kill, then disk-stall (seed 7)",
		"Node off for certain", "+3.2 s", "Server there", "+3.6 s", "Clients let in", "+3.8 s", "4.2 s", "2445", "+3.70 s", "A cluster",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// What went wrong is in plain sight.
func TestTakeoverPageOfLoss(t *testing.T) {
	r := cluster()
	r.Outcome, r.Lost, r.DataVerified, r.Error = harness.Failed, 3, false, "lost: create x was answered, but the file 1 is not there"
	page := render(t, []harness.Result{r})
	if text := inspect(t, page); !strings.Contains(text, "the file 1 is not there") || strings.Contains(text, "everything that they had been promised was there") {
		t.Errorf("the page hides a loss")
	}
	if !strings.Contains(page, `class="bad"><dt>Lost</dt><dd>3`) {
		t.Error("a loss is not marked as bad")
	}
}
