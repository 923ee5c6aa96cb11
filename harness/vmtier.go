package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"loopnfs/harness/vm"
	"loopnfs/harness/vm/job"
	"loopnfs/harness/work"
)

// TierVM is stock kernels in guests, which mount NFS from themselves.
const TierVM Tier = "vm"

// VMDrill is a load on a loop-back mount of the kernel's client.
type VMDrill struct {
	Name string
	// Loop is what could wait for what, in words.
	Loop string
	// Peers says whether servers of others can be put to it.
	Peers bool
	// Full says that the drill is part of the full matrix only.
	Full bool
	// Remote says that the server runs in a guest of its own.
	Remote bool
	// Job is what the guest does; its Load is the drill.
	Job job.Job
}

// Limits of the vm tier, in guest time.
const (
	vmMemoryMiB = 192
	vmDiskMiB   = 768
	// hangSeconds without progress are a standstill: survivors have been seen
	// to take 11 s for a single write.
	hangSeconds = 20
	// stallSeconds is the longest that a run of ours may stand still.
	stallSeconds = 8
	// takeoverSeconds is that if its server is lost, and another one started.
	takeoverSeconds = 45
	loadSeconds     = 120
	// guestLimit bounds a run in real time.
	guestLimit = 8 * time.Minute
)

// Servers are those that the vm tier knows.
var Servers = []string{"loopnfs", "knfsd", "ganesha", "gonfs"}

// VMKernels are those of the full matrix: before, in the time of, and after the
// nfs_release_folio that waits.
var VMKernels = []string{"6.1", WaitingKernel, "6.12.117"}

// WaitingKernel is the one that nobody else survives on.
const WaitingKernel = "6.12.43"

// VMRun is one run: a drill against a server on a kernel.
type VMRun struct {
	Drill          VMDrill
	Server, Kernel string
}

// Matrix returns each drill against each server on each kernel, n times. Empty
// lists stand for loopnfs, and for the kernel that waits.
func Matrix(drills []VMDrill, servers, kernels []string, n int) []VMRun {
	if len(servers) == 0 {
		servers = []string{"loopnfs"}
	}
	if len(kernels) == 0 {
		kernels = []string{WaitingKernel}
	}
	var runs []VMRun
	for range n {
		for _, d := range drills {
			for _, server := range servers {
				if server != "loopnfs" && !d.Peers {
					continue
				}
				for _, kernel := range kernels {
					runs = append(runs, VMRun{d, server, kernel})
				}
			}
		}
	}
	return runs
}

// DefaultMatrix returns what is run if nothing is chosen: everything on the
// kernel that waits, the kernel's own server for comparison, and on the other
// kernels what differs there.
func DefaultMatrix(n int) []VMRun {
	var all, release, restart []VMDrill
	for _, d := range VMDrills() {
		switch d.Name {
		case "release-page":
			release = append(release, d)
		case "restart":
			restart = append(restart, d)
		}
		if !d.Full {
			all = append(all, d)
		}
	}
	return slices.Concat(
		Matrix(release, []string{"knfsd"}, nil, n), Matrix(all, nil, nil, n),
		Matrix(release, nil, []string{VMKernels[0], VMKernels[2]}, n), Matrix(restart, nil, VMKernels[:1], n))
}

// VMOptions say how the drills of the vm tier are run.
type VMOptions struct {
	// Without are mechanisms of loopnfs that are off.
	Without []string
	Seed    int64
	Say     func(format string, args ...any)
	Tools   *vm.Tools
}

