// Package report turns the results of drills into one HTML page for people: what
// happened, on what, and why. The page needs no network and no script; it reads
// on a phone, in the dark and on paper.
//
// Results go in, HTML comes out; nothing here runs anything:
//
//	[]harness.Result ──► bounded copies ──► tables, runs, rings, charts ──► template
//
// Results may come from files, so their text is cut to size and stripped of what
// does not print, and everything passes html/template, SVG included: no string is
// ever marked as safe. The charts are drawn here and not by a plotting library,
// for they take their colours from the page's style sheet, where a library writes
// its own, and a few polylines are less code than the library's set-up.
package report
