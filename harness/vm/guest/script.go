package main

import (
	"fmt"
	"os"
	"time"
)

// script is what happens besides the load.
type script struct {
	// before is called before the server starts: how the host is set up.
	before func(*run) error
	// prepare is called once the mount is there, finish before it goes; reopen
	// and close are their like for the check of what was written.
	prepare, finish, reopen, close func(*run) error
	// during runs beside the load; the run goes on until both have ended.
	during func(*run) error
}

// scripts by name; "" is the load alone.
var scripts = map[string]script{
	"":             {},
	"anon-fault":   {prepare: (*run).swapOnDisk},
	"compact":      {before: (*run).wantHugepages, during: (*run).compact},
	"compact-mem":  {before: (*run).wantHugepages, during: (*run).compactMemory},
	"restart":      {during: (*run).restart},
	"takeover":     {before: (*run).comeHere, during: (*run).takeover},
	"freeze":       {during: (*run).freeze},
	"thread-flags": {during: (*run).threadFlags},
	"swap":         {prepare: (*run).swapOnMount, finish: (*run).swapOff},
	"stack-ext4":   stackOn("ext4"),
	"stack-xfs":    stackOn("xfs"),
	"stack-fuse":   stackOnStore(),
}

func nothing(*run) error { return nil }

func findScript(name string) (script, error) {
	s, ok := scripts[name]
	if !ok {
		return s, fmt.Errorf("no script is called %q", name)
	}
	for _, f := range []*func(*run) error{&s.before, &s.prepare, &s.finish, &s.reopen, &s.close, &s.during} {
		if *f == nil {
			*f = nothing
		}
	}
	return s, nil
}

// note adds a fact to the result.
func (r *run) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.res.Notes = append(r.res.Notes, fmt.Sprintf(format, args...))
}

// pause waits while the load goes on, and reports whether it still does.
func (r *run) pause(d time.Duration) bool {
	select {
	case <-r.worker.done:
		return false
	case <-time.After(d):
		return true
	}
}

// swapOnDisk gives the guest a swap file on its own disk: then the server's
// memory can be taken from it, unless it is locked.
func (r *run) swapOnDisk() error {
	const path = srv + "/swap"
	if err := command("dd", "if=/dev/zero", "of="+path, "bs=1M", "count=256"); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if err := command("mkswap", path); err != nil {
		return err
	}
	return command("swapon", path)
}

// restart kills the server in the middle of writes, several times.
func (r *run) restart() error {
	const times, pauseFor, goneFor = 4, 2500 * time.Millisecond, time.Second
	done := 0
	for ; done < times && r.pause(pauseFor); done++ {
		if err := r.server.crash(goneFor); err != nil {
			return err
		}
	}
	r.note("the server was killed and started again %d times", done)
	if done == 0 {
		return fmt.Errorf("the load ended before the server could be killed")
	}
	return nil
}
