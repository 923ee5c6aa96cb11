package failover

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// observer looks, from outside and all the time, on which nodes there is a server. It
// finds them by the control groups of the nodes, and sees nothing where there are none.
type observer struct {
	groups *groups
	done   chan struct{}
	ended  sync.WaitGroup

	mu   sync.Mutex
	both []string // what it saw when there were two
	n    int      // how often it looked
}

// lookEvery is how often: much shorter than a takeover.
const lookEvery = 25 * time.Millisecond

func startObserver(g *groups) *observer {
	o := &observer{groups: g, done: make(chan struct{})}
	if g.top == "" {
		return o
	}
	o.ended.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				o.look()
			case <-o.done:
				return
			}
		}
	})
	return o
}

func (o *observer) look() {
	var nodes []string
	for _, name := range nodeNames {
		if pids := o.groups.find(name, serverCommand); len(pids) > 0 {
			nodes = append(nodes, fmt.Sprintf("process %d on %s", pids[0], name))
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n++
	if len(nodes) > 1 {
		o.both = append(o.both, time.Now().Format("15:04:05.000 ")+strings.Join(nodes, ", "))
	}
}

// serverCommand is the server as the resource agent calls it. One that has ended, and was
// not collected yet, has no command line any more.
var serverCommand = []string{"/usr/sbin/loopnfs", "serve"}

// stop ends it and returns how often it looked, and what it saw of two servers.
func (o *observer) stop() (looks int, both []string) {
	close(o.done)
	o.ended.Wait()
	return o.n, o.both
}
