package harness

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"loopnfs/harness/work"
)

// Options say how drills are run.
type Options struct {
	// Exe is the loopnfs binary; nodes and workers are subcommands of it.
	Exe string
	// Dir is where backing directories and mount points are made. It must be
	// on a disk for O_DIRECT to mean something.
	Dir string
	// Memory is the size of the arena, in bytes.
	Memory int64
	Seed   int64
	// Without switches off mechanisms in addition to that of the drill. With
	// any, each drill is run only once, without them.
	Without []string
	// Say is told, in a line, what is going on.
	Say func(format string, args ...any)
}

// Limits of a run.
const (
	// DefaultMemory is small enough for the load to be ten times larger.
	DefaultMemory = 16 << 20
	readyLimit    = 20 * time.Second
	// stallLimit is how long no acknowledgement makes a stall; with a circle
	// of waits that stands still it is a hang. Without one, hangLimit is.
	stallLimit = 4 * time.Second
	hangLimit  = 20 * time.Second
	runLimit   = 120 * time.Second
	// deadFor is how long nothing is acknowledged before a server is started elsewhere.
	deadFor = 2 * time.Second
	// baselineFor is how long the load runs without pressure, to tell a
	// collapse from slowness, and collapseRatio how much slower that is.
	baselineFor    = 5 * time.Second
	baselineMemory = 16 // times the memory of the drill
	collapseRatio  = 10
)

