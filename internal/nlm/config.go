package nlm

import (
	"errors"
	"log/slog"
	"time"

	"loopnfs/internal/portmap"
)

// Config says how to make a Manager. Zero fields get their defaults in New.
type Config struct {
	// Dir is where the list of clients with locks is kept, on stable storage; it is
	// made if it is not there. With "" a new start knows of no locks.
	Dir string
	// Limits bound the memory; each defaults to that of DefaultLimits.
	Limits Limits
	// Grace is for how long after a start only clients that had locks may have them;
	// default DefaultGrace.
	Grace time.Duration
	// Workers is how many clients are called at once; default DefaultWorkers.
	Workers int

	// CallTime bounds each call to a client; one to the status monitor of this host may take
	// 12 times as long. RetryFirst is when a call that failed is made again; each time it
	// takes twice as long, up to RetryMost. After Tries it is given up.
	CallTime, RetryFirst, RetryMost time.Duration
	Tries                           int
	// PortmapPort is where the portmappers of clients listen; default 111.
	PortmapPort uint16

	Logger *slog.Logger // nil: slog.Default
}

// Defaults of a Config.
const (
	DefaultGrace   = 45 * time.Second
	DefaultWorkers = 4

	defaultCallTime   = 5 * time.Second
	defaultRetryFirst = time.Second
	defaultRetryMost  = 30 * time.Second
	defaultTries      = 12 // five minutes
)

func (c *Config) validate() error {
	setDefault(&c.Limits.Clients, DefaultLimits.Clients)
	setDefault(&c.Limits.Locks, DefaultLimits.Locks)
	setDefault(&c.Limits.PerClient, DefaultLimits.PerClient)
	setDefault(&c.Limits.Waiting, DefaultLimits.Waiting)
	setDefault(&c.Grace, DefaultGrace)
	setDefault(&c.Workers, DefaultWorkers)
	setDefault(&c.CallTime, defaultCallTime)
	setDefault(&c.RetryFirst, defaultRetryFirst)
	setDefault(&c.RetryMost, defaultRetryMost)
	setDefault(&c.Tries, defaultTries)
	setDefault(&c.PortmapPort, portmap.DefaultPort)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	l := c.Limits
	if min(l.Clients, l.Locks, l.PerClient, l.Waiting, c.Workers, c.Tries) < 0 || min(c.Grace, c.CallTime, c.RetryFirst, c.RetryMost) < 0 {
		return errors.New("nlm: a limit or a time is negative")
	}
	return nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
