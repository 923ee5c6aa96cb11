package failover

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
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
	t.events = append(t.events, e)
	t.mu.Unlock()
	if e.Node != "" {
		t.say("%s: %s", e.Node, e.What)
		return
	}
	t.say("%s", e.What)
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
		if what := meaning(line); what != "" {
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

// logWords are the lines of Pacemaker's log that tell of a takeover, in words.
var logWords = []struct {
	line *regexp.Regexp
	says string
}{
	{regexp.MustCompile(`pacemaker-controld .*Node (\S+) state is now lost`), "has lost $1"},
	{regexp.MustCompile(`pacemaker-controld .*Node (\S+) state is now member`), "sees $1"},
	{regexp.MustCompile(`controld.*Requesting fencing \(\S+\) of node (\S+)`), "wants $1 off"},
	{regexp.MustCompile(`controld.*Result of (start|stop) operation for (nfs-\S+|fence-\S+) on \S+: ok`), "$2: $1"},
	{regexp.MustCompile(`controld.*Result of (start|stop) operation for (nfs-\S+) on \S+: (.+?) \|`), "$2: $1 failed: $3"},
	{regexp.MustCompile(`controld.*Result of monitor operation for (nfs-\S+) on \S+: (not running|error[^|]*|Timed Out[^|]*)`), "$1: found to be: $2"},
}

// meaning returns what a line of the log tells; empty if nothing of interest.
func meaning(line string) string {
	for _, w := range logWords {
		if m := w.line.FindStringSubmatchIndex(line); m != nil {
			return strings.TrimSpace(string(w.line.ExpandString(nil, w.says, line, m)))
		}
	}
	return ""
}
