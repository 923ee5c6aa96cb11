package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/vm/job"
	"loopnfs/harness/work"
)

const (
	sampleEvery = 500 * time.Millisecond
	// stepLimit bounds a step without load: mount, unmount, verify.
	stepLimit = 90 * time.Second
)

// run is a Load in progress.
type run struct {
	cfg    *job.Load
	server *server
	mu     sync.Mutex // of res.Notes while the script runs
	res    job.Result
	hog    *exec.Cmd
	plain  bool // mounted as by somebody who does not know that it is a loop-back mount
	worker *worker
	script chan error // the end of what happens besides

	mem     meminfo
	stat    vmstat
	net     *procFile
	start   time.Time
	first   counters
	lost    losses    // before the load
	moved   time.Time // when Bytes grew last
	written int64
}

// runLoad carries out a load and returns what became of it.
func runLoad(cfg *job.Load) *job.Result {
	r := &run{cfg: cfg, server: &server{cfg: cfg.Server}, mem: newMeminfo(), stat: newVmstat(), net: openProc("/proc/net/netstat")}
	r.lost = tcpLosses(r.net.read())
	r.res.Outcome = job.Failed
	if err := r.play(); err != nil {
		r.res.Outcome, r.res.Error = job.Failed, err.Error()
		var late *lateError
		if errors.As(err, &late) {
			r.res.Outcome = job.Hung
			r.lookAround()
		}
		if log := r.server.log(); log != "" {
			r.res.Error += "\nthe server said:\n" + log
		}
	}
	r.res.Killed = oomKilled()
	return r.result()
}

// result returns what there is so far; the script may still add notes.
func (r *run) result() *job.Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	res := r.res
	res.Notes = slices.Clone(res.Notes)
	return &res
}

// play is the whole run, step by step.
func (r *run) play() error {
	s, err := findScript(r.cfg.Script)
	if err != nil {
		return err
	}
	if err := r.prepare(s); err != nil {
		return err
	}
	if err := r.baseline(); err != nil {
		return err
	}
	if err := r.startLoad(s); err != nil {
		return err
	}
	if err := r.watch(); err != nil || r.res.Outcome != job.Survived {
		return err
	}
	return r.verify(s)
}

func (r *run) prepare(s script) error {
	if err := s.before(r); err != nil {
		return err
	}
	sayf("starting %s", r.cfg.Server.Name)
	if err := r.server.start(); err != nil {
		return err
	}
	return within("mounting", func() error { return errors.Join(r.mount(), s.prepare(r)) })
}

func (r *run) mount() error {
	if r.server.cfg.Name == "loopnfs" && !r.plain {
		return command(job.Dir+"/loopnfs", "mount", "--via", "kernel", r.server.source(), mnt)
	}
	return command("mount", "-t", "nfs", "-o", r.server.mountOptions(), r.server.source(), mnt)
}

// within bounds a step that could hang for good.
func within(what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(stepLimit):
		return &lateError{what}
	}
}

// lateError is a step that did not end, and probably never would.
type lateError struct{ what string }

func (e *lateError) Error() string { return fmt.Sprintf("%s did not end within %v", e.what, stepLimit) }