// VMDrills returns the drills of the vm tier, in the order in which they run.
func VMDrills() []VMDrill {
	return []VMDrill{
		{
			Name:  "release-page",
			Loop:  "the server's write allocates -> direct reclaim -> nfs_release_folio waits for COMMIT -> the server",
			Peers: true,
			Job:   vmJob("", 55, map[string]string{"vm/dirty_ratio": "40"}),
		},
		{
			Name:  "throttle-livelock",
			Loop:  "the mount's pages fill the dirty limit; the server's writes, which would clean them, are throttled",
			Peers: true,
			Job:   throttleJob(),
		},
		{
			Name:  "anon-fault",
			Loop:  "the server's own memory is swapped out to free some -> it faults -> direct reclaim -> the server",
			Peers: true,
			Job:   vmJob("anon-fault", 90, map[string]string{"vm/dirty_ratio": "40"}),
		},
		{
			Name:  "compaction",
			Loop:  "compaction moves a page of the mount -> waits until it is written -> the server needs memory in one piece",
			Peers: true,
			Job:   vmJob("compact", 55, map[string]string{"vm/dirty_ratio": "40"}),
		},
		{
			Name:  "compact-memory",
			Loop:  "a process compacts memory -> splits a page of the mount, waits until it is written -> the server waits for pages that it moves",
			Peers: true,
			Full:  true,
			Job:   compactMemoryJob(),
		},
		{
			Name:  "restart",
			Loop:  "the server is killed in mid-write; to start again it needs memory that only it can free",
			Peers: true,
			Job:   restartJob(),
		},
		{
			Name:  "takeover",
			Loop:  "the server's host dies, and its client's pages fill the dirty limit; the next server starts beside them, in memory that only it can free",
			Peers: true,
			Full:  true,
			Job:   takeoverJob(),
		},
		{
			Name:  "freeze",
			Loop:  "the exported file system is frozen under dirty pages of its own mount",
			Peers: true,
			Job:   freezeJob(),
		},
		{
			Name:  "stacked-ext4",
			Loop:  "ext4 on nbd on a file of the mount: each layer needs memory to clean the one above",
			Peers: true,
			Job:   stackedJob("stack-ext4"),
		},
		{
			Name:  "stacked-xfs",
			Loop:  "XFS on nbd on a file of the mount: each layer needs memory to clean the one above",
			Peers: true,
			Job:   stackedJob("stack-xfs"),
		},
		{
			Name:  "stacked-fuse",
			Loop:  "a store behind FUSE on a directory of the mount: its pages become clean through the server below",
			Peers: true,
			Job:   stackedJob("stack-fuse"),
		},
		{
			Name:   "swap",
			Loop:   "to swap a page out, the client needs memory for the request",
			Peers:  true,
			Remote: true,
			Job:    swapJob(),
		},
		{
			Name:  "swap-loopback",
			Loop:  "to swap a page out, the client needs the reply, and the server needs a page to send it",
			Peers: true,
			Job:   swapJob(),
		},
		{
			Name: "host-guard",
			Loop: "one thread of the server that may enter reclaim of the mount is enough for the others",
			Job:  vmJob("thread-flags", 55, map[string]string{"vm/dirty_ratio": "40"}),
		},
	}
}

// vmJob returns the usual load: two writers beside a process that has taken hog
// percent of memory.
func vmJob(script string, hog int, sysctl map[string]string) job.Job {
	stream := work.Config{Mode: work.Stream, Dir: "/mnt", Log: "/job/acknowledged", Jobs: 2, Blocks: 2048, Rounds: 3}
	base := stream
	base.Log, base.Blocks, base.Rounds = "/job/baseline", 512, 1
	return job.Job{
		Disk: "ext4",
		Load: &job.Load{
			Script: script, Sysctl: sysctl, HogPercent: hog, Work: stream, Baseline: base,
			StallSeconds: stallSeconds, HangSeconds: hangSeconds, LimitSeconds: loadSeconds,
		},
	}
}

// compactMemoryJob has the export on XFS: pages with metadata of ext4 are among those
// that are moved.
func compactMemoryJob() job.Job {
	j := vmJob("compact-mem", 55, map[string]string{"vm/dirty_ratio": "40"})
	j.Disk = "xfs"
	return j
}

// throttleJob is one write of 16 MiB with a dirty limit of 4, and no pressure.
func throttleJob() job.Job {
	j := vmJob("", 0, map[string]string{"vm/dirty_bytes": "4194304"})
	j.Load.Work.Jobs, j.Load.Work.Blocks, j.Load.Work.Rounds = 1, 512, 1
	j.Load.HangSeconds = loadSeconds // others take half a minute for one write(2)
	return j
}

func restartJob() job.Job {
	j := vmJob("restart", 40, map[string]string{"vm/dirty_ratio": "40"})
	j.Load.Work.Rounds = 4
	return j
}

// takeoverJob has time without a server in it: until the writers stand still, and until the
// client tries again.
func takeoverJob() job.Job {
	j := vmJob("takeover", 40, map[string]string{"vm/dirty_ratio": "40"})
	j.Load.Work.Rounds = 6
	j.Load.StallSeconds, j.Load.HangSeconds, j.Load.LimitSeconds = takeoverSeconds, 2*takeoverSeconds, 2*loadSeconds
	return j
}

func freezeJob() job.Job {
	j := vmJob("freeze", 55, map[string]string{"vm/dirty_ratio": "40"})
	j.Load.Work.Rounds = 1
	return j
}

func stackedJob(script string) job.Job {
	j := vmJob(script, 40, map[string]string{"vm/dirty_ratio": "40"})
	j.Load.Work.Dir, j.Load.Baseline.Dir = "/stack", "/stack"
	j.Load.Work.Rounds = 2
	return j
}

// swapJob takes more memory than there is; what is too much goes to the mount. The
// watermarks are so high that kswapd begins while there are pages for those who may
// not use the reserve: for the network card's receive ring, for a server's replies, and
// for the journal of its file system.
func swapJob() job.Job {
	j := vmJob("swap", 130, map[string]string{
		"vm/dirty_ratio": "40", "vm/min_free_kbytes": "24576", "vm/watermark_scale_factor": "1000",
	})
	j.Load.Work.Rounds = 1
	return j
}

