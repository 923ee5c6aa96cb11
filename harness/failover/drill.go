package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"loopnfs/harness"
	"loopnfs/harness/failover/host"
	"loopnfs/harness/failover/recorder"
	"loopnfs/harness/linear"
	"loopnfs/harness/work"
	"loopnfs/internal/nlm"
)

// Schedule is what goes wrong, one after the other, under one load.
type Schedule struct {
	Seed   int64
	Faults []Fault
	// Linger is how long clients go on after the last fault.
	Linger time.Duration
}

// Random returns the schedule of a seed: one or two faults, of all that can be had here.
func Random(seed int64) Schedule {
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	all, _ := Available()
	s := Schedule{Seed: seed}
	for range 1 + rng.IntN(2) {
		s.Faults = append(s.Faults, all[rng.IntN(len(all))])
	}
	return s
}

// Moves returns a schedule in which the service is moved back and forth n times, and which
// goes on until the last server's grace period is over: then locks that were lost can be
// had by others.
func Moves(seed int64, n int) Schedule {
	f, _ := FindFault("move")
	return Schedule{Seed: seed, Faults: slices.Repeat([]Fault{f}, n), Linger: nlm.DefaultGrace + 5*time.Second}
}

// Each returns schedules with one fault each: all that can be had here.
func Each(seed int64) []Schedule {
	var all []Schedule
	faults, _ := Available()
	for _, f := range faults {
		all = append(all, Schedule{Seed: seed, Faults: []Fault{f}})
	}
	return all
}

func (s *Schedule) String() string {
	var names []string
	for _, f := range s.Faults {
		names = append(names, f.Name)
	}
	return strings.Join(names, ", ")
}

// Run brings a cluster up, plays schedules, and takes everything down. After one that
// fails, the next has a new cluster.
func Run(ctx context.Context, opt Options, schedules []Schedule) (results []harness.Result, err error) {
	said, err := harness.CleanLeftovers()
	for _, s := range said {
		opt.Say("%s", s)
	}
	if err != nil {
		return nil, err
	}
	var c *Cluster
	defer func() {
		if c != nil {
			err = errors.Join(err, c.Down())
		}
	}()
	for i, s := range schedules {
		if c == nil {
			if c, err = Up(ctx, opt); err != nil {
				return results, err
			}
		}
		opt.Say("schedule %d of %d, seed %d: %s", i+1, len(schedules), s.Seed, s.String())
		res := c.Play(ctx, s)
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
		results = append(results, res)
		opt.Say("schedule %d of %d: %s, %d promises kept, longest gap %.1f s %s", i+1, len(schedules), res.Outcome, res.Promises-res.Lost, float64(res.StallMs)/1000, res.Error)
		if res.Error != "" || opt.Guests != nil { // guests that are killed are not started again
			down := c.Down()
			if c = nil; down != nil {
				return results, down
			}
		}
	}
	return results, nil
}

const (
	// settle is how long clients work undisturbed before and after a fault.
	settle = time.Second
	// recoverLimit is how long the service, and each client, may need to go on.
	recoverLimit = 45 * time.Second
	// endLimit is how long clients may need to come to an end.
	endLimit = 30 * time.Second
)

// run is one schedule being played.
type run struct {
	*Cluster
	schedule Schedule
	name     string // of directories
	rng      *rand.Rand
	started  time.Time
	clients  map[string]*host.Process
	configs  []ClientConfig
	cases    []harness.Takeover
	began    []moment         // of the cases
	lost     [][]string       // the hosts that were switched off in each
	ahead    map[string]int64 // by how much the clock of a guest is ahead of this machine's
}

// moment is a time by both clocks.
type moment struct {
	at   time.Time
	mono int64
}

func now() moment { return moment{time.Now(), recorder.Now()} }

