package main

import (
	"context"
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
	cmd.AddCommand(newFailoverHostCommand(), newFailoverPowerCommand())
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
		Exe: exe, Dir: opts.dir, Logs: opts.logs, Token: opts.token, Say: func(format string, args ...any) {
			fmt.Fprintf(progress, "%6.1f s  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
		},
	})
	if c != nil {
		defer func() { err = errors.Join(err, c.Down()) }()
	}
	if err != nil {
		return err
	}
	<-ctx.Done()
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
