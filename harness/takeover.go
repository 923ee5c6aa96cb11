package harness

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// TierCluster is two nodes with a cluster engine, and clients on both and elsewhere.
const TierCluster Tier = "cluster"

// The drill of the cluster tier.
const (
	TakeoverName = "takeover"
	TakeoverLoop = "the server or its node dies under load -> another node takes the disk, the address and the server -> its own mount is a loop-back one now"
)

// What happens in a takeover, as events say it.
const (
	SwitchedOff   = " is switched off" // after the name of a node
	ServerStarted = "server started"
	AddressTaken  = "address taken"
	PortOpened    = "port open, clients woken"
	PortClosed    = "port closed"
)

// Takeover is what one fault did to a cluster, and what its clients noticed of it.
type Takeover struct {
	Fault string `json:"fault"`
	Says  string `json:"says"`
	// From and To are the nodes that had the service before and after.
	From string `json:"from"`
	To   string `json:"to"`
	// Since the fault, in milliseconds; 0 where it did not happen: a node was off for
	// certain, the server was started, the address was there, the port was open.
	FencedMs  int64 `json:"fenced_ms,omitempty"`
	ServerMs  int64 `json:"server_ms,omitempty"`
	AddressMs int64 `json:"address_ms,omitempty"`
	OpenMs    int64 `json:"open_ms,omitempty"`
	// Gaps are how long a client waited at most, for each host whose clients lived on.
	Gaps   []Gap    `json:"gaps"`
	Events []Moment `json:"events"`
}

// Gap is the longest time for which a client got no answer.
type Gap struct {
	Client string `json:"client"`
	Ms     int64  `json:"ms"`
}

// Moment is something that happened, as a log says or as was seen from outside.
type Moment struct {
	Ms   int64  `json:"ms"` // since the fault
	Node string `json:"node,omitempty"`
	What string `json:"what"`
}

// Seconds is when it happened, in words.
func (m Moment) Seconds() string { return fmt.Sprintf("%.2f s", float64(m.Ms)/1000) }

// FillTimes takes the times of what happened from the events: the last of each, as what
// comes before did not last.
func (t *Takeover) FillTimes() {
	for _, e := range t.Events {
		switch {
		case strings.HasSuffix(e.What, SwitchedOff):
			t.FencedMs = e.Ms
		case e.What == ServerStarted:
			t.ServerMs = e.Ms
		case e.What == AddressTaken:
			t.AddressMs = e.Ms
		case e.What == PortOpened:
			t.OpenMs = e.Ms
		}
	}
}

// writeTakeovers writes a line for each fault of the results, with the times since it.
func writeTakeovers(w io.Writer, results []Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	n := 0
	for i := range results {
		for _, t := range results[i].Takeovers {
			if n++; n == 1 {
				fmt.Fprintln(tw, "\nfault\tfrom\tto\tfenced\tserver\taddress\tport open\tclients waited")
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.Fault, t.From, orDash(t.To), sinceText(t.FencedMs), sinceText(t.ServerMs),
				sinceText(t.AddressMs), sinceText(t.OpenMs), t.gapText())
		}
	}
	return tw.Flush()
}

func sinceText(ms int64) string {
	if ms == 0 {
		return "-"
	}
	return fmt.Sprintf("+%.1f s", float64(ms)/1000)
}

func (t *Takeover) gapText() string {
	var all []string
	for _, g := range t.Gaps {
		all = append(all, fmt.Sprintf("%s %.1f s", g.Client, float64(g.Ms)/1000))
	}
	return strings.Join(all, ", ")
}