// Play plays a schedule and returns what came of it. The cluster is whole again when it
// returns, unless the result is an error.
func (c *Cluster) Play(ctx context.Context, s Schedule) harness.Result {
	c.mu.Lock()
	c.played++
	r := &run{
		Cluster: c, schedule: s, name: fmt.Sprintf("run-%d", c.played),
		rng: rand.New(rand.NewPCG(uint64(s.Seed), 1)), clients: map[string]*host.Process{},
	}
	c.mu.Unlock()
	res := harness.Result{
		Drill: harness.TakeoverName, Tier: harness.TierCluster, Server: "loopnfs", Seed: s.Seed,
		Expected: harness.Survived, Outcome: harness.Failed, Cycle: []string{},
	}
	c.describe(&res)
	r.started = time.Now()
	o := startObserver(c.groups)
	err := r.play(ctx)
	hung := r.hangs(ctx, &res, err)
	if hung {
		err = nil
	}
	looks, both := o.stop()
	res.Seconds = time.Since(r.started).Seconds()
	if err == nil && !hung && !c.others() {
		err = r.verify(ctx, &res)
	}
	r.measure(&res)
	if err == nil && !hung {
		err = c.checkGap(&res)
	}
	if len(both) > 0 {
		err = errors.Join(err, fmt.Errorf("two servers at a time: %s", strings.Join(both, "; ")))
	}
	if looks > 0 {
		res.Notes = append(res.Notes, fmt.Sprintf("looked %d times where there is a server, and saw two nodes with one %d times", looks, len(both)))
	}
	if err != nil {
		res.Error = err.Error()
		return res
	}
	if hung {
		return res
	}
	res.Outcome, res.DataVerified = harness.Survived, !c.others() // whose exports the third host cannot mount
	return res
}

