package harness

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/vm"
	"loopnfs/harness/vm/job"
)

const (
	// sayEvery is how often the state of a guest is told, in guest seconds.
	sayEvery = 5
	// The addresses of two guests.
	clientAddress, serverAddress = "10.0.0.1", "10.0.0.2"
	// serverMiB is the memory of a server's own guest.
	serverMiB = 256
)

// guests is the guest of a run, or two of them.
type guests struct {
	res    *Result
	opt    *VMOptions
	server job.Server
	client job.Job
	remote bool
	report *job.Result
	stuck  *job.Result // what was known when it stood still
	told   float64
	// frozen ends a guest that said that it stands still and then nothing more.
	frozen *time.Timer
}

// errFrozen is the end of a guest whose monitor cannot run either.
var errFrozen = errors.New("the guest stands still, its monitor too")

// frozenLimit is how long a monitor has to find out who waits, in real time.
const frozenLimit = time.Minute

func newGuests(d VMDrill, res *Result, opt VMOptions) *guests {
	g := &guests{res: res, opt: &opt, client: d.Job, remote: d.Remote, told: -sayEvery}
	g.server.Name = res.Server
	if res.Server == "loopnfs" {
		g.server.Without = opt.Without
	}
	load := *d.Job.Load
	load.Server = g.server
	load.Work.Seed, load.Baseline.Seed = opt.Seed, opt.Seed
	if d.Remote {
		load.Server.Host, g.client.Address = serverAddress, clientAddress+"/24"
	}
	g.client.Load, g.client.Modules = &load, vm.AllModules()
	return g
}

func (g *guests) config(j job.Job, memory int) vm.Config {
	return vm.Config{
		Kernel: g.res.Kernel, MemoryMiB: memory, CPUs: 1, DiskMiB: vmDiskMiB, Job: j,
		Files: g.opt.Tools.Files(), Init: g.opt.Tools.Guest, Limit: guestLimit, Say: g.opt.Say,
	}
}

// runClient boots the guest with the mount and waits for its end.
func (g *guests) runClient(ctx context.Context) error {
	return g.boot(ctx, g.config(g.client, vmMemoryMiB))
}

// arm makes the timer, which does not run yet.
func (g *guests) arm(end func()) {
	g.frozen = time.AfterFunc(frozenLimit, end)
	g.frozen.Stop()
}

func (g *guests) boot(ctx context.Context, cfg vm.Config) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g.arm(func() { cancel(errFrozen) })
	defer g.frozen.Stop()
	var console strings.Builder
	cfg.Handle, cfg.Console = g.handle, &console
	version, err := vm.Run(ctx, cfg)
	if errors.Is(err, errFrozen) {
		g.report, err = g.stuck, nil
		g.report.Error, g.report.Stacks = errFrozen.Error(), consoleStacks(console.String())
	}
	if version != "" {
		g.res.Kernel = version
	}
	if err == nil && g.report == nil {
		err = errors.New("the guest ended without a result")
	}
	return err
}

// runBoth boots a guest for the server, then the one with the mount.
func (g *guests) runBoth(ctx context.Context) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	near, far := os.NewFile(uintptr(pair[0]), "wire"), os.NewFile(uintptr(pair[1]), "wire")
	defer near.Close()
	defer far.Close()
	ctx, cancel := context.WithCancel(ctx)
	serving, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.runServer(ctx, far, serving) }()
	select {
	case <-serving:
	case err := <-ended:
		cancel()
		return errors.Join(errors.New("the guest of the server"), err)
	}
	cfg := g.config(g.client, vmMemoryMiB)
	cfg.Wire = near
	err = g.boot(ctx, cfg)
	cancel()
	<-ended // it was told to
	return err
}

func (g *guests) runServer(ctx context.Context, wire *os.File, serving chan struct{}) error {
	server := g.server
	cfg := g.config(job.Job{
		Address: serverAddress + "/24", Modules: vm.AllModules(), Disk: g.client.Disk, Serve: &server,
	}, serverMiB)
	cfg.Wire = wire
	var once sync.Once
	cfg.Handle = func(e job.Event) {
		if e.Serving {
			once.Do(func() { close(serving) })
		}
	}
	_, err := vm.Run(ctx, cfg)
	return err
}

// handle takes the events of the guest with the mount.
func (g *guests) handle(e job.Event) {
	switch {
	case e.Say != "":
		g.opt.Say("  %s", e.Say)
	case e.Stuck != nil:
		g.stuck = e.Stuck
		g.frozen.Reset(frozenLimit)
	case e.Result != nil:
		g.frozen.Stop()
		g.report = e.Result
	case e.Sample != nil:
		g.frozen.Stop()
		g.res.Timeline = append(g.res.Timeline, *e.Sample)
		if s := e.Sample; s.Seconds-g.told >= sayEvery {
			g.told = s.Seconds
			g.opt.Say("  %3.0f s: %d MiB written, %d MiB free, %d dirty, %d in write-back", s.Seconds,
				s.Bytes>>20, s.FreeKB>>10, s.DirtyKB>>10, s.WritebackKB>>10)
		}
	}
}
