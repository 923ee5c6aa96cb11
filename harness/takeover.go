package harness

import "strings"

// TierCluster is two nodes with a cluster engine, and clients on both and elsewhere.
const TierCluster Tier = "cluster"

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

// FillTimes takes the times of what happened from the events: the last of each, as what
// comes before did not last.
func (t *Takeover) FillTimes() {
	for _, e := range t.Events {
		switch {
		case strings.HasSuffix(e.What, "is switched off"):
			t.FencedMs = e.Ms
		case e.What == "nfs-server: start":
			t.ServerMs = e.Ms
		case e.What == "nfs-address: start":
			t.AddressMs = e.Ms
		case e.What == "nfs-open: start":
			t.OpenMs = e.Ms
		}
	}
}
