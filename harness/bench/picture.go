package main

import (
	"fmt"
	"html"
	"os"
	"strings"
)

// Sizes of the picture, in pixels.
const (
	picWidth, labelWidth, barWidth = 900, 330, 430
	barHeight, rowGap, topHeight   = 15, 14, 64
)

var barColours = []string{"#2563eb", "#f59e0b", "#10b981", "#a855f7", "#64748b", "#dc2626", "#0891b2"}

// draw writes a picture: for each row, the servers beside the best of them, or with -scale
// a panel for each thing that grows.
func (r *report) draw() error {
	if r.b.picture == "" {
		return nil
	}
	var b strings.Builder
	y := topHeight
	if r.b.scale {
		y = r.drawPanels(&b, y)
	} else {
		for i := 0; i < len(r.lines); i += len(r.servers) {
			y = drawRow(&b, r.lines[i:i+len(r.servers)], y) + rowGap
		}
	}
	var head strings.Builder
	fmt.Fprintf(&head, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`, picWidth, y)
	fmt.Fprintf(&head, `<rect width="100%%" height="100%%" fill="white"/><text x="10" y="20" font-size="15" font-weight="bold">%s</text>`, r.title())
	fmt.Fprintf(&head, `<text x="10" y="38" fill="#475569">%s; %s</text>`, html.EscapeString(shortRelease(r.machine)), r.howToRead())
	x := labelWidth
	for i, s := range r.servers {
		fmt.Fprintf(&head, `<rect x="%d" y="46" width="11" height="11" fill="%s"/><text x="%d" y="56">%s</text>`,
			x, barColours[i%len(barColours)], x+16, html.EscapeString(s.name))
		x += 40 + 8*len(s.name)
	}
	return os.WriteFile(r.b.picture, []byte(head.String()+b.String()+"</svg>\n"), 0o644)
}

func (r *report) title() string {
	switch {
	case r.b.mounts:
		return "FUSE mounts side by side"
	case r.b.scale:
		return "NFSv3 servers with more and more to do"
	}
	return "NFSv3 servers side by side"
}

func (r *report) howToRead() string {
	if r.b.scale {
		return "higher is better, and flat is best"
	}
	return "longer is better, and the best of a row fills it"
}

// drawRow draws one row from y down and returns where it ends.
func drawRow(b *strings.Builder, lines []line, y int) int {
	best := 0.0
	for i := range lines {
		best = max(best, lines[i].worth())
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-10, y+12, html.EscapeString(lines[0].Row))
	for i := range lines {
		l := &lines[i]
		if l.result == nil && l.Error == "" {
			continue // it cannot do that at all
		}
		width := 0.0
		if best > 0 {
			width = l.worth() / best * barWidth
		}
		text := l.cell()
		if l.result != nil {
			text = strings.Replace(number(l.Value)+" "+l.Unit, " 1/", "/", 1)
		}
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d" fill="#334155">%s</text>`,
			labelWidth, y, width, barHeight-2, barColours[i%len(barColours)], labelWidth+width+6, y+11, text)
		y += barHeight
	}
	return y
}

// shortRelease leaves away what a distribution adds to the version of its kernel.
func shortRelease(machine string) string {
	if i := strings.LastIndex(machine, "Linux "); i >= 0 {
		release, _, _ := strings.Cut(machine[i:], "-")
		return machine[:i] + release
	}
	return machine
}

// worth is larger the better the result is.
func (l *line) worth() float64 {
	switch {
	case l.result == nil || l.Value == 0:
		return 0
	case l.Unit == "s":
		return 1 / l.Value
	}
	return l.Value
}
