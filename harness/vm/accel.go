package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"loopnfs/harness/vm/job"
)

// probeLimit is far more than a guest needs to boot where KVM works.
const probeLimit = 15 * time.Second

// accel returns kvm if a guest boots with it on this host, else tcg. A device
// node proves nothing, so it is tried, once for each boot of the host.
func (c *cache) accel(ctx context.Context, k *Kernel, root, init string) (string, error) {
	if _, err := os.Stat(c.kvm); err != nil {
		return "tcg", nil
	}
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	path := filepath.Join(c.dir, "accel-"+strings.TrimSpace(string(id)))
	if known, _ := os.ReadFile(path); string(known) == "kvm" || string(known) == "tcg" {
		return string(known), nil
	}
	c.say("finding out whether KVM works (once, at most %v)", probeLimit)
	probe := Config{
		MemoryMiB: 256, CPUs: 1, DiskMiB: 16, Init: init, Limit: probeLimit,
		Job: job.Job{Command: []string{"true"}}, Handle: func(job.Event) {},
	}
	accel := "kvm"
	if err := boot(ctx, &probe, k, root, accel); errors.Is(err, errNotStarted) {
		return "", err
	} else if err != nil {
		accel = "tcg"
		c.say("it does not: guests are emulated, and slow")
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	old, _ := filepath.Glob(filepath.Join(c.dir, "accel-*"))
	for _, o := range old {
		os.Remove(o)
	}
	return accel, os.WriteFile(path, []byte(accel), 0o644)
}

func accelArgs(accel string) []string {
	if accel == "kvm" {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,la57=off"}
}

// hostKHz returns the clock rate of this host's time stamp counter, which a
// guest sees under emulation; 0 if it cannot be told.
func hostKHz() int {
	text, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, ok := strings.Cut(string(text), "cpu MHz")
	if !ok {
		return 0
	}
	line, _, _ := strings.Cut(rest, "\n")
	mhz, err := strconv.ParseFloat(strings.Trim(line, "\t :"), 64)
	if err != nil {
		return 0
	}
	return int(mhz * 1000)
}
