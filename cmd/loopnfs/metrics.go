package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"loopnfs/alloc"
	"loopnfs/internal/lease"
	"loopnfs/internal/memgroup"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/pressure"
	"loopnfs/internal/stack"
	"loopnfs/reclaim/writeback"
)

// metricsServer answers Prometheus, and loopnfs top.
type metricsServer struct{ http *http.Server }

// startMetrics starts one at addr, and for this host only if addr is empty.
func startMetrics(addr string, c *collector) (*metricsServer, error) {
	var listeners []net.Listener
	if addr != "" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("cannot serve metrics: %w: choose another address with --metrics", err)
		}
		listeners = append(listeners, l)
	}
	view, err := listenView()
	if err != nil { // another name space of processes, perhaps, with the same number
		slog.Warn("loopnfs top cannot look at this server", "error", err)
	} else {
		listeners = append(listeners, view)
	}
	m := &metricsServer{&http.Server{Handler: c.handler(), ReadHeaderTimeout: 5 * time.Second}}
	for _, l := range listeners {
		go func() {
			if err := m.http.Serve(l); err != http.ErrServerClosed {
				slog.Error("metrics are no longer served", "address", l.Addr(), "error", err)
			}
		}()
	}
	return m, nil
}

func (m *metricsServer) close() { m.http.Close() }

// handler answers with the counters, and with who waits for what.
func (c *collector) handler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	mux := http.NewServeMux()
	mux.Handle(metricsPath, promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2}))
	mux.HandleFunc(waitsPath, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Join(c.mem.Graph.Summary(), "\n"))
	})
	return mux
}

// collector reads the counters that the parts keep anyway.
type collector struct {
	mem    *stack.Memory
	server *stack.Server
	watch  *pressure.Watcher // nil if nobody watches the host's memory
	room   *memgroup.Room    // nil if the control group has no limit
	lease  *lease.Lease      // nil if there is none
}

var (
	descArena    = desc("arena_bytes", "Memory of the arena: free, or used.", "state")
	descMarks    = desc("arena_watermark_bytes", "Free memory at which something is done: high, low or min.", "mark")
	descLimits   = desc("dirty_limit_bytes", "Memory that is not clean at which writers are throttled (limit), or write-out begins (background).", "limit")
	descStalls   = desc("alloc_stalls_total", "Times an allocation had to wait for memory.")
	descReserve  = desc("alloc_reserve_pages_total", "Pages taken from the reserve.")
	descReclaim  = desc("reclaim_pages_total", "Pages that reclaim looked at, and freed.", "result")
	descDirty    = desc("dirty_bytes", "Memory that is not clean.", "export", "state")
	descStuck    = desc("stuck_bytes", "Memory that is not clean and that the disk does not take for now.", "export")
	descWait     = desc("throttled_writers", "Writers that wait for the dirty limit now.")
	descCalls    = desc("nfs_calls_total", "NFS calls served.", "procedure")
	descLocks    = desc("lock_calls_total", "Calls of the lock manager and the status monitor served.")
	descStable   = desc("stable_replies_total", "WRITEs made more durable than asked for, because memory was short.")
	descDups     = desc("nfs_duplicates_total", "Calls sent again and answered with the reply to the first.")
	descShort    = desc("host_memory_short", "1 while the host is short of memory.")
	descShorts   = desc("host_memory_short_total", "Times the host became short of memory.")
	descGroup    = desc("group_free_bytes", "What can still be charged to the control group, as it was seen last.")
	descGroupRe  = desc("group_reclaims_total", "Times the control group was reclaimed, by what that led to.", "result")
	descWaits    = desc("group_waits_total", "Calls that waited for room in the control group.")
	descWaited   = desc("group_waited_seconds_total", "How long they did.")
	descEpoch    = desc("lease_epoch", "Number of the taking of the lease by this server.")
	descRenewed  = desc("lease_renewals_total", "Times the lease was renewed.")
	descRenewal  = desc("lease_slowest_renewal_seconds", "The longest that a renewal of the lease took.")
	descConns    = desc("connections", "Open connections.")
	descLocal    = desc("local_connections", "Open connections of clients on this host.")
	descMoved    = desc("connections_moved_total", "Times the client of an open connection came to this host or left it, with its address.")
	descAddrs    = desc("address_changes_total", "Times the addresses of this host changed.")
	descReplaced = desc("readers_replaced_total", "Times the reader of a connection answered a call itself that took too long, and another went on reading.")
	descLate     = desc("late_readers", "Readers that are at such a call now.")
	descFlight   = desc("requests_in_flight", "Requests from receipt to reply.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("loopnfs_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector: what there is depends on nothing,
// so it is found by collecting.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	a := c.mem.Arena.Stats()
	gauge(descArena, a.Free<<alloc.PageShift, "free")
	gauge(descArena, (a.Total-a.Free)<<alloc.PageShift, "used")
	marks := c.mem.Arena.Watermarks()
	gauge(descMarks, marks.Min<<alloc.PageShift, "min")
	gauge(descMarks, marks.Low<<alloc.PageShift, "low")
	gauge(descMarks, marks.High<<alloc.PageShift, "high")
	limit, background := c.mem.Domain.Thresholds()
	gauge(descLimits, limit<<alloc.PageShift, "limit")
	gauge(descLimits, background<<alloc.PageShift, "background")
	count(descStalls, a.Stalls)
	count(descReserve, a.ReservePages)
	r := c.mem.Reclaim.Stats()
	count(descReclaim, r.Scanned, "scanned")
	count(descReclaim, r.Freed, "freed")
	now, _ := c.mem.Domain.Throttled()
	gauge(descWait, now)
	for _, b := range c.server.BDIs() {
		gauge(descDirty, b.Nr(writeback.Dirty)<<alloc.PageShift, b.Name(), "dirty")
		gauge(descDirty, b.Nr(writeback.Writeback)<<alloc.PageShift, b.Name(), "writeback")
		gauge(descStuck, b.Stuck()<<alloc.PageShift, b.Name())
	}
	s := c.server.NFS.Stats()
	count(descLocks, s.LockCalls)
	count(descStable, s.StableReplies)
	count(descDups, s.Duplicates)
	gauge(descConns, s.Conns)
	gauge(descLocal, s.LocalConns)
	count(descMoved, s.Moved)
	count(descAddrs, s.AddressChanges)
	count(descReplaced, s.Replaced)
	gauge(descLate, s.Late)
	gauge(descFlight, s.InFlight)
	for proc, n := range s.Calls {
		count(descCalls, n, strings.ToLower(nfs3.ProcName(uint32(proc))))
	}
	if c.room != nil {
		g := c.room.Stats()
		gauge(descGroup, int(g.Free))
		count(descGroupRe, g.Reclaims-g.InVain, "room")
		count(descGroupRe, g.InVain, "none")
		count(descWaits, g.Waits)
		ch <- prometheus.MustNewConstMetric(descWaited, prometheus.CounterValue, g.Waited.Seconds())
	}
	if c.lease != nil {
		l := c.lease.Stats()
		gauge(descEpoch, int(l.Epoch))
		count(descRenewed, l.Renewals)
		ch <- prometheus.MustNewConstMetric(descRenewal, prometheus.GaugeValue, l.Slowest.Seconds())
	}
	if c.watch == nil {
		return
	}
	w, short := c.watch.Stats(), 0
	if w.Short {
		short = 1
	}
	gauge(descShort, short)
	count(descShorts, w.Entered)
}