func (r *run) play(ctx context.Context) error {
	if err := os.Mkdir(r.lab(r.name), 0o755); err != nil {
		return err
	}
	if err := r.each(ctx, r.clientHosts(), r.startClients); err != nil {
		return err
	}
	for _, f := range r.schedule.Faults {
		if err := r.awaitProgress(ctx); err != nil {
			return err
		}
		sleep(ctx, settle+time.Duration(r.rng.Int64N(int64(settle))))
		if err := r.fault(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	sleep(ctx, r.schedule.Linger)
	return errors.Join(r.awaitProgress(ctx), r.stopClients(ctx))
}

// fault has something go wrong, waits until clients go on, and repairs what broke.
func (r *run) fault(ctx context.Context, f Fault) error {
	serving, err := r.awaitServingNode(ctx)
	if err != nil {
		return err
	}
	second := node1
	if serving == node1 {
		second = node2
	}
	r.cases = append(r.cases, harness.Takeover{Fault: f.Name, Says: f.Says, From: serving})
	r.began, r.lost = append(r.began, now()), append(r.lost, nil)
	if r.ahead, err = r.clocks(ctx); err != nil {
		return err
	}
	r.events.note("%s, on %s: %s", f.Name, serving, f.Says)
	err = f.inject(ctx, r.Cluster, &drama{rng: r.rng, serving: serving, second: second, progress: r.awaitProgress})
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	if err := r.awaitService(ctx, r.recoverLimit()); err != nil {
		return err
	}
	if err := r.awaitProgress(ctx); err != nil {
		return err
	}
	for _, name := range nodeNames {
		if r.Cluster.host(name).Gone() {
			r.lost[len(r.lost)-1] = append(r.lost[len(r.lost)-1], name)
		}
	}
	at, err := r.awaitServingNode(ctx)
	if err != nil {
		return err
	}
	r.cases[len(r.cases)-1].To = at
	if f.Takeover && at != second {
		return fmt.Errorf("the service is on %s, and should be on %s", at, second)
	}
	return r.repair(ctx)
}

// repair makes the cluster whole: everything connected, both nodes on, in the cluster, and
// with clients.
func (r *run) repair(ctx context.Context) error {
	if r.opt.Guests != nil {
		return nil // they are used once
	}
	r.power.unblock()
	if err := errors.Join(r.net.Join(), r.disk.resume(r.dir)); err != nil {
		return err
	}
	for _, name := range nodeNames {
		if !r.Cluster.host(name).Gone() {
			if err := r.net.Plug(name, true); err != nil {
				return err
			}
			continue
		}
		if err := r.restart(ctx, name); err != nil {
			return fmt.Errorf("%s does not come back: %w", name, err)
		}
		if err := r.startClients(ctx, name); err != nil {
			return err
		}
	}
	return r.awaitOnline(ctx)
}

func (r *run) restart(ctx context.Context, name string) error {
	if err := r.boot(ctx, name); err != nil {
		return err
	}
	r.events.note("%s is switched on again", name)
	return r.startNode(ctx, name)
}

// awaitOnline waits until both nodes are in the cluster, and nothing is left to be done.
func (c *Cluster) awaitOnline(ctx context.Context) error {
	limit := time.Now().Add(upLimit)
	var out string
	for time.Now().Before(limit) && ctx.Err() == nil {
		var err error
		at, _ := c.serving(ctx)
		if at != "" {
			if out, err = c.host(at).Run(ctx, "crm_mon", "-1"); err == nil && strings.Contains(out, "Online: [ n1 n2 ]") {
				return nil
			}
		}
		sleep(ctx, 100*time.Millisecond)
	}
	return fmt.Errorf("the nodes are not both online within %v: %s", upLimit, out)
}

// startClients mounts the export on a host and has its clients work.
func (r *run) startClients(ctx context.Context, name string) error {
	h := r.Cluster.host(name)
	if _, err := h.Run(ctx, "mountpoint", "-q", mountpoint); err != nil {
		if err := r.mount(ctx, name); err != nil {
			return err
		}
	}
	cfg := r.clientConfig(name, r.name, r.name, r.schedule.Seed)
	text, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	if cfg.Apart {
		if err := r.linkLogs(ctx, &cfg); err != nil {
			return err
		}
	}
	p, err := h.Start("/var/log/client.log", string(text), "loopnfs", "failover", "client")
	if err != nil {
		return err
	}
	r.Cluster.mu.Lock()
	defer r.Cluster.mu.Unlock()
	r.clients[name] = p
	r.configs = append(r.configs, cfg)
	return nil
}

func (c *Cluster) mount(ctx context.Context, name string) error {
	if c.isGuest(name) {
		return c.mountGuest(ctx, name)
	}
	_, err := c.host(name).Run(ctx, "loopnfs", "mount", service(), mountpoint, "--via", "fuse", "--memory", "16MiB", "--log", "/var/log/mount.log", "--timeout", "45s")
	return err
}

func (c *Cluster) umount(ctx context.Context, name string) error {
	_, err := c.host(name).Run(ctx, "loopnfs", "umount", mountpoint)
	return err
}

// awaitProgress waits until clients of all hosts that are there were answered again.
func (r *run) awaitProgress(ctx context.Context) error {
	limit := time.Now().Add(r.recoverLimit())
	from := map[string]int64{}
	for name := range r.clients {
		from[name] = r.logged(name)
	}
	for name, p := range r.clients {
		// The calls of both jobs, and some more.
		for !r.Cluster.host(name).Gone() && r.logged(name) < from[name]+1500 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if p.Ended() && !r.Cluster.host(name).Gone() {
				return fmt.Errorf("the clients of %s have ended: %s%s", name, r.tail(name, "client.log"), r.killed(name))
			}
			if time.Now().After(limit) {
				return &hangError{name, r.recoverLimit()}
			}
			sleep(ctx, 20*time.Millisecond)
		}
	}
	return nil
}

// hangError is the end of a run whose clients do not go on.
type hangError struct {
	host  string
	after time.Duration
}

func (e *hangError) Error() string {
	return fmt.Sprintf("the clients of %s hang: no answer for %v", e.host, e.after)
}

// logged returns how much the clients of a host have logged.
func (r *run) logged(name string) (n int64) {
	for _, cfg := range r.configs {
		if cfg.Host != name {
			continue
		}
		if st, err := os.Stat(r.lab(r.name, filepath.Base(cfg.namesLog()))); err == nil {
			n += st.Size()
		}
	}
	return n
}

// tail returns the end of a log file of a host, or how a program of ours crashed there last.
func (c *Cluster) tail(name, file string) string {
	b, err := os.ReadFile(filepath.Join(c.logDir(name), file))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i, l := range slices.Backward(lines) {
		if strings.HasPrefix(l, "panic: ") || strings.HasPrefix(l, "fatal error: ") {
			return strings.Join(lines[i:min(i+20, len(lines))], "\n")
		}
	}
	return strings.Join(lines[max(0, len(lines)-3):], "\n")
}

// killed returns what was killed in a host lately, and what the process of its mount said
// last, as more lines of an error.
func (c *Cluster) killed(name string) (s string) {
	if c.isGuest(name) {
		return ""
	}
	for _, file := range []string{host.EndsLog, "mount.log"} {
		if tail := c.tail(name, file); tail != "" {
			s += "\n" + tail
		}
	}
	return s
}

// stopClients has all clients come to an end, and unmounts.
func (r *run) stopClients(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.endLimit())
	defer cancel()
	return r.each(ctx, r.clientHosts(), func(ctx context.Context, name string) error {
		p := r.clients[name]
		if r.Cluster.host(name).Gone() {
			return nil
		}
		if err := p.Signal(syscall.SIGTERM); err != nil && !p.Ended() {
			return err
		}
		if err := p.Wait(ctx); err != nil {
			return fmt.Errorf("the clients of %s do not end well: %w: %s%s", name, err, r.tail(name, "client.log"), r.killed(name))
		}
		return r.umount(ctx, name)
	})
}

