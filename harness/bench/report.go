package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

// line is one row for one server, as it goes to a file.
type line struct {
	Row     string  `json:"row"`
	Axis    string  `json:"axis,omitempty"` // with -scale, the load, and
	At      int64   `json:"at,omitempty"`   // how much there is of what grows
	Server  string  `json:"server"`
	Unit    string  `json:"unit"`
	*result         // absent if it failed
	Error   string  `json:"error,omitempty"`
	PeakMiB float64 `json:"peak_rss_mib"`
	Limits  limits  `json:"limits"`
	Commit  string  `json:"commit,omitempty"`
	Machine string  `json:"machine"`
	Time    string  `json:"time"`
	limit   float64 // the one of Limits that the row has; 0 for none
}

// report prints rows as they come and remembers them.
type report struct {
	b       *bench
	out     io.Writer
	servers []*server
	row     *row
	lim     limits
	lines   []line
	machine string
}

func newReport(b *bench, servers []*server) *report {
	r := &report{b: b, out: os.Stdout, servers: servers, machine: machine()}
	fmt.Fprintf(r.out, "%s; %d connection(s); a file of %d MiB; in brackets the server's CPU per operation, in µs\n", r.machine, b.conns, b.size>>20)
	fmt.Fprintf(r.out, "%-45s %5s", "", "")
	for _, s := range servers {
		fmt.Fprintf(r.out, " %18s", s.name)
	}
	fmt.Fprintf(r.out, " %10s\n", "TCP limit")
	return r
}

// machine says where this runs.
func machine() string {
	model := ""
	text, _ := os.ReadFile("/proc/cpuinfo")
	for l := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = ", " + strings.TrimSpace(value)
			break
		}
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d CPUs%s, Linux %s", runtime.NumCPU(), model, strings.TrimSpace(string(release)))
}

func (r *report) begin(w *row, lim limits) {
	if w.axis != "" && (r.row == nil || w.axis != r.row.axis) {
		fmt.Fprintln(r.out, w.axis)
	}
	r.row, r.lim = w, lim
	fmt.Fprintf(r.out, "%-45s %5s", w.name, w.unit)
}

// limit is the TCP limit that a row has; 0 for none.
func (w *row) limit(l limits) float64 {
	switch {
	case w.axis != "":
		return 0
	case w.unit == "MB/s":
		return l.Stream
	case w.unit != "1/s" || strings.Contains(w.name, "FILE_SYNC") || strings.Contains(w.name, "10k files"):
		return 0
	case strings.HasSuffix(w.name, " 1 outstanding"):
		return l.Round
	}
	return l.Batched
}

func (r *report) add(s *server, res *result, peak int64, err error) {
	l := line{Row: r.row.name, Axis: r.row.axis, At: r.row.at, Server: s.name, Unit: r.row.unit, result: res, PeakMiB: float64(peak) / (1 << 20),
		Limits: r.lim, limit: r.row.limit(r.lim), Commit: r.b.commit, Machine: r.machine, Time: time.Now().UTC().Format(time.RFC3339)}
	if err != nil {
		l.Error, l.result = err.Error(), nil
	}
	r.lines = append(r.lines, l)
	fmt.Fprintf(r.out, " %18s", l.cell())
}

func (l *line) cell() string {
	switch {
	case l.result == nil && l.Error == "":
		return "-"
	case l.result == nil:
		return "failed"
	case l.MicrosCPU == 0:
		return number(l.Value)
	}
	return fmt.Sprintf("%s [%.3g]", number(l.Value), l.MicrosCPU)
}

func number(v float64) string {
	switch {
	case v >= 10_000_000:
		return fmt.Sprintf("%.0fM", v/1e6)
	case v >= 10_000:
		return fmt.Sprintf("%.0fk", v/1000)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func (r *report) end() {
	limit := ""
	if l := r.row.limit(r.lim); l > 0 {
		limit = number(l)
	}
	fmt.Fprintf(r.out, " %10s\n", limit)
	for i := len(r.lines) - len(r.servers); i < len(r.lines); i++ {
		if e := r.lines[i].Error; e != "" {
			fmt.Fprintf(r.out, "  %s: %s\n", r.lines[i].Server, e)
		}
	}
}

// finish prints what compares the rows and writes the files that were asked for.
func (r *report) finish() error {
	fmt.Fprintf(r.out, "%-45s %5s", "peak resident memory of all rows", "MiB")
	for _, s := range r.servers {
		peak := 0.0
		for i := range r.lines {
			if r.lines[i].Server == s.name {
				peak = max(peak, r.lines[i].PeakMiB)
			}
		}
		fmt.Fprintf(r.out, " %18s", number(peak))
	}
	fmt.Fprintln(r.out)
	if !r.b.scale && len(r.lines) > 0 {
		r.printLatencies()
		r.printRatios()
	}
	return errors.Join(r.writeJSON(), r.draw())
}

func (r *report) writeJSON() error {
	if r.b.json == "" {
		return nil
	}
	f, err := os.OpenFile(r.b.json, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	for i := range r.lines {
		err = errors.Join(err, e.Encode(&r.lines[i]))
	}
	return errors.Join(err, f.Close())
}