// Run runs each drill without its mechanism and with all of them, and returns
// what came out. The error is for what kept it from running at all; ctx ends it
// early. Whatever happens, nothing is left behind.
func Run(ctx context.Context, drills []Drill, opt Options) (results []Result, err error) {
	if err := checkTools(); err != nil {
		return nil, err
	}
	// The mount table has real paths only.
	if opt.Dir, err = filepath.Abs(opt.Dir); err == nil {
		opt.Dir, err = filepath.EvalSymlinks(opt.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("no directory for the drills: %w; name one with --dir", err)
	}
	said, err := CleanLeftovers()
	for _, s := range said {
		opt.Say("%s", s)
	}
	if err != nil {
		return nil, err
	}
	l, err := NewLedger(opt.Dir)
	if err != nil {
		return nil, err
	}
	r := &runner{opt: opt, ledger: l, spawn: newSpawner()}
	defer func() {
		r.spawn.close()
		_, cleanErr := l.Clean()
		err = errors.Join(err, cleanErr)
	}()
	for _, d := range drills {
		for _, without := range r.rounds(d) {
			results = append(results, r.run(ctx, d, without))
			if ctx.Err() != nil {
				return results, ctx.Err()
			}
		}
	}
	return results, nil
}

// runner holds what the runs of one drill process share.
type runner struct {
	opt    Options
	ledger *Ledger
	spawn  *spawner
	n      int
}

// rounds returns the sets of mechanisms that d is run without.
func (r *runner) rounds(d Drill) [][]string {
	if len(r.opt.Without) > 0 {
		return [][]string{r.opt.Without}
	}
	return [][]string{{d.Mechanism}, nil}
}

// run is one run of a drill; what goes wrong is in the result.
func (r *runner) run(ctx context.Context, d Drill, without []string) Result {
	res := Result{
		Drill: d.Name, Tier: TierHost, Server: "loopnfs", Seed: r.opt.Seed,
		Without: strings.Join(without, ","), Expected: Survived, Outcome: Failed, Cycle: []string{},
	}
	if slices.Contains(without, d.Mechanism) {
		res.Expected = Hung
		d.Work.Rounds *= max(1, d.Patience)
	}
	r.opt.Say("%s%s", d.Name, withoutWords(res.Without))
	s, err := r.newScene(d, without, r.opt.Memory)
	if err == nil {
		err = s.play(ctx, &res)
		err = errors.Join(err, s.close())
	}
	if err != nil {
		res.Outcome, res.Error = Failed, err.Error()
	}
	r.opt.Say("%s%s: %s after %.1f s", d.Name, withoutWords(res.Without), res.Outcome, res.Seconds)
	return res
}

// scene is one run: its directories and processes.
type scene struct {
	r       *runner
	drill   Drill
	dir     string
	cfg     NodeConfig
	work    work.Config
	node    *child
	other   *child   // the server elsewhere, of a takeover
	load    []*child // what has to finish: the worker first
	hogs    []*child // what goes on until the load has finished
	started time.Time

	mu       sync.Mutex
	progress work.Progress
	moved    time.Time // of the last acknowledgement
	deadlock [][]string
	seen     time.Time // when it was last there
	waits    []string
	ready    chan struct{}
	addr     string // of the server of the node that was ready last
}

func (r *runner) newScene(d Drill, without []string, memory int64) (*scene, error) {
	r.n++
	s := &scene{r: r, drill: d, dir: filepath.Join(r.ledger.Dir, fmt.Sprint(r.n)), work: d.Work}
	s.cfg = NodeConfig{
		Export: filepath.Join(s.dir, "export"), State: filepath.Join(s.dir, "state"),
		Mountpoint: filepath.Join(s.dir, "mnt"), Memory: memory, Without: without,
	}
	s.work.Dir, s.work.Log, s.work.Seed = s.cfg.Mountpoint, filepath.Join(s.dir, "acknowledged"), r.opt.Seed
	for _, dir := range []string{s.cfg.Export, s.cfg.State, s.cfg.Mountpoint} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// play runs the load, and decides what became of it.
func (s *scene) play(ctx context.Context, res *Result) error {
	if err := s.startFirst(ctx); err != nil {
		return err
	}
	if err := s.startLoad(); err != nil {
		return err
	}
	if s.drill.Takeover {
		if err := s.takeOver(ctx); err != nil {
			s.fill(res)
			return err
		}
	}
	outcome, err := s.watch(ctx, runLimit)
	s.fill(res)
	if err != nil {
		return err
	}
	switch outcome {
	case Hung:
		res.Outcome, res.Cycle = Hung, append(res.Cycle, s.cycle()...)
		return s.explain(res)
	case Collapsed: // out of time, still moving
		return s.compare(ctx, res)
	}
	if err := s.verify(ctx); err != nil {
		return err
	}
	res.Outcome, res.DataVerified = Survived, true
	return nil
}

func (s *scene) fill(res *Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	res.Seconds = time.Since(s.started).Seconds()
	res.Bytes = s.progress.Bytes
	res.MaxLatencyMs = s.progress.MaxLatencyMs
	if !s.load[0].ended() {
		res.MaxLatencyMs = max(res.MaxLatencyMs, time.Since(s.moved).Milliseconds())
	}
}

// cycle returns the circle that the drill documents if it is among those found,
// else the shortest.
func (s *scene) cycle() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.deadlock {
		if s.drill.explains(c) {
			return c
		}
	}
	if len(s.deadlock) > 0 {
		return s.deadlock[0]
	}
	return nil
}

// explain holds a hang against what the drill documents.
func (s *scene) explain(res *Result) error {
	switch {
	case len(res.Cycle) == 0:
		return fmt.Errorf("no acknowledgement for %v, and no circle of waits; waiting were:\n  %s", hangLimit, strings.Join(s.waits, "\n  "))
	case res.Expected == Hung && !s.drill.explains(res.Cycle):
		return fmt.Errorf("hung in another circle than the documented one: %q", res.Cycle)
	}
	return nil
}

// compare tells a collapse from slowness: it runs the same load without
// pressure, with every mechanism on.
func (s *scene) compare(ctx context.Context, res *Result) error {
	rate := float64(res.Bytes) / res.Seconds
	if err := s.close(); err != nil {
		return err
	}
	s.r.opt.Say("%s: still moving; the same load without pressure, to compare", s.drill.Name)
	b, err := s.r.newScene(s.drill, nil, s.r.opt.Memory*baselineMemory)
	if err != nil {
		return err
	}
	defer b.close()
	if b.node, err = b.startNode(ctx, b.cfg); err != nil {
		return err
	}
	if err := b.startLoad(); err != nil {
		return err
	}
	if _, err := b.watch(ctx, baselineFor); err != nil {
		return err
	}
	var base Result
	b.fill(&base)
	if full := float64(base.Bytes) / base.Seconds; rate*collapseRatio >= full {
		return fmt.Errorf("slow (%.1f MiB/s, %.1f without pressure), but neither hung nor collapsed", rate/(1<<20), full/(1<<20))
	}
	res.Outcome = Collapsed
	return nil
}

// startFirst starts what the load begins with: one node, or a server that will die, and the
// node of its client.
func (s *scene) startFirst(ctx context.Context) (err error) {
	if !s.drill.Takeover {
		s.node, err = s.startNode(ctx, s.cfg)
		return err
	}
	elsewhere, survivor := s.cfg, s.cfg
	elsewhere.Part, survivor.Part = Elsewhere, Survivor
	if s.other, err = s.startNode(ctx, elsewhere); err != nil {
		return err
	}
	survivor.Addr = s.addr
	s.node, err = s.startNode(ctx, survivor)
	return err
}

// startNode starts a node and waits until it can be used.
func (s *scene) startNode(ctx context.Context, cfg NodeConfig) (*child, error) {
	s.mu.Lock()
	s.ready = make(chan struct{})
	s.deadlock, s.waits = nil, nil
	s.mu.Unlock()
	node, err := s.start("node", s.r.opt.Exe, "drill", "node")
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(node.in).Encode(cfg); err != nil {
		node.kill()
		return nil, errors.Join(err, node.failure())
	}
	go s.listen(node)
	select {
	case <-s.ready:
		return node, nil
	case <-node.done:
		err = errors.Join(errors.New("the node did not start"), node.failure())
	case <-time.After(readyLimit):
		err = fmt.Errorf("the node was not ready within %v: %s", readyLimit, node.errs.String())
	case <-ctx.Done():
		err = ctx.Err()
	}
	node.kill()
	return nil, err
}

// takeOver kills the server elsewhere in the middle of the load, and has the node start one
// when the pages that nobody takes have filled its memory.
func (s *scene) takeOver(ctx context.Context) error {
	half := int64(s.work.Jobs*s.work.Blocks*s.work.Rounds) / 2
	err := s.until(ctx, "half of the load", s.other.done, func() bool { return s.progress.Acked >= half })
	if err != nil {
		return err
	}
	if s.other.kill(); !s.other.ended() {
		return errors.New("the server elsewhere cannot be killed: it waits in the kernel")
	}
	s.r.opt.Say("%s: the server elsewhere is dead", s.drill.Name)
	err = s.until(ctx, "the mount to stand still", nil, func() bool { return time.Since(s.moved) >= deadFor })
	if err != nil {
		return err
	}
	if s.load[0].ended() {
		return errors.New("the load has ended before the server was started here: it is too short for this machine")
	}
	_, err = s.node.in.Write([]byte("takeover\n"))
	return err
}

// until waits until what is true, which is called with the lock held. Nobody may end before,
// also not the one whose end is died, if that is not nil.
func (s *scene) until(ctx context.Context, name string, died <-chan struct{}, what func() bool) error {
	tick := time.NewTicker(checkEvery / 10)
	defer tick.Stop()
	for limit := time.Now().Add(runLimit); time.Now().Before(limit); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.node.done:
			return errors.Join(errors.New("the node ended under load"), s.node.failure())
		case <-died:
			return errors.Join(errors.New("the server elsewhere ended under load"), s.other.failure())
		case <-tick.C:
		}
		s.mu.Lock()
		ok := what()
		s.mu.Unlock()
		if ok {
			return nil
		}
		if _, err := s.loadEnded(); err != nil {
			return err
		}
		if s.hung() {
			return fmt.Errorf("it hung before the takeover: %q", s.cycle())
		}
	}
	return fmt.Errorf("%s: waited for %v", name, runLimit)
}