// baseline measures the rate of the load without pressure.
func (r *run) baseline() error {
	if r.cfg.Baseline.Jobs == 0 {
		return nil
	}
	sayf("measuring without pressure")
	began := time.Now()
	w, err := startWorker(r.cfg.Baseline)
	if err != nil {
		return err
	}
	if err := within("the load without pressure", w.wait); err != nil {
		return err
	}
	r.res.BaselineRate = float64(w.progress.Load().Bytes) / time.Since(began).Seconds()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

func (r *run) startLoad(s script) error {
	kb := r.mem.read().available * int64(r.cfg.HogPercent) / 100 // of what limits leave is another thing
	if err := errors.Join(setSysctl(r.cfg.Sysctl), r.startHog(kb)); err != nil {
		return err
	}
	sayf("load under pressure")
	var err error
	if r.worker, err = startWorker(r.cfg.Work); err != nil {
		return err
	}
	r.start, r.moved, r.first, r.lost = time.Now(), time.Now(), r.stat.read(), tcpLosses(r.net.read())
	r.script = make(chan error, 1)
	go func() { r.script <- s.during(r) }()
	return nil
}

// startHog has somebody else take so much memory.
func (r *run) startHog(kb int64) error {
	if kb == 0 {
		return nil
	}
	r.hog = plain(hogName, "hog", strconv.FormatInt(kb, 10))
	out, err := r.hog.StdoutPipe()
	if err != nil {
		return err
	}
	if err := r.hog.Start(); err != nil {
		return err
	}
	sayf("%d MiB are taken by somebody else", kb>>10)
	return within("taking memory", func() error {
		if _, err := fmt.Fscanln(out, new(string)); err != nil {
			return fmt.Errorf("hog: %w", err)
		}
		return nil
	})
}

// watch samples until the load has ended, stands still or is out of time.
func (r *run) watch() error {
	defer func() {
		if lost := r.losses(); lost != "" {
			r.note("%s", lost)
		}
	}()
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	stall := time.Duration(r.cfg.StallSeconds) * time.Second
	hang := time.Duration(r.cfg.HangSeconds) * time.Second
	limit := time.Duration(r.cfg.LimitSeconds) * time.Second
	scriptDone := false
	for {
		select {
		case err := <-r.script:
			if err != nil {
				return err
			}
			scriptDone = true
			continue
		case <-tick.C:
		}
		r.sample()
		ended := r.worker.ended()
		switch {
		case ended && r.worker.err != nil:
			return fmt.Errorf("the load: %w", r.worker.err)
		case ended && scriptDone:
			r.res.Outcome = job.Survived
			return nil
		case !ended && time.Since(r.moved) >= hang:
			r.res.Outcome = job.Hung
			r.lookAround()
			return nil
		case time.Since(r.start) >= limit:
			r.res.Outcome = job.Slow
			r.lookAround()
			return nil
		case !ended && r.res.Stacks == nil && time.Since(r.moved) >= stall:
			r.lookAround()
		}
	}
}

// lookAround finds out who waits. It tells the host first what it knows already:
// the rest takes memory, which there may be none of.
func (r *run) lookAround() {
	known := r.result()
	known.Outcome = job.Hung
	if lost := r.losses(); lost != "" {
		known.Notes = append(known.Notes, lost)
	}
	say(job.Event{Stuck: known})
	r.res.Stacks = blockedStacks()
}

// sample takes one sample and tells the host.
func (r *run) sample() {
	now, p := time.Now(), r.worker.progress.Load()
	if p.Written > r.written {
		r.written, r.moved = p.Written, now
	}
	if !r.worker.ended() || r.res.Seconds == 0 { // it may be over before the first sample
		r.res.Seconds = now.Sub(r.start).Seconds()
		r.res.Stall = max(r.res.Stall, now.Sub(r.moved).Seconds())
	}
	r.res.Latency = max(float64(p.MaxLatencyMs)/1000, r.res.Stall)
	r.res.Bytes, r.res.Rate = p.Bytes, float64(p.Written)/r.res.Seconds
	m, c := r.mem.read(), r.stat.read().since(r.first)
	r.res.OOMKills = c.ooms
	say(job.Event{Sample: &job.Sample{
		Seconds: now.Sub(r.start).Seconds(), FreeKB: m.free, AvailableKB: m.available,
		DirtyKB: m.dirty, WritebackKB: m.writeback, Bytes: p.Written,
		DirectScans: c.scans, OOMKills: c.ooms, Throttle: c.throttled,
	}})
}

// verify remounts from a server that was started again and looks at every
// acknowledged byte.
func (r *run) verify(s script) error {
	sayf("verifying after unmount and remount")
	if r.hog != nil {
		_ = r.hog.Process.Kill() // the OOM killer may have been faster
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"finishing", func() error { return s.finish(r) }},
		{"unmounting", func() error { return unix.Unmount(mnt, 0) }},
		{"stopping the server", r.server.stop},
		{"starting the server again", r.server.start},
		{"mounting", r.mount},
		{"reaching what was written", func() error { return s.reopen(r) }},
		{"verifying", func() error { _, err := work.Verify(r.cfg.Work); return err }},
		{"leaving", func() error { return s.close(r) }},
		{"unmounting again", func() error { return unix.Unmount(mnt, 0) }},
		{"stopping the server again", r.server.stop},
	}
	for _, step := range steps {
		if err := within(step.what, step.do); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	r.res.Verified = true
	return nil
}

// worker is a process that writes.
type worker struct {
	cmd      *exec.Cmd
	progress atomic.Pointer[work.Progress]
	done     chan struct{}
	err      error // valid after done
}

func startWorker(cfg work.Config) (*worker, error) {
	w := &worker{cmd: plain(writerName, "work", "run"), done: make(chan struct{})}
	w.progress.Store(&work.Progress{})
	in, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	errs, err := w.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	if err := errors.Join(json.NewEncoder(in).Encode(cfg), in.Close()); err != nil {
		return nil, err
	}
	go w.follow(out, errs)
	return w, nil
}

// follow takes the worker's progress until it ends.
func (w *worker) follow(out, errs io.Reader) {
	dec := json.NewDecoder(out)
	for {
		p := new(work.Progress)
		if dec.Decode(p) != nil {
			break
		}
		w.progress.Store(p)
	}
	said, _ := io.ReadAll(io.LimitReader(errs, 8<<10))
	if err := w.cmd.Wait(); err != nil {
		w.err = fmt.Errorf("%w: %s", err, said)
	}
	close(w.done)
}

func (w *worker) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

func (w *worker) wait() error {
	<-w.done
	return w.err
}