// verify looks, through a new mount, whether every promise was kept.
func (r *run) verify(ctx context.Context, res *harness.Result) error {
	if err := r.mount(ctx, client1); err != nil {
		return err
	}
	text, err := json.Marshal(r.configs)
	if err != nil {
		return err
	}
	out, err := r.Cluster.host(client1).RunWith(ctx, string(text), "loopnfs", "failover", "check")
	if err != nil {
		return errors.Join(err, r.umount(ctx, client1))
	}
	var found Checked
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		return err
	}
	res.Bytes = int64(found.Blocks) * work.BlockBytes
	res.Promises, res.Lost, res.Twice = found.Promises, len(found.Lost), len(found.Twice)
	err = found.Err()
	if found.Data != "" {
		res.Lost++
		err = errors.Join(err, fmt.Errorf("lost: %s", found.Data))
	}
	return errors.Join(err, r.umount(ctx, client1), r.checkCalls(res), r.checkLease(ctx, res))
}

// checkLease looks at the history of the lease on the disk.
func (r *run) checkLease(ctx context.Context, res *harness.Result) error {
	if r.lease() == "" {
		return nil
	}
	at, err := r.awaitServingNode(ctx)
	if err != nil {
		return err
	}
	out, err := r.Cluster.host(at).Run(ctx, "loopnfs", "lease", "show", r.lease(), "--json")
	if err != nil {
		return fmt.Errorf("the lease on the disk: %w: %s", err, out)
	}
	var lease struct {
		Events []struct{ State, Host string }
	}
	if err := json.Unmarshal([]byte(out), &lease); err != nil {
		return err
	}
	res.Notes = append(res.Notes, fmt.Sprintf("the lease on the disk was taken and released %d times so far: never two at the same time", len(lease.Events)))
	return nil
}

// checkLimit is how long the search for an order of the calls may take.
const checkLimit = time.Minute

// checkCalls looks whether there is an order of all recorded calls that explains the
// replies, whichever server gave them.
func (r *run) checkCalls(res *harness.Result) error {
	var err error
	for _, cfg := range r.configs {
		if !cfg.Linear {
			continue
		}
		rec, readErr := linear.ReadRecording(r.lab(r.name, filepath.Base(cfg.calls())))
		if readErr != nil {
			return readErr
		}
		n, checkErr := rec.Check(checkLimit)
		err = errors.Join(err, checkErr)
		if checkErr == nil {
			res.Notes = append(res.Notes, fmt.Sprintf("%d calls of six clients, answered by %d servers: there is an order that explains all replies", n, 1+r.serverStarts()))
		}
	}
	if err != nil {
		res.Twice++
	}
	return err
}

// serverStarts returns how often servers started on the nodes since the clients began.
func (r *run) serverStarts() (n int) {
	for _, e := range r.events.since(r.started) {
		if e.What == harness.ServerStarted {
			n++
		}
	}
	return n
}

// measure reads out of the logs what the clients have noticed of each fault, and what
// happened when.
func (r *run) measure(res *harness.Result) {
	for i := range r.cases {
		t, from := &r.cases[i], r.began[i]
		to := now()
		if i+1 < len(r.cases) {
			to = r.began[i+1]
		}
		for _, name := range hostNames {
			if slices.Contains(r.lost[i], name) {
				continue // its clients went with it
			}
			if d, ok := r.gapOf(name, from.mono, to.mono); ok {
				t.Gaps = append(t.Gaps, harness.Gap{Client: name, Ms: d.Milliseconds()})
				res.StallMs = max(res.StallMs, d.Milliseconds())
			}
		}
		for _, e := range r.events.since(from.at) {
			if e.At.Before(to.at) {
				t.Events = append(t.Events, harness.Moment{Ms: e.At.Sub(from.at).Milliseconds(), Node: e.Node, What: e.What})
			}
		}
		t.FillTimes()
	}
	res.MaxLatencyMs = res.StallMs
	res.Takeovers = r.cases
}

// gapOf returns the gap that a host's clients saw; false if they did not live to tell.
func (r *run) gapOf(name string, from, to int64) (time.Duration, bool) {
	var longest time.Duration
	lived := false
	for _, cfg := range r.configs {
		if cfg.Host != name {
			continue
		}
		calls, err := recorder.Read(r.lab(r.name, filepath.Base(cfg.namesLog())))
		if err != nil {
			continue
		}
		from, to := from+r.ahead[name], to+r.ahead[name]
		before := slices.ContainsFunc(calls, func(c recorder.Call) bool { return c.At < from })
		after := slices.ContainsFunc(calls, func(c recorder.Call) bool { return c.Answered > from })
		if before && after {
			lived = true
			longest = max(longest, gap(calls, from, to))
		}
	}
	return longest, lived
}