// start starts a child and records it.
func (s *scene) start(name string, argv ...string) (*child, error) {
	c, err := s.r.spawn.start(name, argv...)
	if err != nil {
		return nil, err
	}
	if err := s.r.ledger.addChild(c.pid()); err != nil {
		c.kill()
		return nil, err
	}
	return c, nil
}

// listen takes the events of a node.
func (s *scene) listen(node *child) {
	dec := json.NewDecoder(node.out)
	for {
		var e Event
		if dec.Decode(&e) != nil {
			return
		}
		s.mu.Lock()
		switch {
		case e.Ready:
			s.addr = e.Addr
			close(s.ready)
		case e.Deadlock != nil:
			s.deadlock, s.seen = e.Deadlock, time.Now()
		case e.Waits != nil:
			s.waits = e.Waits
		}
		s.mu.Unlock()
	}
}

func (s *scene) startLoad() error {
	s.started, s.moved = time.Now(), time.Now()
	worker, err := s.startWorker("run")
	if err != nil {
		return err
	}
	go s.follow(worker)
	s.load = append(s.load, worker)
	fio, err := s.start("fio", fioLoad(s.cfg.Mountpoint, s.drill.Fio, s.r.opt.Seed)...)
	if err != nil {
		return err
	}
	go drain(fio)
	s.load = append(s.load, fio)
	hog, err := s.start("fio", fioPressure(s.cfg.Mountpoint, s.drill.Fio, s.r.opt.Seed)...)
	if err != nil {
		return err
	}
	go drain(hog)
	s.hogs = append(s.hogs, hog)
	return nil
}

