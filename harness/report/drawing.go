package report

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// maxRing is how many waits a drawing has room for.
const maxRing = 8

// Sizes of the drawing of a ring, in pixels of the SVG.
const (
	ringWidth   = 400
	ringRadius  = 120 // across
	ringMargin  = 6
	titleHeight = 17
	noteHeight  = 14
	boxPadding  = 8
	boxGap      = 12
	arcGap      = 3
	headLength  = 8
	// baseline is how far text stands above the lower edge of its line.
	baseline = 4
	// Mean widths of a character, on the wide side: there are no metrics here.
	titleChar, noteChar = 7.6, 6.3
	titleWrap, noteWrap = 18, 21
	// rounded is how finely the ring is walked to find where boxes begin.
	rounded = 720
)

// ringDrawing is a ring of waits as SVG shapes.
type ringDrawing struct {
	Width, Height float64
	Boxes         []box
	Arcs          []arc
	// Label is the drawing in words, for those who do not see it.
	Label string
}

// box is a rectangle with centred text. Waiters and what they wait for take turns
// along the ring.
type box struct {
	X, Y, W, H float64
	Class      string
	Lines      []textLine
	padding    float64
}

type textLine struct {
	X, Y        float64
	Class, Text string
}

// arc is an arrow, or the part of one that leads to its label.
type arc struct{ Path, Head string }

// drawRing places waits clockwise on an ellipse, as high as it takes for the boxes
// not to touch. If the ring is not closed, it has a gap after its end.
func drawRing(g ring) *ringDrawing {
	var boxes []box
	var words []string
	for _, w := range g.Waits {
		boxes = append(boxes, whoBox("waiter", w.Who, w.Role), labelBox(w))
		words = append(words, w.Who+" waits "+w.For)
	}
	slots, last := len(boxes), "and so on, round and round."
	if g.End != nil {
		boxes = append(boxes, whoBox("waiter end", g.End.Who, g.End.Role))
		slots, last = len(boxes)+1, "that is: "+g.End.Who+", "+g.End.Role+"."
	}
	e := ellipse{slots: slots, radius: 80}
	for e.place(boxes); touching(boxes) && e.radius < 900; e.place(boxes) {
		e.radius += 10
	}
	d := &ringDrawing{Width: ringWidth, Boxes: boxes, Label: strings.Join(append(words, last), "; ")}
	e.down = d.fit()
	d.Arcs = e.arcs(boxes)
	return d
}

func whoBox(class, who, role string) box {
	b := box{Class: class, H: 2 * boxPadding, padding: boxPadding}
	b.add("title", who, titleWrap, titleChar, titleHeight)
	b.add("note", role, noteWrap, noteChar, noteHeight)
	b.W += 2 * boxPadding
	return b
}

func labelBox(w wait) box {
	b := box{Class: "wants", H: boxPadding, padding: boxPadding / 2}
	b.add("verb", "waits", noteWrap, noteChar, noteHeight)
	b.add("what", w.For, noteWrap, noteChar, noteHeight)
	b.W += boxPadding
	return b
}

// add appends text in lines of at most wrap characters.
func (b *box) add(class, text string, wrap int, char, height float64) {
	for _, l := range wrapped(text, wrap) {
		b.H += height
		b.W = max(b.W, char*float64(utf8.RuneCountInString(l)))
		b.Lines = append(b.Lines, textLine{Class: class, Text: l, Y: b.H}) // placed by settle
	}
}

// wrapped breaks text into a few lines of at most limit characters.
func wrapped(text string, limit int) []string {
	const maxLines = 4
	var lines []string
	for _, word := range strings.Fields(text) {
		if n := len(lines); n > 0 && utf8.RuneCountInString(lines[n-1])+1+utf8.RuneCountInString(word) <= limit {
			lines[n-1] += " " + word
			continue
		}
		if len(lines) == maxLines {
			lines[maxLines-1] += " …"
			break
		}
		if r := []rune(word); len(r) > limit {
			word = string(r[:limit-1]) + "…"
		}
		lines = append(lines, word)
	}
	return lines
}

// ellipse is what a ring is drawn along; it has a slot for each box.
type ellipse struct {
	slots  int
	radius float64 // from top to bottom
	down   float64 // of its centre, in the drawing
}

