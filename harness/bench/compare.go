package main

import "fmt"

// What is printed below the table when all rows are there.

// eachRow calls do with the lines of a row, one for each server, from the first row on.
func (r *report) eachRow(do func(lines []line)) {
	for i := 0; i < len(r.lines); i += len(r.servers) {
		do(r.lines[i : i+len(r.servers)])
	}
}

// printLatencies tells how long calls took.
func (r *report) printLatencies() {
	fmt.Fprintf(r.out, "\n%-51s", "how long a call took, µs: p50 / p99 / p99.9")
	for _, s := range r.servers {
		fmt.Fprintf(r.out, " %18s", s.name)
	}
	fmt.Fprintln(r.out)
	r.eachRow(func(lines []line) {
		text, any := "", false
		for i := range lines {
			l := &lines[i]
			any = any || l.result != nil && l.P999 > 0
			text += fmt.Sprintf(" %18s", l.latency())
		}
		if any {
			fmt.Fprintf(r.out, "%-51s%s\n", lines[0].Row, text)
		}
	})
}

func (l *line) latency() string {
	if l.result == nil || l.P999 == 0 {
		return "-"
	}
	return number(l.P50) + " / " + number(l.P99) + " / " + number(l.P999)
}

// printRatios tells how often the first server is as fast as each other one, and as TCP.
func (r *report) printRatios() {
	fmt.Fprintf(r.out, "\n%-51s", r.servers[0].name+" is so many times as fast as")
	for _, s := range r.servers[1:] {
		fmt.Fprintf(r.out, " %18s", s.name)
	}
	if !r.b.mounts {
		fmt.Fprintf(r.out, " %10s", "TCP limit")
	}
	fmt.Fprintln(r.out)
	r.eachRow(func(lines []line) {
		first := lines[0].worth()
		fmt.Fprintf(r.out, "%-51s", lines[0].Row)
		for i := range lines[1:] {
			fmt.Fprintf(r.out, " %18s", ratio(first, lines[1+i].worth()))
		}
		if limit := lines[0].limit; limit > 0 && !r.b.mounts {
			fmt.Fprintf(r.out, " %10s", ratio(first, limit))
		}
		fmt.Fprintln(r.out)
	})
}

func ratio(a, b float64) string {
	if a == 0 || b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}
