package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	compactEvery = 200 * time.Millisecond
	// churnMiB is a tenth of the small guests, in huge pages.
	churnMiB = 16
	thpDir   = "/sys/kernel/mm/transparent_hugepage/"
)

// compact has the kernel move pages together all the time: kcompactd, in the
// background, and whoever wants a huge page.
func (r *run) compact() error { return r.compactBy("vm/compaction_proactiveness", "100") }

// compactMemory has a process compact all of memory, which the kernel lets wait where
// kcompactd does not.
func (r *run) compactMemory() error { return r.compactBy("vm/compact_memory", "1") }

// wantHugepages has every process ask for huge pages, and compact memory for them, unless
// the server changes that.
func (r *run) wantHugepages() error {
	return errors.Join(os.WriteFile(thpDir+"enabled", []byte("always"), 0), os.WriteFile(thpDir+"defrag", []byte("always"), 0))
}

// compactBy writes value to a sysctl over and over beside a process that wants huge
// pages.
func (r *run) compactBy(sysctl, value string) error {
	defrag, err := os.ReadFile(thpDir + "defrag")
	if err != nil {
		return err
	}
	r.note("defrag for huge pages: %s", strings.TrimSpace(string(defrag)))
	before := r.stat.compactions()
	loop := fmt.Sprintf("while :; do echo %s > /proc/sys/%s; sleep %.1f; done", value, sysctl, compactEvery.Seconds())
	// In processes of their own: they may have to wait like anybody else.
	if err := r.beside(plain(hogName, "churn", strconv.Itoa(churnMiB)), plain("sh", "-c", loop)); err != nil {
		return err
	}
	c := r.stat.compactions().since(before)
	r.note("%d pages were moved; %d allocations compacted memory for themselves, %d of them in vain", c.moved, c.direct, c.failed)
	if c.moved == 0 {
		return errors.New("no page was moved: the drill shows nothing")
	}
	return nil
}

// beside runs commands until the load has ended.
func (r *run) beside(cmds ...*exec.Cmd) error {
	for _, cmd := range cmds {
		if err := cmd.Start(); err != nil {
			return err
		}
		defer cmd.Wait() // it was killed
		defer cmd.Process.Kill()
	}
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
