package failover

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"loopnfs/harness"
)

// Event is something that happened.
type Event struct {
	At   time.Time
	Node string // empty: seen from outside
	What string
}

// timeline collects events: what the drill does, and what the logs of the nodes say.
type timeline struct {
	say func(format string, args ...any)

	mu     sync.Mutex
	events []Event
	serves string // the node that serves
	done   chan struct{}
	all    sync.WaitGroup
}

func newTimeline(say func(string, ...any)) *timeline {
	return &timeline{say: say, done: make(chan struct{})}
}

// note takes down what happens now.
func (t *timeline) note(format string, args ...any) {
	t.add(Event{At: time.Now(), What: fmt.Sprintf(format, args...)})
}

func (t *timeline) add(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
	switch {
	case e.What == harness.PortOpened:
		t.serves = e.Node
	case e.What == harness.PortClosed || strings.Contains(e.What, t.serves+harness.SwitchedOff):
		t.serves = ""
	}
	what := e.What
	if e.Node != "" {
		what = e.Node + ": " + what
	}
	t.say("%-6s  %s", cmp.Or(t.serves, "-"), what)
}

// serving returns the node that serves, as far as its log tells.
func (t *timeline) serving() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.serves
}

// since returns the events from a moment on, in order.
func (t *timeline) since(from time.Time) []Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found []Event
	for _, e := range t.events {
		if !e.At.Before(from) {
			found = append(found, e)
		}
	}
	slices.SortStableFunc(found, func(a, b Event) int { return a.At.Compare(b.At) })
	return found
}

// stop ends the following of logs.
func (t *timeline) stop() {
	close(t.done)
	t.all.Wait()
}

// follow takes events from the log of Pacemaker, from its present end on, as it grows.
func (t *timeline) follow(node, path string) {
	from := int64(0)
	if st, err := os.Stat(path); err == nil {
		from = st.Size()
	}
	t.all.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for last := false; !last; {
			select {
			case <-tick.C:
			case <-t.done:
				last = true
			}
			from += t.read(node, path, from)
		}
	})
}

// read takes the whole lines of a log after from, and returns how long they are.
func (t *timeline) read(node, path string, from int64) (n int64) {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	if _, err := f.Seek(from, 0); err != nil {
		return 0
	}
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return n
		}
		n += int64(len(line))
		if what := meaning(line); what != "" && what != "sees "+node {
			t.add(Event{At: logTime(line), Node: node, What: what})
		}
	}
}

// logTime returns the time of a line of the log, now if it has none.
func logTime(line string) time.Time {
	const form = "Jan _2 15:04:05.000"
	now := time.Now()
	if len(line) < len(form) {
		return now
	}
	at, err := time.ParseInLocation(form, line[:len(form)], time.Local)
	if err != nil {
		return now
	}
	return at.AddDate(now.Year(), 0, 0)
}

// stages are what a takeover consists of: resources of the cluster, and what it means that
// one was started or stopped.
var stages = map[string][2]string{
	"nfs-close":   {"port blocked", "port not blocked any more"},
	"nfs-disk":    {"disk mounted", "disk unmounted"},
	"nfs-server":  {harness.ServerStarted, "server stopped"},
	"nfs-address": {harness.AddressTaken, "address given up"},
	"nfs-open":    {harness.PortOpened, harness.PortClosed},
}

var (
	operation = regexp.MustCompile(`controld.*Result of (start|stop) operation for (nfs-\S+) on \S+: (.+?) \|`)
	// logWords are other lines of Pacemaker's log that tell of a takeover, in words.
	logWords = []struct {
		line *regexp.Regexp
		says string
	}{
		{regexp.MustCompile(`pacemaker-controld .*Node (\S+) state is now lost`), "has lost $1"},
		{regexp.MustCompile(`pacemaker-controld .*Node (\S+) state is now member`), "sees $1"},
		{regexp.MustCompile(`pacemaker-controld .*Peer (\S+) was terminated \(off\) by \S+ on behalf of \S+: OK`), "knows that $1" + harness.SwitchedOff},
		{regexp.MustCompile(`controld.*Requesting fencing \(\S+\) of node (\S+)`), "wants $1 to be off"},
		{regexp.MustCompile(`controld.*Result of monitor operation for (nfs-\S+) on \S+: (not running|error[^|]*|Timed Out[^|]*)`), "looks at $1: $2"},
	}
)

// meaning returns what a line of the log tells; empty if nothing of interest.
func meaning(line string) string {
	if m := operation.FindStringSubmatch(line); m != nil {
		if m[3] != "ok" {
			return fmt.Sprintf("%s of %s failed: %s", m[1], m[2], m[3])
		}
		return stages[m[2]][map[string]int{"start": 0, "stop": 1}[m[1]]]
	}
	for _, w := range logWords {
		if m := w.line.FindStringSubmatchIndex(line); m != nil {
			return strings.TrimSpace(string(w.line.ExpandString(nil, w.says, line, m)))
		}
	}
	return ""
}
