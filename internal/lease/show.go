package lease

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Report is what is on a disk.
type Report struct {
	Record Record
	// Events are takings and releases, oldest first.
	Events []Record
	// Doubts are the reasons to think that two servers had the lease at the same time;
	// none if the events show that it was not so.
	Doubts []string
}

// Show reads the lease at path, and changes nothing.
func Show(path string) (*Report, error) {
	d, err := openDisk(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer d.close()
	var r Report
	if r.Record, err = d.readRecord(); err == nil {
		r.Events, err = d.readEvents()
	}
	if err != nil {
		return nil, fmt.Errorf("lease %s: %w", path, err)
	}
	r.Events = inOrder(r.Events)
	r.Doubts = doubts(r.Events)
	return &r, nil
}

// inOrder returns the events of a ring, oldest first. Some numbers are left out, and what lies
// there is from a lap before: what came next to it is gone.
func inOrder(ring []Record) []Record {
	slices.SortFunc(ring, func(a, b Record) int { return cmp.Compare(a.Seq, b.Seq) })
	if len(ring) == 0 {
		return nil
	}
	last := ring[len(ring)-1].Seq
	return slices.DeleteFunc(ring, func(e Record) bool { return e.Seq+Events <= last })
}

// doubts looks at each taking, and what was before: who takes a lease has seen it given
// back, or not renewed for its duration, or its holder dead. No clocks of two hosts are
// compared.
func doubts(events []Record) (found []string) {
	held := map[uint64]Record{} // by epoch: who has taken it
	released := map[uint64]bool{}
	var highest uint64
	for i := range events {
		e := &events[i]
		if e.State == Released {
			if by, ok := held[e.Epoch]; ok && by.Holder != e.Holder {
				found = append(found, fmt.Sprintf("epoch %d was taken by %s and released by %s", e.Epoch, by.Host, e.Host))
			}
			released[e.Epoch] = true
			continue
		}
		if e.Epoch <= highest {
			found = append(found, fmt.Sprintf("epoch %d was taken by %s after epoch %d", e.Epoch, e.Host, highest))
		}
		highest = max(highest, e.Epoch)
		held[e.Epoch] = *e
		if why := e.doubt(held, released); why != "" {
			found = append(found, fmt.Sprintf("epoch %d was taken by %s %s", e.Epoch, e.Host, why))
		}
	}
	return found
}

// doubt says what is wrong with a taking, "" if nothing is.
func (r *Record) doubt(held map[uint64]Record, released map[uint64]bool) string {
	before, known := held[r.PrevEpoch]
	if !known {
		return "" // a claim that came to nothing, or too long ago
	}
	switch {
	case r.How == WasFree:
		return fmt.Sprintf("as if it were free, while %s had it", before.Host)
	case r.How == WasReleased && !released[r.PrevEpoch]:
		return fmt.Sprintf("as if %s had released it", before.Host)
	case r.How == WasDead && r.BootID != before.BootID:
		return fmt.Sprintf("as if the process on %s were one of its own", before.Host)
	case r.How == WasExpired && r.Watched < before.Duration:
		return fmt.Sprintf("after %v without renewal, while %s had it for %v", r.Watched, before.Host, before.Duration)
	}
	return ""
}
