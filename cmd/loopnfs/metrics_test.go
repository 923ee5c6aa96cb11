package main

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"loopnfs/internal/pressure"
	"loopnfs/internal/stack"
)

// starved is a host without memory.
type starved struct{}

func (starved) Wait(d time.Duration) bool     { time.Sleep(d); return true }
func (starved) Read(s *pressure.Sample) error { s.Total = 1 << 30; return nil }
func (starved) Close() error                  { return nil }

// The metrics say whether memory is short, and what was done about it.
func TestMemoryMetrics(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the store opens file handles")
	}
	watch, err := pressure.Watch(starved{}, pressure.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	mem, err := newMemory(stack.DefaultMemory(8<<20), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Stop()
	server, err := stack.StartServer(mem, stack.ServerConfig{
		Exports: []stack.ExportConfig{{Dir: t.TempDir()}}, StateDir: t.TempDir(), Listen: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop(context.Background())
	got := gather(t, &collector{mem: mem, server: server, watch: watch})
	for name, want := range map[string]float64{
		"loopnfs_host_memory_short": 1, "loopnfs_host_memory_short_total": 1, "loopnfs_stable_replies_total": 0,
		"loopnfs_nfs_duplicates_total": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s: %v, want %v (there: %t)", name, v, want, ok)
		}
	}
	if _, ok := gather(t, &collector{mem: mem, server: server})["loopnfs_host_memory_short"]; ok {
		t.Error("without a watcher nobody can tell whether memory is short")
	}
}

// gather returns what a collector tells, by name; of several, the last.
func gather(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}
