package doctor

import "fmt"

// Severity is how bad a finding is.
type Severity int

// The severities. With a danger, a loop-back mount can stand still for good.
const (
	OK Severity = iota
	Note
	Warning
	Danger
)

var severities = []string{"ok", "note", "warning", "danger"}

func (s Severity) String() string { return severities[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is one thing that speaks for or against the host.
type Finding struct {
	// ID is the name of the rule, and does not change.
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Subject is what it is about: "kernel", "memory", "swap", "suspend", or the
	// Key of a Mount or Server.
	Subject string `json:"subject"`
	// What was found, with the values, and Why it matters.
	What string `json:"what"`
	Why  string `json:"why"`
	// Remedy is what to type, a line each; a line that begins with # is advice.
	Remedy []string `json:"remedy,omitempty"`
	// Changes are what Fix does about it.
	Changes []Change `json:"-"`
}

// Change is a value that can be set while everything runs.
type Change struct {
	Path string // absolute
	New  string
	// Permanent is what to type to have it after the next start, too.
	Permanent string
}

// Report is the result of an examination.
type Report struct {
	Facts
	Findings []Finding `json:"findings"`
	// Fixed is what Fix did before this report was made.
	Fixed []Fixed `json:"fixed,omitempty"`
	// Verdict is the worst of all severities.
	Verdict Severity `json:"verdict"`
}

// Examine looks at the host and judges it.
func Examine(h *Host) (*Report, error) {
	facts, err := Look(h)
	if err != nil {
		return nil, err
	}
	return Judge(facts), nil
}

// Count returns how many findings have the severity.
func (r *Report) Count(s Severity) (n int) {
	for i := range r.Findings {
		if r.Findings[i].Severity == s {
			n++
		}
	}
	return n
}

// Loopbacks returns how many mounts are loop-back ones.
func (f *Facts) Loopbacks() (n int) {
	for i := range f.Mounts {
		if f.Mounts[i].Loopback {
			n++
		}
	}
	return n
}

// sizeOf writes a number of bytes for people.
func sizeOf(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
