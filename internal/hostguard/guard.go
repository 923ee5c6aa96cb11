package hostguard

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// Missing is something that the guard could not get.
type Missing struct {
	What   string // what it is
	Why    error  // why it could not be had
	Costs  string // what can happen without it
	Remedy string // what to do about it
}

// Config says what Protect is to do.
type Config struct {
	// Threads is how many OS threads the process has at least from now on: as
	// many as can be in blocking system calls at once, and some for the
	// runtime.
	Threads int
	// Cold are prefixes of import paths: packages that are not needed once
	// the process serves. Their code is not locked.
	Cold []string
	// KernelWaits says that this kernel may wait in nfs_release_folio for a page that
	// waits for its COMMIT.
	KernelWaits bool
}

// Guard is the protection of this process. Its methods are called one after the
// other. A nil one protects nothing and misses nothing.
type Guard struct {
	missing []Missing
	// hot is where the code that is locked is, if the process before has found it; nil
	// if nobody wants to know.
	hot *[]mapping
}

// Miss records something that could not be had. The same thing is recorded once.
func (g *Guard) Miss(m Missing) {
	if g == nil {
		return
	}
	for _, had := range g.missing {
		if had.What == m.What {
			return
		}
	}
	g.missing = append(g.missing, m)
}

// Missing returns what could not be had so far.
func (g *Guard) Missing() []Missing {
	if g == nil {
		return nil
	}
	return g.missing
}

// Err names everything that could not be had; nil if there is nothing.
func (g *Guard) Err() error {
	if len(g.Missing()) == 0 {
		return nil
	}
	var b strings.Builder
	for i, m := range g.missing {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s is missing (%v): %s", m.What, m.Why, m.Remedy)
	}
	return errors.New(b.String())
}

// Check looks at the process as it is now: threads that were started since must
// be guarded too.
func (g *Guard) Check() {
	if g == nil {
		return
	}
	p, err := Audit(os.Getpid())
	if err != nil {
		g.Miss(Missing{"the audit of this process", err, "nobody knows whether its threads are guarded", "mount /proc"})
		return
	}
	if !p.Guarded() {
		g.Miss(missingFlusher(fmt.Errorf("only %d of %d threads have it", min(p.NoIO, p.LocalThrottle), p.Threads-p.Apart)))
	}
}

// Log says in one line what was got, and in a warning each what was not.
func (g *Guard) Log(log *slog.Logger) {
	if g == nil {
		return
	}
	p, err := Audit(os.Getpid())
	if err == nil {
		log.Info("host guard", "threads", p.Threads, "io_flusher", min(p.NoIO, p.LocalThrottle), "apart", p.Apart,
			"resident_mib", p.ResidentBytes>>20, "oom_score_adj", p.OOMScoreAdj)
	}
	for _, m := range g.missing {
		log.Warn("host guard: "+m.What+" is missing", "error", m.Why, "costs", m.Costs, "remedy", m.Remedy)
	}
}
