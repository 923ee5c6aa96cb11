package report

import (
	"reflect"
	"strings"
	"testing"

	"loopnfs/harness"
)

func vmRun(server string, killed []string, cycle ...string) *run {
	return &run{Result: &harness.Result{Tier: harness.TierVM, Server: server, Cycle: cycle, Killed: killed, Outcome: harness.Hung}}
}

// names is who waits for what.
func (g ring) names() string {
	var all []string
	for _, w := range g.Waits {
		all = append(all, w.Who+" "+w.For)
	}
	if g.End != nil {
		all = append(all, "END "+g.End.Who)
	}
	return strings.Join(all, "; ")
}

func TestRing(t *testing.T) {
	const (
		release = " needs memory -> direct reclaim -> nfs_release_folio waits for the reply to COMMIT"
		chain   = " for memory; direct reclaim for a page of the mount; nfs_release_folio for the reply to COMMIT"
	)
	host := &run{Result: &harness.Result{Tier: harness.TierHost, Cycle: []string{
		"server: WRITE waits for a free page", "direct reclaim waits for COMMIT of inode 7",
	}}}
	for _, c := range []struct {
		name   string
		run    *run
		want   string
		beside []string
	}{
		{"a thread of the server", vmRun("knfsd", nil, "writer"+release, "nfsd"+release), "nfsd" + chain, []string{"writer" + release}},
		{"a server that was killed", vmRun("ganesha", []string{"hog", "ganesha.nfsd"}, "writer"+release), "writer" + chain + "; END ganesha.nfsd", nil},
		{"a server that is not seen", vmRun("knfsd", []string{"hog"}, "writer"+release), "writer" + chain + "; END NFS server", nil},
		{"throttled", vmRun("gonfs", nil, "loopnfs-gonfs waits for dirty pages to fall below the limit"),
			"loopnfs-gonfs for dirty pages to fall below the limit; write-back of the mount for the server's reply to WRITE", nil},
		{"the server waits for something else", vmRun("knfsd", nil, "nfsd waits for the journal"), "nfsd for the journal; END somebody", nil},
		{"seen from inside", host, "server: WRITE for a free page; direct reclaim for COMMIT of inode 7", nil},
	} {
		g, beside := c.run.ring()
		if g.names() != c.want || len(beside) != len(c.beside) || len(beside) > 0 && !reflect.DeepEqual(beside, c.beside) {
			t.Errorf("%s: got %q, beside %q", c.name, g.names(), beside)
		}
	}
}

func TestWhyNeedsACycle(t *testing.T) {
	if w := vmRun("knfsd", nil).Why(); w != nil {
		t.Errorf("got %+v", w)
	}
}

// Whatever is drawn, no box covers another one or leaves the drawing, and the
// arrows lead from each to the next.
func TestDrawing(t *testing.T) {
	long := "until a page has been written and committed and a server worker is free"
	for n := 1; n <= maxRing; n++ {
		for _, open := range []bool{false, true} {
			g := ring{}
			for range n {
				g.Waits = append(g.Waits, wait{"nfs_release_folio_of_nfs", "NFS client, asked to give up a page", long})
			}
			arrows := n
			if open {
				g.End = &end{Who: "NFS server", Role: "none of its tasks is blocked"}
			}
			d := drawRing(g)
			if touching(d.Boxes) {
				t.Errorf("%d waits: boxes touch", n)
			}
			for _, b := range d.Boxes {
				if b.X < 0 || b.Y < 0 || b.X+b.W > d.Width || b.Y+b.H > d.Height {
					t.Errorf("%d waits: a box at %.0f,%.0f of %.0f x %.0f is outside of %.0f x %.0f", n, b.X, b.Y, b.W, b.H, d.Width, d.Height)
				}
				for _, l := range b.Lines {
					if !b.holds(l.X, l.Y, 0) {
						t.Errorf("%d waits: text %q is not in its box", n, l.Text)
					}
				}
			}
			heads := 0
			for _, a := range d.Arcs {
				if a.Head != "" {
					heads++
				}
			}
			if heads != arrows {
				t.Errorf("%d waits, open %v: %d arrows have a head", n, open, heads)
			}
		}
	}
}

func TestWrapped(t *testing.T) {
	const limit = 8
	got := wrapped("for the reply to COMMIT of a_very_long_name_indeed_yes and so on for ever and ever", limit)
	if len(got) != 4 || got[0] != "for the reply to" || got[1] != "COMMIT of" || got[2] != "a_very_long_…" || got[3] != "and so on for…" {
		t.Errorf("got %q", got)
	}
	for _, l := range got {
		if ems(l) > limit {
			t.Errorf("%q is %.1f ems wide", l, ems(l))
		}
	}
}
