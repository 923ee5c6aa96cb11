package main

import (
	"fmt"
	"slices"
	"strings"

	"loopnfs/internal/doctor"
)

// reportText writes a report for people: what was done, the findings by what they
// are about, what could not be seen, and the verdict on the last line.
func reportText(r *doctor.Report) string {
	var b strings.Builder
	writeFixed(&b, r.Fixed)
	k := &r.Kernel
	writeGroup(&b, r, doctor.SubjectKernel, "kernel "+doctor.Printable(k.Release)+inBrackets(doctor.Printable(k.Package)))
	for i := range r.Mounts {
		m := &r.Mounts[i]
		writeGroup(&b, r, m.Key(), mountTitle(r, m))
	}
	for i := range r.Servers {
		s := &r.Servers[i]
		writeGroup(&b, r, s.Key(), serverTitle(s))
	}
	for _, subject := range []string{doctor.SubjectMemory, doctor.SubjectSwap, doctor.SubjectSuspend} {
		if slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool { return f.Subject == subject }) {
			writeGroup(&b, r, subject, subject)
		}
	}
	if len(r.Unseen) > 0 {
		b.WriteString("could not be seen\n")
		for _, what := range r.Unseen {
			fmt.Fprintln(&b, "  "+doctor.Printable(what))
		}
		b.WriteByte('\n')
	}
	b.WriteString(verdict(r) + "\n")
	return b.String()
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// writeGroup writes the findings about one thing.
func writeGroup(b *strings.Builder, r *doctor.Report, subject, title string) {
	fmt.Fprintln(b, title)
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Subject != subject {
			continue
		}
		writeFinding(b, f)
	}
	b.WriteByte('\n')
}

// writeFinding writes the reason and the remedy only of what is not well.
func writeFinding(b *strings.Builder, f *doctor.Finding) {
	writeWrapped(b, fmt.Sprintf("  %-8s ", f.Severity), f.What)
	if f.Severity == doctor.OK {
		return
	}
	writeWrapped(b, "           why:  ", f.Why)
	for _, line := range f.Remedy {
		if advice, ok := strings.CutPrefix(line, "# "); ok {
			writeWrapped(b, "           do:   ", advice)
		} else { // in one line, to be copied
			fmt.Fprintln(b, "           type: "+line)
		}
	}
}

// writeWrapped writes text in lines of 96 columns that begin below the first.
func writeWrapped(b *strings.Builder, first, text string) {
	const width = 96
	at := len(first)
	b.WriteString(first)
	for i, word := range strings.Fields(text) {
		switch {
		case i > 0 && at+1+len(word) > width:
			b.WriteString("\n" + strings.Repeat(" ", len(first)))
			at = len(first)
		case i > 0:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	b.WriteByte('\n')
}

func mountTitle(r *doctor.Report, m *doctor.Mount) string {
	const shown = 3
	paths := strings.Join(m.Paths[:min(len(m.Paths), shown)], ", ")
	if n := len(m.Paths) - shown; n > 0 {
		paths += fmt.Sprintf(" and %d more", n)
	}
	title := fmt.Sprintf("mount %s of %s", paths, m.Source)
	if m.Process != 0 {
		title += fmt.Sprintf(" in the mount namespace of process %d", m.Process)
	}
	title += fmt.Sprintf(": NFSv%s, %s port %d of %s, ", m.Version, m.Transport, m.Port, m.Address)
	if !m.Loopback {
		return doctor.Printable(title + "another host")
	}
	var servers []string
	for i := range r.Servers {
		if s := &r.Servers[i]; slices.Contains(m.Servers, s.Key()) {
			servers = append(servers, serverName(s))
		}
	}
	title += "loop-back"
	if len(servers) > 0 {
		title += ", served by " + strings.Join(servers, ", ")
	}
	return doctor.Printable(title)
}

func serverName(s *doctor.Server) string {
	if s.Kernel() {
		return s.Name
	}
	return fmt.Sprintf("%s (process %d)", s.Name, s.PID)
}

func serverTitle(s *doctor.Server) string {
	title := "server " + serverName(s) + inBrackets(s.Unit)
	if !s.Loopback {
		title += ": no mount of this host is served by it"
	}
	return doctor.Printable(title)
}

func writeFixed(b *strings.Builder, fixed []doctor.Fixed) {
	if len(fixed) == 0 {
		return
	}
	b.WriteString("changed\n")
	var permanent []string
	for _, f := range fixed {
		if f.Error != "" {
			fmt.Fprintf(b, "  %s is %s still: %s\n", f.Path, doctor.Printable(f.Old), f.Error)
			continue
		}
		fmt.Fprintf(b, "  %s: %s, was %s\n", f.Path, doctor.Printable(f.New), doctor.Printable(f.Old))
		if !slices.Contains(permanent, f.Permanent) {
			permanent = append(permanent, f.Permanent)
		}
	}
	if len(permanent) > 0 {
		b.WriteString("to have that after the next start, too, type\n  " + strings.Join(permanent, "\n  ") + "\n")
	}
	b.WriteByte('\n')
}

// verdict is the last line.
func verdict(r *doctor.Report) string {
	v := "verdict: "
	switch n := r.Count(doctor.Danger); {
	case n > 0:
		v += "not safe: " + count(n, "danger") + ", " + count(r.Count(doctor.Warning), "warning")
	case r.Count(doctor.Warning) > 0:
		v += "no danger was found, " + count(r.Count(doctor.Warning), "warning")
	case len(r.Unseen) > 0:
		v += "nothing was found"
	default:
		v += "safe"
	}
	if n := r.Loopbacks(); n == 0 {
		v += "; there is no loop-back mount now"
	} else {
		v += "; " + count(n, "loop-back mount")
	}
	if len(r.Unseen) > 0 {
		v += "; not everything could be seen"
	}
	return v
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
