package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"loopnfs/alloc"
)

type topOptions struct {
	pid      int
	interval time.Duration
	once     bool
}

func newTopCommand() *cobra.Command {
	var opts topOptions
	cmd := &cobra.Command{
		Use:   "top [PID]",
		Short: "Watch a server at work",
		Long: `Shows what a server on this host does, and brings that up to date every second: its
memory with the watermarks, what is dirty and being written for each export, who is
throttled, calls per second, how many clients are on this host (loop-back), and who
waits for what. Ctrl-C ends it.

Without PID there has to be one server only. Only root and the user whose server it is
may look. If the output is no terminal, one picture comes after the other.`,
		Example: `  loopnfs top
  loopnfs top 4711 --interval 5s
  loopnfs top --once`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.interval < 100*time.Millisecond || opts.interval > time.Hour {
				return usagef("--interval %v: give 100ms to 1h", opts.interval)
			}
			if len(args) == 1 {
				if opts.pid, err = strconv.Atoi(args[0]); err != nil {
					return usagef("%q is not the number of a process", args[0])
				}
			}
			return runTop(cmd.Context(), &opts, cmd.OutOrStdout())
		},
	}
	cmd.Flags().DurationVar(&opts.interval, "interval", time.Second, "how often")
	cmd.Flags().BoolVar(&opts.once, "once", false, "show one picture, of the time of one interval, and end")
	return cmd
}

// runTop shows pictures until ctx ends, or the server.
func runTop(ctx context.Context, opts *topOptions, out io.Writer) error {
	pid, err := opts.server()
	if err != nil {
		return err
	}
	v := newViewer(pid)
	last, err := v.look(ctx)
	if err != nil {
		return err
	}
	s := newScreen(out)
	defer s.close()
	tick := time.NewTicker(opts.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := v.look(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.show(topPicture(pid, last, now, s.width()))
		if last = now; opts.once {
			return nil
		}
	}
}

// server returns the process to look at.
func (o *topOptions) server() (int, error) {
	pids, err := viewable()
	switch {
	case err != nil:
		return 0, err
	case o.pid != 0 && !slices.Contains(pids, o.pid):
		return 0, fmt.Errorf("process %d is not a server of loopnfs in this network name space; there are: %v", o.pid, pids)
	case o.pid != 0:
		return o.pid, nil
	case len(pids) == 0:
		return 0, fmt.Errorf("no server of loopnfs runs in this network name space: start one with loopnfs serve")
	case len(pids) > 1:
		return 0, usagef("there are several servers: name one of the processes %v", pids)
	}
	return pids[0], nil
}

// screen is where pictures are shown: one in the place of the other on a terminal.
type screen struct {
	out  io.Writer
	term *os.File // nil if out is no terminal
	n    int
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		s.term = f
		fmt.Fprint(f, "\x1b[?1049h\x1b[?25l") // another page, without a cursor
	}
	return s
}

func (s *screen) close() {
	if s.term != nil {
		fmt.Fprint(s.term, "\x1b[?25h\x1b[?1049l")
	}
}

