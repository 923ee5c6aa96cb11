package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Sizes of a panel, in pixels: of its place, and of the area that has the curves.
const (
	panelWidth, panelHeight = 450, 240
	plotLeft, plotTop       = 40, 34
	plotWidth, plotHeight   = 370, 150
)

// panel is one thing that grows, for all servers.
type panel struct {
	lines  []line // point by point, each server's
	x0, x1 float64
	top    float64
}

// drawPanels draws the points of each axis, two axes beside each other, and returns where
// they end.
func (r *report) drawPanels(b *strings.Builder, y int) int {
	column := 0
	for i := 0; i < len(r.lines); {
		j := i + 1
		for j < len(r.lines) && r.lines[j].Axis == r.lines[i].Axis && label(&r.lines[j]) == label(&r.lines[i]) {
			j++
		}
		r.drawPanel(b, r.lines[i:j], column*panelWidth, y)
		if column = 1 - column; column == 0 {
			y += panelHeight
		}
		i = j
	}
	return y + column*panelHeight
}

// label is what grows: the name of the row without how much of it there is.
func label(l *line) string {
	name, _, _ := strings.Cut(l.Row, ":")
	return name
}

func (r *report) drawPanel(b *strings.Builder, lines []line, x, y int) {
	p := &panel{lines: lines, x0: math.Log(float64(lines[0].At)), x1: math.Log(float64(lines[len(lines)-1].At))}
	for i := range lines {
		p.top = max(p.top, lines[i].worth())
	}
	p.top = max(p.top, 1)
	fmt.Fprintf(b, `<g transform="translate(%d,%d)"><text x="%d" y="20" font-weight="bold">%s</text>`,
		x, y, plotLeft, html.EscapeString(lines[0].Axis))
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle" fill="#475569">%s</text>`,
		plotLeft+plotWidth/2, plotTop+plotHeight+36, html.EscapeString(label(&lines[0])))
	for _, part := range []float64{0, .5, 1} {
		_, py := p.place(0, part*p.top)
		fmt.Fprintf(b, `<path d="M%d %.1fh%d" stroke="#e2e8f0"/><text x="%d" y="%.1f" text-anchor="end" fill="#475569" font-size="10">%s</text>`,
			plotLeft, py, plotWidth, plotLeft-4, py+3, number(part*p.top))
	}
	for i := 0; i < len(lines); i += len(r.servers) {
		px, _ := p.place(lines[i].At, 0)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#475569" font-size="10">%s</text>`,
			px, plotTop+plotHeight+16, number(float64(lines[i].At)))
	}
	for i := range r.servers {
		p.drawCurve(b, i, len(r.servers))
	}
	b.WriteString("</g>")
}

// drawCurve draws what the i-th of n servers does.
func (p *panel) drawCurve(b *strings.Builder, i, n int) {
	colour, move := barColours[i%len(barColours)], "M"
	var path, points strings.Builder
	for ; i < len(p.lines); i += n {
		l := &p.lines[i]
		if l.result == nil {
			continue
		}
		px, py := p.place(l.At, l.Value)
		fmt.Fprintf(&path, "%s%.1f %.1f", move, px, py)
		fmt.Fprintf(&points, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%s %s</title></circle>`, px, py, colour, number(l.Value), l.Unit)
		move = "L"
	}
	fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"/>%s`, path.String(), colour, points.String())
}

// place is where in the panel a value is shown; the horizontal scale is logarithmic.
func (p *panel) place(at int64, value float64) (x, y float64) {
	part := 0.0
	if at > 0 && p.x1 > p.x0 {
		part = (math.Log(float64(at)) - p.x0) / (p.x1 - p.x0)
	}
	return plotLeft + 10 + part*(plotWidth-20), plotTop + plotHeight*(1-value/p.top)
}
