package report

import (
	"math"
	"strings"
	"unicode"
	"unicode/utf8"

	"loopnfs/harness"
	"loopnfs/harness/vm/job"
)

// Limits of what is shown of one result.
const (
	maxName    = 80
	maxText    = 4000
	maxLines   = 40 // of a cycle, of notes, and of processes killed
	maxStacks  = 64
	maxFrames  = 64
	maxSamples = 600
	// maxNumber is beyond every size and time, in any unit.
	maxNumber = 1 << 50
)

// clean returns a copy of r that is fit to be shown: bounded, and without
// characters that do not print or that turn text around.
func clean(r *harness.Result) *harness.Result {
	c := *r
	for _, s := range []*string{&c.Drill, &c.Server, &c.Kernel, (*string)(&c.Tier), (*string)(&c.Outcome), (*string)(&c.Expected)} {
		*s = cleanText(*s, maxName)
	}
	c.Without, c.Error = cleanText(r.Without, 2*maxName), cleanText(r.Error, maxText)
	c.Cycle, c.Notes = cleanLines(r.Cycle, maxText), cleanLines(r.Notes, maxText)
	c.Killed = cleanLines(r.Killed, maxName)
	c.Seconds, c.Rate, c.BaselineRate = bounded(r.Seconds), bounded(r.Rate), bounded(r.BaselineRate)
	for _, n := range []*int64{&c.Bytes, &c.MaxLatencyMs, &c.StallMs, &c.OOMKills} {
		*n = boundedInt(*n)
	}
	c.Promises, c.Lost, c.Twice = max(r.Promises, 0), max(r.Lost, 0), max(r.Twice, 0)
	c.Takeovers = cleanTakeovers(r.Takeovers)
	c.Stacks = cleanStacks(r.Stacks)
	c.Timeline = cleanTimeline(r.Timeline)
	return &c
}

func cleanText(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) && r != '\n' {
			return '\uFFFD'
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit] + " …"
}

func cleanLines(lines []string, limit int) []string {
	var kept []string
	for _, l := range lines[:min(len(lines), maxLines)] {
		kept = append(kept, cleanText(l, limit))
	}
	return kept
}

func cleanStacks(stacks []job.Stack) []job.Stack {
	var kept []job.Stack
	for _, s := range stacks[:min(len(stacks), maxStacks)] {
		c := job.Stack{PID: s.PID, Comm: cleanText(s.Comm, maxName)}
		for _, f := range s.Frames[:min(len(s.Frames), maxFrames)] {
			c.Frames = append(c.Frames, cleanText(f, maxName))
		}
		kept = append(kept, c)
	}
	return kept
}

// cleanTimeline returns at most maxSamples of samples, evenly, in which time goes
// forward.
func cleanTimeline(samples []job.Sample) []job.Sample {
	var kept []job.Sample
	step := max(1, (len(samples)+maxSamples-1)/maxSamples)
	for i := 0; i < len(samples); i += step {
		s := samples[i]
		if s.Seconds = bounded(s.Seconds); len(kept) > 0 && s.Seconds <= kept[len(kept)-1].Seconds {
			continue
		}
		for _, n := range []*int64{&s.FreeKB, &s.DirtyKB, &s.WritebackKB, &s.Bytes, &s.DirectScans, &s.OOMKills, &s.Throttle} {
			*n = boundedInt(*n)
		}
		kept = append(kept, s)
	}
	return kept
}

func bounded(f float64) float64 {
	if math.IsNaN(f) {
		return 0
	}
	return min(max(f, 0), maxNumber)
}

func boundedInt(n int64) int64 { return min(max(n, 0), maxNumber) }