func (s *screen) width() int {
	if s.term != nil {
		if size, err := unix.IoctlGetWinsize(int(s.term.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
	}
	return 100
}

func (s *screen) height() int {
	if size, err := unix.IoctlGetWinsize(int(s.term.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 {
		return int(size.Row)
	}
	return 24
}

func (s *screen) show(lines []string) {
	if s.term == nil {
		if s.n++; s.n > 1 {
			fmt.Fprintln(s.out)
		}
		fmt.Fprintln(s.out, strings.Join(lines, "\n"))
		return
	}
	lines = lines[:min(len(lines), s.height())]
	fmt.Fprint(s.term, "\x1b[H"+strings.Join(lines, "\x1b[K\n")+"\x1b[K\x1b[J")
}

// topPicture returns the lines that tell what happened between two views.
func topPicture(pid int, last, now *view, width int) []string {
	p := &picture{last: last, now: now, width: width}
	p.line("server", "process %d at %s", pid, now.at.Format("15:04:05"))
	p.memory()
	p.exports()
	p.reclaim()
	p.host()
	p.calls()
	p.clients()
	p.lease()
	p.waits()
	return p.lines
}

type picture struct {
	last, now *view
	width     int
	lines     []string
}

// line adds one, cut to the width.
func (p *picture) line(title, format string, args ...any) {
	text := []rune(fmt.Sprintf("%-9s %s", title, fmt.Sprintf(format, args...)))
	for i, r := range text {
		if !unicode.IsPrint(r) { // a name of a directory can be anything
			text[i] = '?'
		}
	}
	p.lines = append(p.lines, string(text[:min(len(text), p.width)]))
}

// rate returns by how much a counter grew, for each second.
func (p *picture) rate(name string, labels ...string) float64 {
	return (p.now.value(name, labels...) - p.last.value(name, labels...)) / p.now.at.Sub(p.last.at).Seconds()
}

func (p *picture) memory() {
	free, used := p.now.value("arena_bytes", "free"), p.now.value("arena_bytes", "used")
	low, least := p.now.value("arena_watermark_bytes", "low"), p.now.value("arena_watermark_bytes", "min")
	state := "enough is free"
	switch {
	case free < least:
		state = "only the reserve is left"
	case free < low:
		state = "reclaim is at work"
	}
	p.line("memory", "%s %s free of %s, %s", bar(p.width/3, used/(free+used), 1-low/(free+used)), mib(free), mib(free+used), state)
	p.line("", "marks: min %s, low %s, high %s; %s/s from the reserve, %.0f stalls/s",
		mib(least), mib(low), mib(p.now.value("arena_watermark_bytes", "high")), mib(pageBytes*p.rate("alloc_reserve_pages_total")), p.rate("alloc_stalls_total"))
}

// bar draws a part of 1, and where a mark is.
func bar(width int, part, mark float64) string {
	b := []rune(strings.Repeat(" ", max(width, 10)))
	for i := range b {
		if float64(i) < part*float64(len(b)) {
			b[i] = '#'
		}
	}
	b[min(max(0, int(mark*float64(len(b)))), len(b)-1)] = '|'
	return "[" + string(b) + "]"
}

const pageBytes = float64(alloc.PageSize)

func mib(bytes float64) string { return fmt.Sprintf("%.1f MiB", bytes/(1<<20)) }

func (p *picture) exports() {
	names := map[string]bool{}
	p.now.all("dirty_bytes", func(labels map[string]string, _ float64) { names[labels["export"]] = true })
	limit := p.now.value("dirty_limit_bytes", "limit")
	for _, name := range slices.Sorted(maps.Keys(names)) {
		dirty, wb := p.now.value("dirty_bytes", name, "dirty"), p.now.value("dirty_bytes", name, "writeback")
		p.line("export", "%s: dirty %s, being written %s", strings.TrimPrefix(name, "store "), mib(dirty), mib(wb))
		if n := p.now.value("stuck_bytes", name); n > 0 {
			p.line("", "THE DISK DOES NOT TAKE %s: it is full, or fails", mib(n))
		}
	}
	throttled := "nobody is throttled"
	if n := p.now.value("throttled_writers"); n > 0 {
		throttled = fmt.Sprintf("%.0f writers are throttled", n)
	}
	p.line("dirty", "limit %s, write-out from %s; %s", mib(limit), mib(p.now.value("dirty_limit_bytes", "background")), throttled)
}

func (p *picture) reclaim() {
	p.line("reclaim", "%s/s looked at, %s/s freed", mib(pageBytes*p.rate("reclaim_pages_total", "scanned")), mib(pageBytes*p.rate("reclaim_pages_total", "freed")))
}

func (p *picture) host() {
	switch {
	case !p.now.has("host_memory_short"):
	case p.now.value("host_memory_short") > 0:
		p.line("host", "SHORT OF MEMORY: %.0f WRITEs/s are put on the disk before they are answered", p.rate("stable_replies_total"))
	default:
		p.line("host", "has memory; was short of it %.0f times", p.now.value("host_memory_short_total"))
	}
	if p.now.has("group_free_bytes") {
		p.line("group", "%s can still be charged; %.0f calls/s waited for room", mib(p.now.value("group_free_bytes")), p.rate("group_waits_total"))
	}
}

// calls are those that came, most first.
func (p *picture) calls() {
	type called struct {
		name string
		rate float64
	}
	var all []called
	p.now.all("nfs_calls_total", func(labels map[string]string, _ float64) {
		name := labels["procedure"]
		if r := p.rate("nfs_calls_total", name); r > 0 {
			all = append(all, called{name, r})
		}
	})
	slices.SortFunc(all, func(a, b called) int { return cmp.Or(cmp.Compare(b.rate, a.rate), strings.Compare(a.name, b.name)) })
	var words []string
	for _, c := range all {
		words = append(words, fmt.Sprintf("%s %.0f", c.name, c.rate))
	}
	p.line("calls/s", "%s", cmp.Or(strings.Join(words, ", "), "none"))
}

func (p *picture) clients() {
	p.line("clients", "%.0f connections, %.0f of them from this host (loop-back); %.0f requests in flight",
		p.now.value("connections"), p.now.value("local_connections"), p.now.value("requests_in_flight"))
	if n := p.now.value("connections_moved_total"); n > 0 {
		p.line("", "%.0f times a client's address came to this host, or left it", n)
	}
}

func (p *picture) lease() {
	if p.now.has("lease_epoch") {
		p.line("lease", "epoch %.0f; the slowest renewal took %.3f s", p.now.value("lease_epoch"), p.now.value("lease_slowest_renewal_seconds"))
	}
}

func (p *picture) waits() {
	title := "waits"
	for _, w := range p.now.waits {
		p.line(title, "%s", cmp.Or(w, "nobody waits for anybody"))
		title = ""
	}
}