func (s *scene) startWorker(verb string) (*child, error) {
	c, err := s.start("worker", s.r.opt.Exe, "drill", "worker", verb)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(json.NewEncoder(c.in).Encode(s.work), c.in.Close()); err != nil {
		c.kill()
		return nil, errors.Join(err, c.failure())
	}
	return c, nil
}

// follow takes the progress of a worker.
func (s *scene) follow(worker *child) {
	dec := json.NewDecoder(worker.out)
	for {
		var p work.Progress
		if dec.Decode(&p) != nil {
			return
		}
		s.mu.Lock()
		if p.Acked > s.progress.Acked {
			s.moved = time.Now()
		}
		s.progress = p
		s.mu.Unlock()
	}
}

// drain throws away what a child says.
func drain(c *child) {
	in := bufio.NewScanner(c.out)
	for in.Scan() {
	}
}

// watch waits until the load has ended (Survived), hangs (Hung), or limit is
// over (Collapsed).
func (s *scene) watch(ctx context.Context, limit time.Duration) (Outcome, error) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return Failed, ctx.Err()
		case <-s.node.done:
			return Failed, errors.Join(errors.New("the node ended under load"), s.node.failure())
		case <-tick.C:
		}
		if done, err := s.loadEnded(); done || err != nil {
			return Survived, err
		}
		if s.hung() {
			return Hung, nil
		}
		if time.Since(began) > limit {
			return Collapsed, nil
		}
	}
}

// loadEnded reports whether all of the load is through, or why some failed.
func (s *scene) loadEnded() (bool, error) {
	for _, c := range s.load {
		if !c.ended() {
			return false, nil
		}
		if err := c.failure(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// hung is the watchdog's verdict.
func (s *scene) hung() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.load[0].ended() { // only fio is left, which tells nothing
		return false
	}
	stalled := time.Since(s.moved)
	if stalled > hangLimit-2*checkEvery && s.waits == nil {
		_, _ = s.node.in.Write([]byte("waits\n"))
	}
	stands := s.deadlock != nil && time.Since(s.seen) < 4*checkEvery
	return stalled > stallLimit && stands || stalled > hangLimit
}

// verify remounts with fresh caches and checks every acknowledged byte.
func (s *scene) verify(ctx context.Context) error {
	killAll(s.hogs)
	if err := s.stopNode(); err != nil {
		return err
	}
	var err error
	if s.node, err = s.startNode(ctx, s.cfg); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	worker, err := s.startWorker("verify")
	if err != nil {
		return err
	}
	fio, err := s.start("fio", fioVerify(s.cfg.Mountpoint, s.drill.Fio, s.r.opt.Seed)...)
	if err != nil {
		return err
	}
	s.load = []*child{worker, fio}
	for _, c := range s.load {
		go drain(c)
	}
	for _, c := range s.load {
		if err := s.await(ctx, c); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
	}
	return s.stopNode()
}

// await waits for the end of a check.
func (s *scene) await(ctx context.Context, c *child) error {
	select {
	case <-c.done:
		return c.failure()
	case <-s.node.done:
		return errors.Join(errors.New("the node ended"), s.node.failure())
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(verifyLimit):
		return fmt.Errorf("%s did not end within %v", c.name, verifyLimit)
	}
}

// stopNode ends the node in order: everything written, nothing mounted.
func (s *scene) stopNode() error {
	if _, err := s.node.in.Write([]byte("stop\n")); err != nil {
		return errors.Join(err, s.node.wait(time.Second))
	}
	err := s.node.wait(stopLimit + tellLimit)
	s.node.out.Close()
	return err
}

func killAll(cs []*child) {
	for _, c := range cs {
		c.kill()
	}
}

// close ends every process, takes down what is mounted and removes the files.
func (s *scene) close() error {
	// The node first: then the load gets errors instead of waiting.
	for _, c := range []*child{s.node, s.other} {
		if c != nil {
			c.kill()
		}
	}
	if _, err := unmountUnder(s.dir); err != nil {
		return err
	}
	killAll(s.load)
	killAll(s.hogs)
	if err := s.r.ledger.dropChildren(); err != nil {
		return err
	}
	return os.RemoveAll(s.dir)
}
