package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"loopnfs/harness"
	"loopnfs/harness/failover"
	"loopnfs/harness/report"
	"loopnfs/harness/vm"
	"loopnfs/harness/work"
)

type drillOptions struct {
	tier     string
	servers  []string
	kernels  []string
	without  []string
	jsonFile string
	htmlFile string
	dir      string
	memory   byteSize
	seed     int64
	runs     int
	nodes    nodeOptions
}

// errNotAsDocumented is the error of drills that ran, but came out otherwise.
var errNotAsDocumented = errors.New("not every drill came out as documented")

func newDrillCommand() *cobra.Command {
	opts := drillOptions{memory: harness.DefaultMemory}
	cmd := &cobra.Command{
		Use:   "drill [NAME...]",
		Short: "Show each documented deadlock, and that it does not happen here",
		Long: `Run drills: each documented deadlock of loop-back NFS on real mounts.

On this host (--tier host) each is run twice. First the mechanism that prevents it
is switched off: the drill must hang, and the circle of waits is printed in words.
Then everything is on: the same load must finish, and every acknowledged byte is
checked after a remount. Everything happens in a directory of its own, which is
removed afterwards, also after Ctrl-C. What a killed drill left behind is cleaned
up by the next one.

With --tier vm a stock Linux kernel in a disposable guest with 192 MiB of memory
mounts NFS from itself, from loopnfs or from other servers, while somebody takes
most of the memory. The first run builds the guest's image and fetches the kernels,
which takes some minutes and a Debian mirror. Without names, --server and --kernel
it takes a quarter of an hour.

With --tier cluster it is a cluster with a server that two nodes can have, as in
loopnfs failover: each fault once, which takes three minutes. With --via qemu the nodes
are guests, whose kernels mount the export; the one that serves is killed, and the other
has no memory left. That takes three minutes for each --server.

The exit code is 0 only if every drill came out as documented, both ways.`,
		Example: `  loopnfs drill
  loopnfs drill release-page --json result.json
  loopnfs drill --tier vm release-page --server loopnfs,knfsd --html report.html
  loopnfs drill takeover --tier cluster --via qemu --server loopnfs,knfsd
  loopnfs drill --without nonblocking-release,scope release-page
  loopnfs drill list`,
		ValidArgs: harness.Names(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDrill(cmd.Context(), opts, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.tier, "tier", "host", "what to run on: `host|vm|cluster`, this host, guests with stock kernels, or a cluster of namespaces")
	f.StringSliceVar(&opts.servers, "server", nil, "(vm) put these `SERVER`s to it: all, "+strings.Join(harness.Servers, ", "))
	f.StringSliceVar(&opts.kernels, "kernel", nil, "(vm) on these `VERSION`s of the kernel: all ("+strings.Join(harness.VMKernels, ", ")+"), or others; 6.1 is the newest 6.1")
	f.IntVar(&opts.runs, "runs", 1, "(vm, cluster) repeat everything `N` times")
	f.StringSliceVar(&opts.without, "without", nil, "run only once, without these `MECHANISM`s (see drill list)")
	f.StringVar(&opts.jsonFile, "json", "", "write the results to `FILE` as JSON; - is standard output")
	f.StringVar(&opts.htmlFile, "html", "", "write a page on the results to `FILE`, for a browser; it needs no network")
	f.StringVar(&opts.dir, "dir", "/var/tmp", "make backing directories and mount points in `DIR`, on a disk")
	f.Var(&opts.memory, "memory", "size of the arena that client and server share")
	opts.nodes.flags(f, "node-memory")
	f.Int64Var(&opts.seed, "seed", 1, "seed of the load, to repeat a run")
	cmd.AddCommand(newDrillListCommand(), newDrillReportCommand(), newDrillGuestCommand(), newDrillNodeCommand(), newDrillWorkerCommand())
	return cmd
}

func runDrill(ctx context.Context, opts drillOptions, names []string, out, progress io.Writer) error {
	run, err := opts.prepare(names)
	if err != nil {
		return err
	}
	return runAndReport(ctx, run, &opts, out, progress)
}

// runAndReport runs drills until they end, or the user has had enough of them, and writes
// what came of it as opts say.
func runAndReport(ctx context.Context, run drillRun, opts *drillOptions, out, progress io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	start := time.Now()
	results, err := run(ctx, func(format string, args ...any) {
		fmt.Fprintf(progress, "%6.1f s  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	})
	if err := errors.Join(err, reportDrills(opts, results, out)); err != nil {
		return err
	}
	for i := range results {
		if !results[i].AsDocumented() {
			return errNotAsDocumented
		}
	}
	return nil
}

// drillRun runs the drills of a tier.
type drillRun func(ctx context.Context, say func(string, ...any)) ([]harness.Result, error)

// prepare checks what the user typed.
func (o *drillOptions) prepare(names []string) (drillRun, error) {
	if o.nodes.via != viaNamespaces && harness.Tier(o.tier) != harness.TierCluster {
		return nil, usagef("--via %s: only --tier cluster has nodes", o.nodes.via)
	}
	switch harness.Tier(o.tier) {
	case harness.TierHost:
		return o.prepareHost(names)
	case harness.TierVM:
		return o.prepareVM(names)
	case harness.TierCluster:
		return o.prepareCluster(names)
	}
	return nil, usagef("--tier %s: give host, vm or cluster", o.tier)
}

// prepareCluster prepares the one drill of the cluster tier: each fault once.
func (o *drillOptions) prepareCluster(names []string) (drillRun, error) {
	if len(names) > 0 && !slices.Equal(names, []string{harness.TakeoverName}) {
		return nil, usagef("%s: with --tier cluster there is only %s", strings.Join(names, ", "), harness.TakeoverName)
	}
	if len(o.without) > 0 {
		return nil, usagef("--without: with --tier cluster nothing can be switched off")
	}
	if o.nodes.via != viaNamespaces {
		return o.prepareGuests()
	}
	exe, err := os.Executable()
	return func(ctx context.Context, say func(string, ...any)) ([]harness.Result, error) {
		_, others := failover.Available()
		for _, why := range others {
			say("left out: %s", why)
		}
		opt := failover.Options{Exe: exe, Dir: o.dir, Token: failover.DefaultToken, Lease: failover.DefaultLease, Say: say}
		return failover.Run(ctx, opt, slices.Repeat(failover.Each(o.seed), o.runs))
	}, err
}

func (o *drillOptions) prepareHost(names []string) (drillRun, error) {
	drills, err := harness.Find(names)
	if err == nil {
		err = harness.CheckMechanisms(o.without)
	}
	if err != nil {
		return nil, usageError{err}
	}
	exe, err := os.Executable()
	return func(ctx context.Context, say func(string, ...any)) ([]harness.Result, error) {
		return harness.Run(ctx, drills, harness.Options{
			Exe: exe, Dir: o.dir, Memory: int64(o.memory), Seed: o.seed, Without: o.without, Say: say,
		})
	}, err
}

func (o *drillOptions) prepareVM(names []string) (drillRun, error) {
	drills, err := harness.FindVM(names)
	if err != nil {
		return nil, usageError{err}
	}
	if err := o.validateVM(); err != nil {
		return nil, err
	}
	runs := harness.Matrix(drills, all(o.servers, harness.Servers), all(o.kernels, harness.VMKernels), o.runs)
	if len(names)+len(o.servers)+len(o.kernels)+len(o.without) == 0 {
		runs = harness.DefaultMatrix(o.runs)
	}
	if len(runs) == 0 {
		return nil, usagef("%s: only --server loopnfs can be put to that", strings.Join(names, ", "))
	}
	tools, err := vm.FindTools()
	return func(ctx context.Context, say func(string, ...any)) ([]harness.Result, error) {
		return harness.RunVM(ctx, runs, harness.VMOptions{Without: o.without, Seed: o.seed, Say: say, Tools: tools})
	}, err
}

func (o *drillOptions) validateVM() error {
	for _, s := range o.servers {
		if s != everyone && !slices.Contains(harness.Servers, s) {
			return usagef("--server %s: there are %s, and %s", s, strings.Join(harness.Servers, ", "), everyone)
		}
	}
	if o.runs < 1 || o.runs > maxRuns {
		return usagef("--runs %d: give 1 to %d", o.runs, maxRuns)
	}
	return without(o.without).validate()
}

// everyone stands for the whole list of servers, or of kernels.
const everyone = "all"

// maxRuns bounds how often drills are repeated: a night is not longer.
const maxRuns = 100

// all returns chosen, or every one if that was chosen.
func all(chosen, every []string) []string {
	if slices.Contains(chosen, everyone) {
		return every
	}
	return chosen
}

// reportDrills writes the results in every form that was asked for.
func reportDrills(opts *drillOptions, results []harness.Result, out io.Writer) error {
	return errors.Join(printDrills(opts.jsonFile, results, out), writeHTML(opts.htmlFile, results))
}

// printDrills writes the table to out, or JSON to jsonFile.
func printDrills(jsonFile string, results []harness.Result, out io.Writer) error {
	if jsonFile == "-" {
		return harness.WriteJSON(out, results)
	}
	if len(results) > 0 {
		fmt.Fprintln(out)
		if err := harness.WriteTable(out, results); err != nil {
			return err
		}
	}
	if jsonFile == "" {
		return nil
	}
	return writeFile(jsonFile, func(w io.Writer) error { return harness.WriteJSON(w, results) })
}

// writeHTML writes a page on results to file; "" is none.
func writeHTML(file string, results []harness.Result) error {
	if file == "" {
		return nil
	}
	return writeFile(file, func(w io.Writer) error { return report.Write(w, results) })
}

func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func newDrillListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the drills and the mechanisms that can be switched off",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listDrills(cmd.OutOrStdout())
		},
	}
}

func listDrills(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "drill\ttier\tmechanism\tloop")
	for _, d := range harness.Drills() {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", d.Name, harness.TierHost, d.Mechanism, d.Loop)
	}
	for _, d := range harness.VMDrills() {
		fmt.Fprintf(w, "%s\t%s\t\t%s\n", d.Name, harness.TierVM, d.Loop)
	}
	fmt.Fprintf(w, "%s\t%s\t\t%s\n", harness.TakeoverName, harness.TierCluster, harness.TakeoverLoop)
	fmt.Fprintln(w, "\nmechanism\ttier\twithout it")
	for _, m := range harness.Mechanisms() {
		fmt.Fprintf(w, "%s\t%s\t%s\n", m.Name, harness.TierHost, m.Off)
	}
	for _, m := range harness.VMMechanisms() {
		fmt.Fprintf(w, "%s\t%s\t%s\n", m.Name, harness.TierVM, m.Off)
	}
	return w.Flush()
}

// newDrillNodeCommand is a process of a drill, not for people.
func newDrillNodeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "node", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return harness.RunNode(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// newDrillWorkerCommand is a process of a drill, not for people.
func newDrillWorkerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "worker {run|verify}", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return work.Main(cmd.Context(), args[0], cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
