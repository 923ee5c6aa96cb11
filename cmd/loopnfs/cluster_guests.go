package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"loopnfs/harness"
	"loopnfs/harness/failover"
	"loopnfs/harness/vm"
)

// Ways to make the nodes of a cluster.
const (
	viaNamespaces = "namespaces"
	viaQEMU       = "qemu"
)

// maxMaxGap bounds how long clients may be allowed to wait.
const maxMaxGap = 10 * time.Minute

// nodeOptions say what the nodes of a cluster are.
type nodeOptions struct {
	via    string
	memory byteSize
	maxGap time.Duration
}

func (o *nodeOptions) flags(f *pflag.FlagSet, memoryFlag string) {
	o.memory = failover.GuestMemory
	f.StringVar(&o.via, "via", viaNamespaces, "make the nodes of the cluster of `namespaces|qemu`: guests have kernels of their own, which mount the export, and boot in a minute or two")
	f.Var(&o.memory, memoryFlag, "(qemu) memory of a node")
	f.DurationVar(&o.maxGap, "max-gap", failover.GuestGap, "(qemu) it fails if a client waits for longer than `TIME`, times the tasks that there are for each processor of this machine")
}

// apply puts into opt what the nodes are. Flags that were given are left as they are. Guests
// have no lease otherwise: an emulated one may stand still for longer than it holds.
func (o *nodeOptions) apply(opt *failover.Options, kernel, server string, given func(flag string) bool) error {
	switch o.via {
	case viaNamespaces:
		return nil
	case viaQEMU:
	default:
		return usagef("--via %s: give %s or %s", o.via, viaNamespaces, viaQEMU)
	}
	if o.maxGap < time.Second || o.maxGap > maxMaxGap {
		return usagef("--max-gap %v: give 1s to %v", o.maxGap, maxMaxGap)
	}
	tools, err := vm.FindTools()
	opt.Guests = &failover.Guests{Kernel: kernel, MemoryMiB: int(o.memory >> 20), MaxGap: o.maxGap, Server: server, Tools: tools}
	if !given("token") {
		opt.Token = failover.GuestToken
	}
	if !given("lease") {
		opt.Lease = 0
	}
	return err
}

// prepareGuests prepares the drill of the cluster tier with nodes that are guests, for each
// of the servers and kernels.
func (o *drillOptions) prepareGuests() (drillRun, error) {
	servers, kernels := o.servers, all(o.kernels, harness.VMKernels)
	if len(servers) == 0 {
		servers = []string{"loopnfs"}
	}
	if len(kernels) == 0 {
		kernels = []string{harness.WaitingKernel}
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	none := func(string) bool { return false }
	var clusters []failover.Options
	for _, server := range all(servers, failover.GuestServers) {
		if !slices.Contains(failover.GuestServers, server) {
			return nil, usagef("--server %s: nodes of a cluster can have %v", server, failover.GuestServers)
		}
		for _, kernel := range kernels {
			opt := failover.Options{Exe: exe, Dir: o.dir}
			if err := o.nodes.apply(&opt, kernel, server, none); err != nil {
				return nil, err
			}
			clusters = append(clusters, opt)
		}
	}
	plan, err := failover.GuestSchedule(o.seed)
	return func(ctx context.Context, say func(string, ...any)) (results []harness.Result, err error) {
		for _, opt := range slices.Repeat(clusters, o.runs) {
			opt.Say = say
			say("%-6s  nodes with %s", "serves", describeNodes(&opt))
			found, err := failover.Run(ctx, opt, plan)
			results = append(results, found...)
			if err != nil {
				return results, err
			}
		}
		return results, nil
	}, err
}

func describeNodes(o *failover.Options) string {
	g := o.Guests
	return fmt.Sprintf("%s on Linux %s, %d MiB each", g.Server, g.Kernel, g.MemoryMiB)
}
