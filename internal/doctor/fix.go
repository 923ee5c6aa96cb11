package doctor

import "strings"

// Fixed is one thing that Fix did, or could not do.
type Fixed struct {
	Finding string `json:"finding"` // the ID
	Path    string `json:"path"`
	Old     string `json:"old"`
	// New is what is there now, as the kernel tells.
	New string `json:"new"`
	// Permanent is what to type to have it after the next start, too.
	Permanent string `json:"permanent"`
	Error     string `json:"error,omitempty"`
}

// Fix does what can be done while everything runs about the findings of r that
// are at least warnings, and looks again. The new report says what was done.
func Fix(h *Host, r *Report) (*Report, error) {
	var fixed []Fixed
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Severity < Warning {
			continue
		}
		for _, c := range f.Changes {
			fixed = append(fixed, h.apply(f.ID, c))
		}
	}
	after, err := Examine(h)
	if err != nil {
		return nil, err
	}
	after.Fixed = fixed
	return after, nil
}

func (h *Host) apply(id string, c Change) Fixed {
	name := strings.TrimPrefix(c.Path, "/")
	done := Fixed{Finding: id, Path: c.Path, Permanent: c.Permanent}
	var err error
	if done.Old, err = h.read(name); err == nil {
		err = h.Write(c.Path, c.New)
	}
	if err == nil {
		done.New, err = h.read(name)
	}
	if err != nil {
		done.Error = err.Error()
	}
	return done
}