// vmExpected returns how a run comes out as documented; "" where nothing is
// documented.
func vmExpected(d *VMDrill, server, kernel string, without []string) Outcome {
	if server == "loopnfs" {
		if len(without) == 0 {
			return Survived
		}
		return ""
	}
	// go-nfs says of everything that it is stable, without having stored it: there
	// are no COMMITs that anybody could wait for.
	if server != "gonfs" && d.Name == "release-page" && kernel == WaitingKernel {
		return Hung
	}
	return ""
}

// RunVM carries out runs, one after the other.
func RunVM(ctx context.Context, runs []VMRun, opt VMOptions) ([]Result, error) {
	var results []Result
	for i, r := range runs {
		opt.Say("run %d of %d: %s", i+1, len(runs), r.name(opt.Without))
		results = append(results, r.run(ctx, opt))
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
	}
	return results, nil
}

func (v *VMRun) name(without []string) string {
	if v.Server != "loopnfs" {
		without = nil
	}
	return fmt.Sprintf("%s, %s on %s%s", v.Drill.Name, v.Server, v.Kernel, withoutWords(strings.Join(without, ",")))
}

func (v *VMRun) run(ctx context.Context, opt VMOptions) Result {
	d := v.Drill
	res := Result{
		Drill: d.Name, Tier: TierVM, Server: v.Server, Kernel: v.Kernel, Seed: opt.Seed,
		Outcome: Failed, Cycle: []string{},
	}
	if v.Server == "loopnfs" {
		res.Without = strings.Join(opt.Without, ",")
	}
	report, err := bootDrill(ctx, d, &res, opt)
	if err == nil {
		err = judge(&res, report, d.Job.Load.StallSeconds)
	}
	if err != nil {
		res.Outcome, res.Error = Failed, err.Error()
	}
	res.Expected = vmExpected(&d, v.Server, res.Kernel, opt.Without)
	opt.Say("%s: %s after %.1f s", v.name(opt.Without), res.Outcome, res.Seconds)
	return res
}

// bootDrill runs the drill in a guest and returns what the guest says of it.
func bootDrill(ctx context.Context, d VMDrill, res *Result, opt VMOptions) (*job.Result, error) {
	g := newGuests(d, res, opt)
	if !d.Remote {
		err := g.runClient(ctx)
		return g.report, err
	}
	err := g.runBoth(ctx)
	return g.report, err
}

// judge turns what the guest saw into an outcome. A run of ours may stand still for stall
// seconds.
func judge(res *Result, r *job.Result, stall int) error {
	res.Seconds, res.Bytes, res.DataVerified = r.Seconds, r.Bytes, r.Verified
	res.MaxLatencyMs = int64(1000 * max(r.Latency, r.Stall))
	res.StallMs, res.OOMKills, res.Killed = int64(1000*r.Stall), r.OOMKills, r.Killed
	res.Rate, res.BaselineRate = r.Rate, r.BaselineRate
	res.Stacks, res.Notes = r.Stacks, r.Notes
	collapsed := r.Rate*collapseRatio < r.BaselineRate
	switch r.Outcome {
	case job.Survived:
		res.Outcome = Survived
		if collapsed {
			res.Outcome = Collapsed
		}
	case job.Hung:
		res.Outcome, res.Cycle = Hung, ExplainStacks(r.Stacks)
		if r.Error != "" {
			res.Notes = append(res.Notes, r.Error)
		}
	case job.Slow:
		res.Outcome = Collapsed
		if !collapsed {
			return fmt.Errorf("not finished after %.0f s of load, at %.1f MB/s (%.1f without pressure)", r.Seconds, r.Rate/1e6, r.BaselineRate/1e6)
		}
	default:
		return errors.New(cmp.Or(r.Error, "the guest did not say what came of the load"))
	}
	return ours(res, stall)
}

// ours holds a run of loopnfs with everything on against what it promises.
func ours(res *Result, stall int) error {
	switch {
	case res.Server != "loopnfs" || res.Without != "" || res.Outcome != Survived:
		return nil
	case res.StallMs > int64(stall)*1000:
		return fmt.Errorf("stood still for %.1f s; %d s are allowed", float64(res.StallMs)/1000, stall)
	case slices.Contains(res.Killed, "loopnfs"):
		return errors.New("the server was killed by the OOM killer")
	}
	return nil
}

// FindVM returns the drills of the vm tier with the given names, all of them if
// there are none.
func FindVM(names []string) ([]VMDrill, error) {
	all := map[string]VMDrill{}
	var order []string
	for _, d := range VMDrills() {
		all[d.Name] = d
		order = append(order, d.Name)
	}
	if len(names) == 0 {
		names = order
	}
	var found []VMDrill
	for _, n := range names {
		d, ok := all[n]
		if !ok {
			return nil, fmt.Errorf("no drill of the vm tier is called %q; there are: %s", n, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		found = append(found, d)
	}
	return found, nil
}
