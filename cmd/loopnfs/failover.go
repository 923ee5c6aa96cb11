package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"loopnfs/harness"
	"loopnfs/harness/failover"
	"loopnfs/harness/failover/host"
)

type failoverOptions struct {
	faults           []string
	schedules, moves int
	seed             int64
	token, lease     time.Duration
	dir, logs        string
	jsonFile         string
	htmlFile         string
	nodes            nodeOptions
	kernel           string
	given            func(flag string) bool
}

func newFailoverCommand() *cobra.Command {
	var opts failoverOptions
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Bring a cluster up, break it, and see what its clients notice",
		Long: `Brings up a cluster on this machine: two nodes that share a disk, an address and a
server, with Corosync and Pacemaker, and a third host. Each is made of namespaces; the
machine's own network, mounts and processes are not touched. Clients work on all three
through mounts of that address. Then something goes wrong, and the terminal shows what
happens when, and who serves.

What every client is promised is kept outside of the cluster: data that is on the disk,
files that were created, renamed, removed, locks. At the end all of it is compared with
what is there, through a new mount. Everything is taken down afterwards, also after
Ctrl-C.

Without flags it is node-kill: the node that serves loses its power. "failover list" has
the faults. With --schedules they come at random, one or two under one load.

The exit code is 0 only if clients went on each time, and nothing that they were
promised was lost, or done twice.`,
		Example: `  loopnfs failover
  loopnfs failover --fault split-brain,node-kill --html report.html
  loopnfs failover --seed 7 --schedules 20 --json results.json
  loopnfs failover --moves 10`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.given = cmd.Flags().Changed
			return runFailover(cmd.Context(), &opts, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&opts.faults, "fault", nil, "have these `FAULT`s happen, each under a load of its own")
	f.IntVar(&opts.schedules, "schedules", 0, "play `N` schedules with one or two faults at random")
	f.IntVar(&opts.moves, "moves", 0, "move the service back and forth `N` times under one load")
	f.Int64Var(&opts.seed, "seed", 1, "of the load and of the first schedule; the next ones have those after it")
	f.DurationVar(&opts.token, "token", failover.DefaultToken, "how long the cluster waits for a sign of life of a node")
	f.DurationVar(&opts.lease, "lease", failover.DefaultLease, "how long the lease on the disk holds, by which a takeover is longer; 0 for no lease")
	opts.nodes.flags(f, "memory")
	f.StringVar(&opts.kernel, "kernel", harness.WaitingKernel, "(qemu) `VERSION` of the kernel of the nodes, or the beginning of one")
	f.StringVar(&opts.jsonFile, "json", "", "write the results to `FILE` as JSON; - is standard output")
	f.StringVar(&opts.htmlFile, "html", "", "write a page on the results to `FILE`, for a browser; it needs no network")
	f.StringVar(&opts.dir, "dir", "/var/tmp", "make the disk of the cluster in `DIR`, which is on a disk")
	f.StringVar(&opts.logs, "logs", "", "keep the logs of all hosts in `DIR`")
	cmd.AddCommand(newFailoverListCommand(), newFailoverHostCommand(), newFailoverPowerCommand(), newFailoverClientCommand(),
		newFailoverCheckCommand(), newFailoverHogCommand())
	return cmd
}

func runFailover(ctx context.Context, opts *failoverOptions, out, progress io.Writer) error {
	plan, err := opts.plan()
	if err != nil {
		return err
	}
	cluster, err := opts.cluster()
	if err != nil {
		return err
	}
	run := func(ctx context.Context, say func(string, ...any)) ([]harness.Result, error) {
		cluster.Say = say
		say("%-6s  %s", "serves", "what happens")
		return failover.Run(ctx, cluster, plan)
	}
	return runAndReport(ctx, run, &drillOptions{jsonFile: opts.jsonFile, htmlFile: opts.htmlFile}, out, progress)
}

// maxSchedules bounds what is played: a night is not longer.
const maxSchedules = 1000

// plan returns what is to be played.
func (o *failoverOptions) plan() ([]failover.Schedule, error) {
	if o.schedules < 0 || o.schedules > maxSchedules || o.moves < 0 || o.moves > maxSchedules {
		return nil, usagef("--schedules %d, --moves %d: give at most %d", o.schedules, o.moves, maxSchedules)
	}
	names := o.faults
	if len(names)+o.schedules+o.moves == 0 {
		names = []string{"node-kill"}
	}
	var plan []failover.Schedule
	for _, name := range names {
		f, err := failover.FindFault(name)
		if err != nil {
			return nil, usageError{err}
		}
		if why := f.Skip(o.nodes.via != viaNamespaces); why != "" {
			return nil, fmt.Errorf("%s cannot be had here: %s", name, why)
		}
		plan = append(plan, failover.Schedule{Seed: o.seed, Faults: []failover.Fault{f}})
	}
	if o.moves > 0 {
		plan = append(plan, failover.Moves(o.seed, o.moves))
	}
	for i := range o.schedules {
		plan = append(plan, failover.Random(o.seed+int64(i)))
	}
	return plan, nil
}

func (o *failoverOptions) cluster() (failover.Options, error) {
	if o.token < 200*time.Millisecond || o.token > time.Minute {
		return failover.Options{}, usagef("--token %v: give 200ms to 1m", o.token)
	}
	if o.lease != 0 {
		if err := (&leaseOptions{path: "/", duration: o.lease}).validate(); err != nil {
			return failover.Options{}, err
		}
	}
	exe, err := os.Executable()
	opt := failover.Options{Exe: exe, Dir: o.dir, Logs: o.logs, Token: o.token, Lease: o.lease}
	return opt, errors.Join(err, o.nodes.apply(&opt, o.kernel, "loopnfs", o.given))
}

func newFailoverListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the faults",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, f := range failover.Faults() {
				says := f.Says
				if why := f.Skip(false); why != "" {
					says += " (not here: " + why + ")"
				}
				fmt.Fprintf(w, "%s\t%s\n", f.Name, says)
			}
			return w.Flush()
		},
	}
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
