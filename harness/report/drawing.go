package report

import (
	"fmt"
	"math"
	"strings"
	"unicode"
)

// maxRing is how many waits a drawing has room for.
const maxRing = 8

// Sizes of the drawing of a ring, in pixels of the SVG.
const (
	ringWidth   = 400
	ringRadius  = 115 // across
	ringMargin  = 6
	titleHeight = 17
	noteHeight  = 14
	boxPadding  = 8
	gapX, gapY  = 10, 26 // between boxes
	arcGap      = 3
	headLength  = 8
	// baseline is how far text stands above the lower edge of its line.
	baseline = 4
	// Sizes of text as in the style sheet. Titles are bold, which makes them
	// wider.
	titleSize, noteSize = 13.5 * 1.1, 11.5
	// textWidth is where lines are broken.
	textWidth = 146
	// half is in how many steps a side of the ring is walked to find where boxes
	// begin, roundness the exponent of its curve: 2 is an ellipse, more is nearer
	// to a rectangle, with more room at the corners.
	half, roundness = 1200, 2.4
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
type arc struct{ Path, Head string } // points

// drawRing places waits clockwise on a curve, as high as it takes for the boxes not
// to touch. If the ring is not closed, it has a gap after its end.
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
	c := curve{slots: slots, radius: 70}
	for c.place(boxes); touching(boxes) && c.radius < 900; c.place(boxes) {
		c.radius += 5
	}
	d := &ringDrawing{Width: ringWidth, Boxes: boxes, Label: strings.Join(append(words, last), "; ")}
	c.down = d.fit()
	d.Arcs = c.arcs(boxes)
	return d
}

func whoBox(class, who, role string) box {
	b := box{Class: class, H: 2 * boxPadding, padding: boxPadding}
	b.add("title", who, titleSize, titleHeight)
	b.add("note", role, noteSize, noteHeight)
	b.W += 2 * boxPadding
	return b
}

func labelBox(w wait) box {
	b := box{Class: "wants", H: boxPadding, padding: boxPadding / 2}
	b.add("verb", "waits", noteSize, noteHeight)
	b.add("what", w.For, noteSize, noteHeight)
	b.W += boxPadding
	return b
}

// add appends text, in as many lines as it takes.
func (b *box) add(class, text string, size, height float64) {
	for _, l := range wrapped(text, textWidth/size) {
		b.H += height
		b.W = max(b.W, size*ems(l))
		b.Lines = append(b.Lines, textLine{Class: class, Text: l, Y: b.H}) // placed by settle
	}
}

// ems estimates how wide text is, in multiples of its size, on the wide side:
// which font it will be is not known.
func ems(text string) float64 {
	sum := 0.0
	for _, r := range text {
		switch {
		case strings.ContainsRune(" .,:;'!|()[]ijltfr", r):
			sum += 0.38
		case r > unicode.MaxASCII:
			sum++
		case unicode.IsUpper(r) || r == 'm' || r == 'w':
			sum += 0.8
		default:
			sum += 0.61
		}
	}
	return sum
}

// wrapped breaks text into a few lines that are at most limit ems wide.
func wrapped(text string, limit float64) []string {
	const maxLines = 4
	var lines []string
	for _, word := range strings.Fields(text) {
		if n := len(lines); n > 0 && ems(lines[n-1]+" "+word) <= limit {
			lines[n-1] += " " + word
			continue
		}
		if len(lines) == maxLines {
			lines[maxLines-1] = shortened(lines[maxLines-1]+" …", limit)
			break
		}
		lines = append(lines, shortened(word, limit))
	}
	return lines
}

// shortened cuts text to limit ems.
func shortened(text string, limit float64) string {
	if ems(text) <= limit {
		return text
	}
	r := []rune(strings.TrimSuffix(text, " …"))
	for len(r) > 0 && ems(string(r)+"…") > limit {
		r = r[:len(r)-1]
	}
	return string(r) + "…"
}

// curve is what a ring is drawn along; it has a slot for each box, an even number.
type curve struct {
	slots  int
	radius float64 // from top to bottom
	down   float64 // of its centre, in the drawing
}

// at returns the point k steps clockwise from the top. All steps are equally high,
// so that boxes which follow each other on a side have the same room.
func (c *curve) at(k int) (x, y float64) {
	side := 1.0
	if k %= 2 * half; k > half {
		side, k = -1, 2*half-k
	}
	y = 2*float64(k)/half - 1
	x = math.Pow(1-math.Pow(math.Abs(y), roundness), 1/roundness)
	return ringWidth/2 + side*ringRadius*x, c.down + c.radius*y
}

// slot returns how many steps it is to slot i.
func (c *curve) slot(i int) int { return i * 2 * half / c.slots }

func (c *curve) place(boxes []box) {
	for i := range boxes {
		x, y := c.at(c.slot(i))
		boxes[i].X, boxes[i].Y = x-boxes[i].W/2, y-boxes[i].H/2
	}
}

func touching(boxes []box) bool {
	for i, a := range boxes {
		for _, b := range boxes[:i] {
			if a.X < b.X+b.W+gapX && b.X < a.X+a.W+gapX && a.Y < b.Y+b.H+gapY && b.Y < a.Y+a.H+gapY {
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

// arcs returns the parts of the curve between boxes; those that end at a waiter
// have a head.
func (c *curve) arcs(boxes []box) []arc {
	var all []arc
	for i := range boxes {
		if i+1 == len(boxes) && c.slots > len(boxes) {
			break
		}
		from, to := &boxes[i], &boxes[(i+1)%len(boxes)]
		first, last := -1, -1
		for k := c.slot(i); k <= c.slot(i+1); k++ {
			if x, y := c.at(k); from.holds(x, y, arcGap) || to.holds(x, y, to.headGap()) {
				continue
			}
			if first < 0 {
				first = k
			}
			last = k
		}
		if first >= 0 && last > first {
			all = append(all, c.arc(first, last, to.waits()))
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

// arc draws the curve from one step to another.
func (c *curve) arc(first, last int, head bool) arc {
	const points = 24
	var path strings.Builder
	for i := range points + 1 {
		x, y := c.at(first + i*(last-first)/points)
		fmt.Fprintf(&path, "%.1f,%.1f ", x, y)
	}
	a := arc{Path: strings.TrimSpace(path.String())}
	if head {
		x0, y0 := c.at(last - 1)
		x1, y1 := c.at(last)
		a.Head = arrowHead(x1, y1, x1-x0, y1-y0)
	}
	return a
}

// arrowHead returns the corners of a head at x, y that points along dx, dy.
func arrowHead(x, y, dx, dy float64) string {
	const breadth = 4.5
	n := math.Hypot(dx, dy)
	dx, dy = dx/n, dy/n
	return fmt.Sprintf("%.1f,%.1f %.1f,%.1f %.1f,%.1f",
		x+headLength*dx, y+headLength*dy, x-breadth*dy, y+breadth*dx, x+breadth*dy, y-breadth*dx)
}

func round1(f float64) float64 { return math.Round(10*f) / 10 }
