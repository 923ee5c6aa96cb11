package report

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"loopnfs/harness"
	"loopnfs/harness/vm/job"
)

func timed(stallMs int64, samples ...job.Sample) *run {
	return &run{Result: &harness.Result{Tier: harness.TierVM, StallMs: stallMs, Timeline: samples}}
}

// moving is a run that writes a MiB per second up to a moment, and stands still
// after it.
func moving(until, end int) []job.Sample {
	var all []job.Sample
	for s := 1; s <= end; s++ {
		all = append(all, job.Sample{
			Seconds: float64(s), FreeKB: 2048, DirtyKB: 1024, WritebackKB: 512,
			Bytes: int64(min(s, until)) << 20, DirectScans: int64(s) * 100, Throttle: int64(s / 4), OOMKills: int64(s / 10),
		})
	}
	return all
}

func TestChartsStayInTheirPlot(t *testing.T) {
	for _, c := range timed(8000, moving(4, 12)...).Charts() {
		for _, l := range c.Lines {
			for _, p := range strings.Fields(l.Points) {
				var x, y float64
				if _, err := fmt.Sscanf(p, "%g,%g", &x, &y); err != nil {
					t.Fatal(p, err)
				}
				if x < plotLeft || x > plotRight || y < plotTop || y > plotBottom {
					t.Errorf("%s: %s is at %g,%g", c.Title, l.Name, x, y)
				}
			}
		}
		if n := len(c.YTicks); n < 2 || n > wantedTicks+1 || c.YTicks[0].Text != "0" {
			t.Errorf("%s: ticks %v", c.Title, c.YTicks)
		}
		if c.Still == nil || c.Still.from != 4 || c.Still.to != 12 || c.Still.Text != "no progress: 8.0 s" {
			t.Errorf("%s: the standstill is %+v", c.Title, c.Still)
		}
	}
}

func TestEventsAreMarked(t *testing.T) {
	marks := timed(0, moving(12, 12)...).Charts()[2].Marks
	if len(marks) != 2 || len(marks[0].X) != 3 || len(marks[1].X) != 1 {
		t.Errorf("got %+v", marks)
	}
}

// A run that has written everything stands still as well, which is no stall.
func TestTheEndIsNoStandstill(t *testing.T) {
	if b := timed(200, moving(4, 12)...).still(); b != nil {
		t.Errorf("got %+v", b)
	}
}

func TestNoChartOfNothing(t *testing.T) {
	for n := range 2 {
		if c := timed(0, moving(n, n)...).Charts(); c != nil {
			t.Errorf("%d samples: %d charts", n, len(c))
		}
	}
}

func TestNiceStep(t *testing.T) {
	for _, c := range []struct {
		upTo float64
		want float64
	}{{1, 0.2}, {9, 2}, {10, 2}, {11, 5}, {60, 20}, {101, 50}, {3300, 1000}} {
		if got := niceStep(c.upTo, 5); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("up to %g: %g, want %g", c.upTo, got, c.want)
		}
	}
}