// at returns the point k steps clockwise from the top.
func (e *ellipse) at(k int) (x, y float64) {
	sin, cos := math.Sincos(2 * math.Pi * float64(k) / rounded)
	return ringWidth/2 + ringRadius*sin, e.down - e.radius*cos
}

// slot returns how many steps it is to slot i.
func (e *ellipse) slot(i int) int { return i * rounded / e.slots }

func (e *ellipse) place(boxes []box) {
	for i := range boxes {
		x, y := e.at(e.slot(i))
		boxes[i].X, boxes[i].Y = x-boxes[i].W/2, y-boxes[i].H/2
	}
}

func touching(boxes []box) bool {
	for i, a := range boxes {
		for _, b := range boxes[:i] {
			if a.X < b.X+b.W+boxGap && b.X < a.X+a.W+boxGap && a.Y < b.Y+b.H+boxGap && b.Y < a.Y+a.H+boxGap {
				return true
			}
		}
	}
	return false
}

// fit moves the boxes down into the drawing, gives it its height, and returns how
// far they went.
func (d *ringDrawing) fit() (down float64) {
	top, bottom := 0.0, 0.0
	for _, b := range d.Boxes {
		top, bottom = min(top, b.Y), max(bottom, b.Y+b.H)
	}
	down = ringMargin - top
	d.Height = math.Ceil(bottom - top + 2*ringMargin)
	for i := range d.Boxes {
		d.Boxes[i].settle(down)
	}
	return down
}

// settle moves b down, to where it stays, and its text into it.
func (b *box) settle(down float64) {
	b.X, b.Y, b.W = round1(b.X), round1(b.Y+down), round1(b.W)
	for i := range b.Lines {
		l := &b.Lines[i]
		l.X, l.Y = round1(b.X+b.W/2), round1(b.Y+l.Y-b.padding-baseline)
	}
}

// holds reports whether a point lies in b, or closer than gap.
func (b *box) holds(x, y, gap float64) bool {
	return x > b.X-gap && x < b.X+b.W+gap && y > b.Y-gap && y < b.Y+b.H+gap
}

// arcs returns the parts of the ellipse between boxes; those that end at a waiter
// have a head.
func (e *ellipse) arcs(boxes []box) []arc {
	var all []arc
	for i := range boxes {
		if i+1 == len(boxes) && e.slots > len(boxes) {
			break
		}
		from, to := &boxes[i], &boxes[(i+1)%len(boxes)]
		first, last := -1, -1
		for k := e.slot(i); k <= e.slot(i+1); k++ {
			if x, y := e.at(k); from.holds(x, y, arcGap) || to.holds(x, y, to.headGap()) {
				continue
			}
			if first < 0 {
				first = k
			}
			last = k
		}
		if first >= 0 && last > first {
			all = append(all, e.arc(first, last, to.waits()))
		}
	}
	return all
}

// waits reports whether b is somebody, and not what somebody waits for.
func (b *box) waits() bool { return b.Class != "wants" }

// headGap is the room that is left before b, for the head of an arrow.
func (b *box) headGap() float64 {
	if b.waits() {
		return arcGap + headLength
	}
	return arcGap
}

func (e *ellipse) arc(first, last int, head bool) arc {
	x1, y1 := e.at(first)
	x2, y2 := e.at(last)
	a := arc{Path: fmt.Sprintf("M%.1f %.1fA%d %.1f 0 0 1 %.1f %.1f", x1, y1, ringRadius, e.radius, x2, y2)}
	if head {
		x0, y0 := e.at(last - 1)
		a.Head = arrowHead(x2, y2, x2-x0, y2-y0)
	}
	return a
}

// arrowHead returns the corners of a head at x, y that points along dx, dy.
func arrowHead(x, y, dx, dy float64) string {
	const half = 4.5
	n := math.Hypot(dx, dy)
	dx, dy = dx/n, dy/n
	return fmt.Sprintf("%.1f,%.1f %.1f,%.1f %.1f,%.1f",
		x+headLength*dx, y+headLength*dy, x-half*dy, y+half*dx, x+half*dy, y-half*dx)
}

func round1(f float64) float64 { return math.Round(10*f) / 10 }
