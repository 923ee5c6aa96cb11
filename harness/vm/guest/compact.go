package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

const (
	compactEvery = 200 * time.Millisecond
	// churnMiB is a tenth of the small guests, in huge pages.
	churnMiB = 16
	thpDir   = "/sys/kernel/mm/transparent_hugepage/"
)

// compact has the kernel move pages together all the time: by order, and because
// somebody wants huge pages.
func (r *run) compact() error {
	for _, name := range []string{"enabled", "defrag"} {
		if err := os.WriteFile(thpDir+name, []byte("always"), 0); err != nil {
			return err
		}
	}
	before := r.stat.compactions()
	if err := r.whileCompacting(); err != nil {
		return err
	}
	c := r.stat.compactions().since(before)
	r.note("%d pages were moved; %d allocations compacted memory for themselves, %d of them in vain", c.moved, c.direct, c.failed)
	if c.moved == 0 {
		return errors.New("no page was moved: the drill shows nothing")
	}
	return nil
}

func (r *run) whileCompacting() error {
	cmd := plain(hogName, "churn", strconv.Itoa(churnMiB))
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait() // it was killed
	defer cmd.Process.Kill()
	// In a process of its own: it may have to wait like anybody else.
	loop := plain("sh", "-c", fmt.Sprintf("while :; do echo 1 > /proc/sys/vm/compact_memory; sleep %.1f; done", compactEvery.Seconds()))
	if err := loop.Start(); err != nil {
		return err
	}
	defer loop.Wait() // as above
	defer loop.Process.Kill()
	<-r.worker.done
	return nil
}

// compactions are counters of /proc/vmstat.
type compactions struct{ moved, direct, failed int64 }

func (v vmstat) compactions() compactions {
	t := v.p.read()
	return compactions{field(t, "pgmigrate_success "), field(t, "compact_stall "), field(t, "compact_fail ")}
}

func (c compactions) since(o compactions) compactions {
	return compactions{c.moved - o.moved, c.direct - o.direct, c.failed - o.failed}
}
