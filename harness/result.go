package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"loopnfs/harness/vm/job"
)

// Outcome is how a run ended.
type Outcome string

// The outcomes.
const (
	// Survived: finished, and every acknowledged byte was there afterwards.
	Survived Outcome = "survived"
	// Hung: stopped for good; Cycle says in what circle.
	Hung Outcome = "hung"
	// Collapsed: still moving, but below a tenth of the same workload without
	// pressure.
	Collapsed Outcome = "collapsed"
	// Failed: wrong data, or the drill itself broke.
	Failed Outcome = "failed"
)

// Result is what one run of a drill showed; its JSON form is an interface.
type Result struct {
	Drill        string   `json:"drill"`
	Tier         Tier     `json:"tier"`
	Server       string   `json:"server"`
	Kernel       string   `json:"kernel"`
	Without      string   `json:"without"`
	Outcome      Outcome  `json:"outcome"`
	Expected     Outcome  `json:"expected"`
	Cycle        []string `json:"cycle"`
	Seconds      float64  `json:"seconds"`
	Bytes        int64    `json:"bytes"`
	MaxLatencyMs int64    `json:"max_latency_ms"`
	DataVerified bool     `json:"data_verified"`
	Seed         int64    `json:"seed"`
	// What only the vm tier measures: rates in bytes per second, the longest
	// time in which no writer got further, and whom the OOM killer took.
	Rate         float64      `json:"rate,omitempty"`
	BaselineRate float64      `json:"baseline_rate,omitempty"`
	StallMs      int64        `json:"stall_ms,omitempty"`
	OOMKills     int64        `json:"oom_kills,omitempty"`
	Killed       []string     `json:"killed,omitempty"`
	Stacks       []job.Stack  `json:"stacks,omitempty"`
	Notes        []string     `json:"notes,omitempty"`
	Timeline     []job.Sample `json:"timeline,omitempty"`
	// What only the cluster tier measures: the faults, how many changes were answered,
	// and how many of these were lost, or applied twice.
	Takeovers []Takeover `json:"takeovers,omitempty"`
	Promises  int        `json:"promises,omitempty"`
	Lost      int        `json:"lost,omitempty"`
	Twice     int        `json:"twice,omitempty"`
	// Error says what broke, if something did.
	Error string `json:"error,omitempty"`
}

// AsDocumented reports whether the run came out as the drill documents.
func (r *Result) AsDocumented() bool {
	switch r.Expected {
	case "": // nothing is documented
		return r.Error == ""
	case Survived:
		return r.Outcome == Survived && r.DataVerified
	}
	return (r.Outcome == Hung || r.Outcome == Collapsed) && r.Error == ""
}

// WriteJSON writes results as an array of objects.
func WriteJSON(w io.Writer, results []Result) error {
	if results == nil {
		results = []Result{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(results)
}

// maxJSON bounds what ReadJSON takes.
const maxJSON = 256 << 20

// ReadJSON reads what WriteJSON has written. Fields that it does not know are
// ignored; that they make sense is not checked.
func ReadJSON(r io.Reader) ([]Result, error) {
	limited := &io.LimitedReader{R: r, N: maxJSON + 1}
	var results []Result
	err := json.NewDecoder(limited).Decode(&results)
	if limited.N == 0 {
		return nil, fmt.Errorf("more than %d MiB of results", maxJSON>>20)
	}
	return results, err
}

// WriteTable writes results for a person: a line per run, and below it the
// circle of waits of those that hung.
func WriteTable(w io.Writer, results []Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "drill\ton\twithout\toutcome\texpected\ttime\tacknowledged\tworst latency\tdata")
	for i := range results {
		r := &results[i]
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%.1f s\t%.1f MiB\t%.1f s\t%s\n",
			r.Drill, r.on(), orDash(r.Without), r.Outcome, orDash(string(r.Expected)), r.Seconds,
			float64(r.Bytes)/(1<<20), float64(r.MaxLatencyMs)/1000, r.data())
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if err := writeTakeovers(w, results); err != nil {
		return err
	}
	for i := range results {
		results[i].writeWhy(w)
	}
	return nil
}

// on says what the drill ran on.
func (r *Result) on() string {
	if r.Kernel == "" {
		return r.Server
	}
	return r.Server + ", Linux " + r.Kernel
}

// name names the run in a sentence.
func (r *Result) name() string {
	if r.Kernel == "" {
		return r.Drill + withoutWords(r.Without)
	}
	return fmt.Sprintf("%s on %s%s", r.Drill, r.on(), withoutWords(r.Without))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (r *Result) data() string {
	switch {
	case r.DataVerified:
		return "verified"
	case r.Outcome == Hung || r.Outcome == Collapsed:
		return "-"
	default:
		return "NOT verified"
	}
}

func (r *Result) writeWhy(w io.Writer) {
	if len(r.Cycle) > 0 {
		fmt.Fprintf(w, "\n%s hung, because\n", r.name())
		for _, edge := range r.Cycle {
			fmt.Fprintf(w, "  %s\n", edge)
		}
		fmt.Fprintln(w, "  and so on, round and round.")
	}
	if r.Error != "" {
		fmt.Fprintf(w, "\n%s: %s\n", r.name(), strings.TrimSpace(r.Error))
	}
	if len(r.Notes) > 0 || len(r.Killed) > 0 {
		fmt.Fprintf(w, "\n%s:\n", r.name())
		for _, n := range r.Notes {
			fmt.Fprintf(w, "  %s\n", n)
		}
	}
	if len(r.Killed) > 0 {
		fmt.Fprintf(w, "  the OOM killer took: %s\n", strings.Join(r.Killed, ", "))
	}
}

func withoutWords(m string) string {
	if m == "" {
		return ""
	}
	return " without " + m
}
