package work

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// reportEvery is how often a worker says how far it is.
const reportEvery = 100 * time.Millisecond

// worker is what the jobs of a process share.
type worker struct {
	cfg     Config
	journal *journal

	acked, bytes, written, worst atomic.Int64
}

// Main is the main function of a worker process: it takes its Config from in,
// as JSON, and does what verb says: "run" or "verify".
func Main(ctx context.Context, verb string, in io.Reader, out io.Writer) error {
	var cfg Config
	if err := json.NewDecoder(in).Decode(&cfg); err != nil {
		return fmt.Errorf("work: no configuration: %w", err)
	}
	switch verb {
	case "run":
		return Run(ctx, cfg, out)
	case "verify":
		_, err := Verify(cfg)
		return err
	}
	return fmt.Errorf("work: unknown verb %q", verb)
}

// Run does the work, with a line of Progress to out every tenth of a second
// and one at the end.
func Run(ctx context.Context, cfg Config, out io.Writer) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	j, err := openJournal(cfg.Log)
	if err != nil {
		return err
	}
	defer j.close()
	w := &worker{cfg: cfg, journal: j}
	done := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() { w.report(out, done) })
	err = w.runJobs(ctx)
	close(done)
	reporter.Wait()
	return err
}

func (w *worker) runJobs(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, w.cfg.Jobs)
	var jobs sync.WaitGroup
	for i := range w.cfg.Jobs {
		jobs.Go(func() {
			if errs[i] = w.job(ctx, i); errs[i] != nil {
				cancel()
			}
		})
	}
	jobs.Wait()
	return errors.Join(errs...)
}

func (w *worker) job(ctx context.Context, i int) error {
	var err error
	switch w.cfg.Mode {
	case Blocks:
		err = w.blocks(ctx, i)
	case Stream:
		err = w.stream(ctx, i)
	default:
		err = w.files(ctx, i)
	}
	if err != nil {
		return fmt.Errorf("job %d: %w", i, err)
	}
	return nil
}

// ack counts what was acknowledged since start.
func (w *worker) ack(start time.Time, ops, bytes int) {
	w.acked.Add(int64(ops))
	w.bytes.Add(int64(bytes))
	w.late(start)
}

// late remembers how long the slowest operation took.
func (w *worker) late(start time.Time) {
	ms := time.Since(start).Milliseconds()
	for old := w.worst.Load(); ms > old && !w.worst.CompareAndSwap(old, ms); old = w.worst.Load() {
	}
}

func (w *worker) report(out io.Writer, done <-chan struct{}) {
	enc := json.NewEncoder(out)
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-done:
			last = true
		}
		if enc.Encode(Progress{w.acked.Load(), w.bytes.Load(), w.written.Load(), w.worst.Load()}) != nil {
			return
		}
	}
}
