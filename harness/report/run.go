package report

import (
	"fmt"
	"slices"
	"strings"

	"loopnfs/harness"
)

// outcomes are those there are, from best to worst.
var outcomes = []harness.Outcome{harness.Survived, harness.Collapsed, harness.Hung, harness.Failed}

// run is one result, as it is shown.
type run struct {
	*harness.Result
	ID   string
	Open bool   // not folded
	Nth  string // of how many runs of the same thing
}

func newRuns(results []harness.Result) []*run {
	var runs []*run
	for i := range results {
		runs = append(runs, &run{Result: clean(&results[i]), ID: fmt.Sprintf("run-%d", i+1)})
	}
	return runs
}

// Class is the outcome as a name in the style sheet.
func (r *run) Class() string {
	if slices.Contains(outcomes, r.Outcome) {
		return string(r.Outcome)
	}
	return string(harness.Failed)
}

// badness orders runs by outcome.
func (r *run) badness() int { return slices.Index(outcomes, harness.Outcome(r.Class())) }

// On says what the run was on.
func (r *run) On() string {
	if r.Kernel == "" {
		return r.Server
	}
	return r.Server + " on Linux " + r.Kernel
}

// Off says which mechanisms were switched off; empty if none was.
func (r *run) Off() string {
	if r.Without == "" {
		return ""
	}
	return "without " + strings.ReplaceAll(r.Without, ",", ", ")
}

// Story says in a sentence how it went; empty if the error says it.
func (r *run) Story() string {
	if r.Tier == harness.TierCluster {
		return r.clusterStory()
	}
	bytes := r.Bytes // acknowledged
	if n := len(r.Timeline); n > 0 && r.Outcome != harness.Survived {
		bytes = r.Timeline[n-1].Bytes
	}
	written := mebibytes(bytes)
	switch r.Outcome {
	case harness.Survived:
		return fmt.Sprintf("Wrote %s under pressure and finished.", written)
	case harness.Hung:
		return fmt.Sprintf("Wrote %s, then nothing moved any more.", written)
	case harness.Collapsed:
		return fmt.Sprintf("Wrote %s, and went on at less than a tenth of the usual rate.", written)
	}
	return ""
}

// Verdict holds the outcome against what is documented.
func (r *run) Verdict() string {
	switch {
	case r.Expected == "":
		return "nothing documented"
	case r.AsDocumented():
		return "as documented"
	}
	return "documented: " + string(r.Expected)
}

// fact is one thing measured.
type fact struct {
	Name, Value, Note string
	Bad               bool
}

// Facts are what was measured.
func (r *run) Facts() []fact {
	if r.Tier == harness.TierCluster {
		return r.clusterFacts()
	}
	facts := []fact{r.timeFact(), r.rateFact(), r.stallFact()}
	if r.Tier == harness.TierVM {
		facts = append(facts, r.oomFact())
	}
	return append(facts, r.dataFact())
}

func (r *run) timeFact() fact {
	f := fact{Name: "Time", Value: fmt.Sprintf("%.1f s", r.Seconds)}
	if r.Tier == harness.TierVM {
		f.Note = "by the guest's clock"
	}
	return f
}

func (r *run) rateFact() fact {
	switch {
	case r.Rate == 0:
		return fact{Name: "Acknowledged", Value: mebibytes(r.Bytes)}
	case r.BaselineRate == 0:
		return fact{Name: "Rate", Value: megabytes(r.Rate)}
	}
	return fact{
		Name: "Rate", Value: megabytes(r.Rate),
		Note: fmt.Sprintf("%s × %s, the rate without pressure", ratio(r.Rate/r.BaselineRate), megabytes(r.BaselineRate)),
	}
}

func (r *run) stallFact() fact {
	call := fmt.Sprintf("longest call %s", seconds(r.MaxLatencyMs))
	if r.Tier != harness.TierVM {
		return fact{Name: "Longest call", Value: seconds(r.MaxLatencyMs)}
	}
	if r.StallMs == 0 {
		return fact{Name: "Worst stall", Value: "none seen", Note: call}
	}
	return fact{Name: "Worst stall", Value: seconds(r.StallMs), Note: call}
}

func (r *run) oomFact() fact {
	if r.OOMKills == 0 && len(r.Killed) == 0 {
		return fact{Name: "OOM kills", Value: "none"}
	}
	n := max(r.OOMKills, int64(len(r.Killed)))
	return fact{Name: "OOM kills", Value: fmt.Sprint(n), Note: strings.Join(r.Killed, ", "), Bad: true}
}

func (r *run) dataFact() fact {
	switch {
	case r.DataVerified:
		return fact{Name: "Data", Value: "verified", Note: "after unmount and remount"}
	case r.Outcome == harness.Hung || r.Outcome == harness.Collapsed:
		return fact{Name: "Data", Value: "not checked", Note: "it did not get that far"}
	}
	return fact{Name: "Data", Value: "NOT verified", Bad: true}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

func mebibytes(bytes int64) string { return fmt.Sprintf("%.1f MiB", mib(bytes)) }

func megabytes(rate float64) string { return fmt.Sprintf("%.1f MB/s", rate/1e6) }

func seconds(ms int64) string { return fmt.Sprintf("%.1f s", float64(ms)/1000) }

func ratio(f float64) string {
	if f < 0.1 {
		return fmt.Sprintf("%.2f", f)
	}
	return fmt.Sprintf("%.1f", f)
}
