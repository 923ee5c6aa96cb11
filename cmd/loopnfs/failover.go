package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"loopnfs/harness/failover"
	"loopnfs/harness/failover/host"
)

type failoverOptions struct {
	dir, logs string
	token     time.Duration
	lease     time.Duration
	faults    []string
	schedules int
	seed      int64
}

func newFailoverCommand() *cobra.Command {
	var opts failoverOptions
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Bring a cluster up, break it, and see what its clients notice",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runFailover(cmd.Context(), &opts, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.dir, "dir", "/var/tmp", "make the disk of the cluster in `DIR`, which is on a disk")
	f.StringVar(&opts.logs, "logs", "", "keep the logs of all hosts in `DIR`")
	f.DurationVar(&opts.token, "token", failover.DefaultToken, "how long the cluster waits for a sign of life of a node")
	f.DurationVar(&opts.lease, "lease", failover.DefaultLease, "how long the lease on the disk holds; 0 for no lease")
	f.StringSliceVar(&opts.faults, "fault", nil, "have this `FAULT` happen")
	f.IntVar(&opts.schedules, "schedules", 0, "play `N` random schedules")
	f.Int64Var(&opts.seed, "seed", 1, "of the load and of random schedules")
	cmd.AddCommand(newFailoverHostCommand(), newFailoverPowerCommand(), newFailoverClientCommand(), newFailoverCheckCommand(), newFailoverHogCommand())
	return cmd
}

func runFailover(ctx context.Context, opts *failoverOptions, out, progress io.Writer) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	start := time.Now()
	c, err := failover.Up(ctx, failover.Options{
		Exe: exe, Dir: opts.dir, Logs: opts.logs, Token: opts.token, Lease: opts.lease, Say: func(format string, args ...any) {
			fmt.Fprintf(progress, "%6.1f s  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
		},
	})
	if c != nil {
		defer func() { err = errors.Join(err, c.Down()) }()
	}
	if err != nil {
		return err
	}
	return playAll(ctx, c, opts, out)
}

func playAll(ctx context.Context, c *failover.Cluster, opts *failoverOptions, out io.Writer) error {
	var schedules []failover.Schedule
	for _, name := range opts.faults {
		f, err := failover.FindFault(name)
		if err != nil {
			return err
		}
		schedules = append(schedules, failover.Schedule{Seed: opts.seed, Faults: []failover.Fault{f}})
	}
	for i := range opts.schedules {
		schedules = append(schedules, c.Random(opts.seed+int64(i)))
	}
	for _, s := range schedules {
		res := c.Play(ctx, s)
		b, _ := json.Marshal(res)
		fmt.Fprintf(out, "%s: %s %s promises %d lost %d twice %d\n", s.String(), res.Outcome, res.Error, res.Promises, res.Lost, res.Twice)
		for _, t := range res.Takeovers {
			fmt.Fprintf(out, "  %s %s->%s fenced %d server %d address %d open %d gaps %v\n", t.Fault, t.From, t.To, t.FencedMs, t.ServerMs, t.AddressMs, t.OpenMs, t.Gaps)
		}
		os.WriteFile("/tmp/wtc/last.json", b, 0o644)
		if res.Error != "" {
			return nil
		}
	}
	return nil
}

// newFailoverHostCommand is the init of a host of a cluster, not for people.
func newFailoverHostCommand() *cobra.Command {
	return &cobra.Command{
		Use: "host", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return host.Main() },
	}
}

// newFailoverPowerCommand is what the fencing agent of a node calls.
func newFailoverPowerCommand() *cobra.Command {
	var device string
	cmd := &cobra.Command{
		Use: "power {off|on|status|list} [NODE]", Hidden: true, Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			return failover.Power(device, args[0], append(args, "")[1])
		},
	}
	cmd.Flags().StringVar(&device, "device", "", "`socket` of the power switch")
	return cmd
}

// newFailoverClientCommand is what the clients of a host are, not for people.
func newFailoverClientCommand() *cobra.Command {
	return &cobra.Command{
		Use: "client", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM)
			defer stop()
			return failover.RunClient(ctx, cmd.InOrStdin())
		},
	}
}

// newFailoverCheckCommand looks at what they were promised.
func newFailoverCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return failover.RunCheck(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// newFailoverHogCommand takes memory, until it is killed.
func newFailoverHogCommand() *cobra.Command {
	var bytes int64
	cmd := &cobra.Command{
		Use: "hog", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return failover.Hog(cmd.Context(), bytes) },
	}
	cmd.Flags().Int64Var(&bytes, "bytes", 0, "how much")
	return cmd
}
