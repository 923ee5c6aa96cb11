package report

import (
	"fmt"
	"math"
	"strings"

	"loopnfs/harness"
	"loopnfs/harness/vm/job"
)

// Sizes of a chart, in pixels of the SVG. It is narrow, so that its text is of the
// same size on a phone as beside two others.
const (
	chartWidth, chartHeight = 340, 190
	plotLeft, plotRight     = 42, 330
	plotTop, plotBottom     = 20, 158
	plotWidth               = plotRight - plotLeft
	plotHeight              = plotBottom - plotTop
	wantedTicks             = 5
	// stillMs is the shortest standstill that is marked.
	stillMs = 1500
)

// chart is a diagram over the time of a run.
type chart struct {
	Title, Unit string
	XUnit       string
	Lines       []line
	Marks       []mark
	Still       *band
	XTicks      []tick
	YTicks      []tick
	seconds     float64 // at the right edge
	top         float64 // of the y axis
}

// line is a curve; Area is the same closed to the axis, if it is filled.
type line struct {
	Class, Name  string
	Points, Area string
	points       []point
}

// point is a value at a time in seconds.
type point struct{ s, v float64 }

// mark is something that happened at a moment.
type mark struct {
	Class, Name string
	X           []float64
}

// band is the time in which nothing moved.
type band struct {
	X, W     float64
	Text     string
	from, to float64
}

type tick struct {
	At   float64
	Text string
}

// Charts returns the run as seen from outside; nil if nobody looked.
func (r *run) Charts() []*chart {
	if len(r.Timeline) < 2 {
		return nil
	}
	still := r.still()
	charts := []*chart{memoryChart(r.Timeline), progressChart(r.Timeline), reclaimChart(r.Timeline)}
	for _, c := range charts {
		c.XUnit = "s"
		if r.Tier == harness.TierVM {
			c.XUnit = "s of guest time"
		}
		c.finish(r.Timeline, still)
	}
	return charts
}

func memoryChart(samples []job.Sample) *chart {
	c := &chart{Title: "Memory", Unit: "MiB"}
	c.add("free", "free", false, samples, func(s job.Sample) float64 { return float64(s.FreeKB) / 1024 })
	c.add("dirty", "dirty", false, samples, func(s job.Sample) float64 { return float64(s.DirtyKB) / 1024 })
	c.add("writeback", "in write-back", false, samples, func(s job.Sample) float64 { return float64(s.WritebackKB) / 1024 })
	return c
}

func progressChart(samples []job.Sample) *chart {
	c := &chart{Title: "Progress", Unit: "MiB written"}
	from := append([]job.Sample{{}}, samples...)
	c.add("progress", "accepted from the writers", true, from, func(s job.Sample) float64 { return mib(s.Bytes) })
	return c
}

func reclaimChart(samples []job.Sample) *chart {
	c := &chart{Title: "Search for memory", Unit: "pages per second"}
	scans := make([]point, len(samples))
	throttled := mark{Class: "throttle", Name: "made to wait for it"}
	killed := mark{Class: "oom", Name: "OOM kill"}
	before := job.Sample{}
	for i, s := range samples {
		scans[i] = point{s.Seconds, float64(s.DirectScans-before.DirectScans) / max(s.Seconds-before.Seconds, 0.001)}
		if s.Throttle > before.Throttle {
			throttled.X = append(throttled.X, s.Seconds)
		}
		if s.OOMKills > before.OOMKills {
			killed.X = append(killed.X, s.Seconds)
		}
		before = s
	}
	c.Lines = append(c.Lines, line{Class: "scans", Name: "looked at in direct reclaim", Area: "yes", points: scans})
	for _, m := range []mark{throttled, killed} {
		if len(m.X) > 0 {
			c.Marks = append(c.Marks, m)
		}
	}
	return c
}

func (c *chart) add(class, name string, filled bool, samples []job.Sample, value func(job.Sample) float64) {
	l := line{Class: class, Name: name}
	if filled {
		l.Area = "yes"
	}
	for _, s := range samples {
		l.points = append(l.points, point{s.Seconds, value(s)})
	}
	c.Lines = append(c.Lines, l)
}

// still returns the longest time in which the writers got no further, if it is
// the stall that the run reports: after its end a run stands still as well.
func (r *run) still() *band {
	if r.StallMs < stillMs {
		return nil
	}
	longest, since, bytes := band{}, 0.0, int64(0)
	for _, s := range r.Timeline {
		if s.Bytes > bytes {
			since, bytes = s.Seconds, s.Bytes
		}
		if s.Seconds-since > longest.to-longest.from {
			longest = band{from: since, to: s.Seconds}
		}
	}
	if longest.to-longest.from < stillMs/1000.0 {
		return nil
	}
	longest.Text = fmt.Sprintf("no progress: %.1f s", longest.to-longest.from)
	return &longest
}

// finish turns values into shapes, once all of them are known.
func (c *chart) finish(samples []job.Sample, still *band) {
	c.seconds = max(samples[len(samples)-1].Seconds, 1)
	step := niceStep(c.largest(), wantedTicks-1)
	c.top = step * math.Ceil(c.largest()/step)
	for v := 0.0; v <= c.top+step/2; v += step {
		c.YTicks = append(c.YTicks, tick{c.y(v), tickText(v)})
	}
	step = niceStep(c.seconds, wantedTicks)
	for s := 0.0; s <= c.seconds; s += step {
		c.XTicks = append(c.XTicks, tick{c.x(s), tickText(s)})
	}
	for i := range c.Lines {
		c.draw(&c.Lines[i])
	}
	for _, m := range c.Marks {
		for i := range m.X {
			m.X[i] = c.x(m.X[i])
		}
	}
	if still != nil {
		b := *still
		b.X, b.W = c.x(b.from), round1(c.x(b.to)-c.x(b.from))
		c.Still = &b
	}
}

func (c *chart) largest() float64 {
	largest := 1.0
	for _, l := range c.Lines {
		for _, p := range l.points {
			largest = max(largest, p.v)
		}
	}
	return largest
}

func (c *chart) draw(l *line) {
	var b strings.Builder
	for _, p := range l.points {
		fmt.Fprintf(&b, "%g,%g ", c.x(p.s), c.y(p.v))
	}
	l.Points = strings.TrimSpace(b.String())
	if l.Area != "" {
		l.Area = fmt.Sprintf("%g,%d %s %g,%d", c.x(l.points[0].s), plotBottom, l.Points, c.x(l.points[len(l.points)-1].s), plotBottom)
	}
}

func (c *chart) x(s float64) float64 { return round1(plotLeft + plotWidth*s/c.seconds) }

func (c *chart) y(v float64) float64 { return round1(plotBottom - plotHeight*max(v, 0)/c.top) }

// niceStep returns a distance of 1, 2 or 5 times a power of ten that divides
// upTo into at most n.
func niceStep(upTo float64, n int) float64 {
	rough := upTo / float64(n)
	power := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, f := range []float64{1, 2, 5} {
		if f*power >= rough {
			return f * power
		}
	}
	return 10 * power
}

// tickText writes a number in few characters.
func tickText(v float64) string {
	switch {
	case v >= 1e9:
		return fmt.Sprintf("%.0e", v)
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%g", math.Round(v*1000)/1000)
}
