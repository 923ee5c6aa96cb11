package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"loopnfs/internal/lease"
	"loopnfs/internal/stack"
)

// leaseOptions are the flags of serve on the lease.
type leaseOptions struct {
	path     string // "" for none
	duration time.Duration
}

// leaseTimeout is what a slow disk may take besides.
const leaseTimeout = 30 * time.Second

// minLease is the shortest lease that makes sense for a server.
const minLease = time.Second

func (o *leaseOptions) validate() error {
	if o.path == "" {
		return nil
	}
	if o.duration < minLease || o.duration > lease.MaxDuration {
		return usagef("--lease-duration %v: give %v to %v", o.duration, minLease, lease.MaxDuration)
	}
	path, err := filepath.Abs(o.path)
	o.path = path
	return err
}

// take takes the lease, if there is to be one, before anything on the disk is touched but
// the directory that it may be in. cfg is told to go by it.
func (o *leaseOptions) take(ctx context.Context, cfg *stack.ServerConfig, lost func(error)) (*lease.Lease, error) {
	if o.path == "" {
		return nil, nil
	}
	if err := cfg.MakeState(); err != nil {
		return nil, err
	}
	l, err := lease.Take(ctx, lease.Config{Path: o.path, Duration: o.duration, Lost: lost, Logger: cfg.Logger})
	var held *lease.HeldError
	switch {
	case errors.As(err, &held):
		return nil, codeError{exitHeld, err}
	case ctx.Err() != nil:
		return nil, fmt.Errorf("told to stop before the lease could be taken: %w", err)
	case err != nil:
		return nil, err
	}
	cfg.Holds = l.Valid
	return l, nil
}

// lostGrace is how long a server that has lost its lease takes to say so: to its clients,
// and to its operator.
const lostGrace = 100 * time.Millisecond

// lostLease returns what ends a server that has lost its lease: at once, for what it would
// write might come after what the next one does. Connections are ended before, as those of
// a process of which a thread waits for the disk stay, and nobody answers.
func lostLease(running *atomic.Pointer[stack.Server], log *slog.Logger, flush func()) func(error) {
	return func(err error) {
		log.Error("this server ends at once: another one may have the disk", "error", err)
		var said sync.WaitGroup
		said.Go(flush)
		if s := running.Load(); s != nil {
			said.Go(s.NFS.Abort)
		}
		all := make(chan struct{})
		go func() { said.Wait(); close(all) }()
		select {
		case <-all:
		case <-time.After(lostGrace):
		}
		os.Exit(exitLeaseLost)
	}
}

func newLeaseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease",
		Short: "Tell who may serve a disk that several hosts can mount",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var asJSON bool
	show := &cobra.Command{
		Use:   "show PATH",
		Short: "Print the lease on a disk, and who had it",
		Long: `Prints the record of serve --lease PATH as it is on the disk, the last takings and
releases, oldest first, and whether these show that never two servers had it at the
same time. Nothing is changed. That it is "held" does not say that the holder is alive:
a server that is started tells.

The exit code is 1 if the events leave a doubt, or the lease cannot be read.`,
		Example: `  loopnfs lease show /dev/vdb1
  loopnfs lease show /srv/shared/.loopnfs/lease --json | jq .record.host`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLeaseShow(args[0], asJSON, cmd.OutOrStdout())
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print the same facts as JSON")
	cmd.AddCommand(show)
	return cmd
}

func runLeaseShow(path string, asJSON bool, out io.Writer) error {
	r, err := lease.Show(path)
	if err != nil {
		return err
	}
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(leaseJSON(r))
	} else {
		_, err = io.WriteString(out, leaseText(r))
	}
	if err == nil && len(r.Doubts) > 0 {
		err = errors.New("two servers may have had the lease at the same time")
	}
	return err
}

// recordJSON is a record for programs.
type recordJSON struct {
	State            string    `json:"state"`
	Epoch            uint64    `json:"epoch"`
	Renewal          uint64    `json:"renewal"`
	Host             string    `json:"host"`
	PID              int       `json:"pid"`
	Holder           string    `json:"holder"`
	BootID           string    `json:"boot_id"`
	DurationSeconds  float64   `json:"duration_seconds"`
	Written          time.Time `json:"written"`
	WrittenUptime    float64   `json:"written_uptime_seconds"`
	How              string    `json:"how"`
	WatchedSeconds   float64   `json:"watched_seconds"`
	PrecedingEpoch   uint64    `json:"preceding_epoch"`
	PrecedingRenewal uint64    `json:"preceding_renewal"`
	PrecedingHost    string    `json:"preceding_host"`
}

func newRecordJSON(r *lease.Record) recordJSON {
	return recordJSON{
		State: r.State.String(), Epoch: r.Epoch, Renewal: r.Renewal, Host: r.Host, PID: r.PID,
		Holder: r.Holder.String(), BootID: r.BootID.String(), DurationSeconds: r.Duration.Seconds(),
		Written: time.Unix(0, r.Wall).UTC(), WrittenUptime: time.Duration(r.Boot).Seconds(),
		How: r.How.String(), WatchedSeconds: r.Watched.Seconds(),
		PrecedingEpoch: r.PrevEpoch, PrecedingRenewal: r.PrevRenewal, PrecedingHost: r.PrevHost,
	}
}

func leaseJSON(r *lease.Report) any {
	events := []recordJSON{}
	for i := range r.Events {
		events = append(events, newRecordJSON(&r.Events[i]))
	}
	return struct {
		Record recordJSON   `json:"record"`
		Events []recordJSON `json:"events"`
		Doubts []string     `json:"doubts"`
	}{newRecordJSON(&r.Record), events, append([]string{}, r.Doubts...)}
}

// leaseText is a report for people.
func leaseText(r *lease.Report) string {
	var b strings.Builder
	rec := &r.Record
	if rec.State == lease.Free {
		b.WriteString("free: nobody has it\n")
	} else {
		fmt.Fprintf(&b, "%s by process %d on %s, epoch %d, for %v after each renewal, written %d times, last at %s by that host's clock\n",
			rec.State, rec.PID, rec.Host, rec.Epoch, rec.Duration, rec.Renewal, wallText(rec))
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	if len(r.Events) > 0 {
		fmt.Fprintln(w, "\nepoch\t\thost\tprocess\tits clock\tits uptime\thow")
	}
	for i := range r.Events {
		e := &r.Events[i]
		what, how := "taken", e.How.String()
		if e.State == lease.Released {
			what, how = "released", ""
		} else if e.How == lease.WasExpired {
			how = fmt.Sprintf("not renewed by %s for %v", cmp.Or(e.PrevHost, "anybody"), e.Watched.Round(time.Millisecond))
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%v\t%s\n", e.Epoch, what, e.Host, e.PID, wallText(e), time.Duration(e.Boot).Round(time.Millisecond), how)
	}
	w.Flush()
	for _, d := range r.Doubts {
		fmt.Fprintf(&b, "doubt: %s\n", d)
	}
	if len(r.Doubts) == 0 && len(r.Events) > 0 {
		b.WriteString("\nnever two at the same time\n")
	}
	return b.String()
}

func wallText(r *lease.Record) string {
	return time.Unix(0, r.Wall).UTC().Format("2006-01-02 15:04:05.000")
}
