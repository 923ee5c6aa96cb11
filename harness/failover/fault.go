package failover

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"loopnfs/harness/failover/host"
)

// Fault is something that goes wrong, or is done, while clients work.
type Fault struct {
	Name string
	// Says is what happens, in words.
	Says string
	// Takeover says that another node has the service afterwards.
	Takeover bool
	// skip says why it cannot be had here, with nodes that are guests or not; empty if it
	// can.
	skip func(guests bool) string
	// inject does it, and returns when nothing more is to go wrong.
	inject func(ctx context.Context, c *Cluster, d *drama) error
}

// drama is what a fault knows of its case.
type drama struct {
	rng             *rand.Rand
	serving, second string // nodes, when it begins
	// progress waits until clients of all hosts that are there were answered again.
	progress func(context.Context) error
}

func (d *drama) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(d.rng.Int64N(int64(hi-lo)))
}

// Faults are all that there are.
func Faults() []Fault {
	return []Fault{
		{Name: "move", Says: "the service is moved to the other node, in order", Takeover: true, inject: move},
		{Name: "server-kill", Says: "the server is killed (SIGKILL), its node stays", inject: serverKill},
		{Name: "node-kill", Says: "the node that serves loses its power", Takeover: true, inject: nodeKill},
		{Name: "link-cut", Says: "the cable of the node that serves is pulled", Takeover: true, inject: linkCut},
		{Name: "disk-stall", Says: "the disk takes no writes for some seconds", skip: noFreezer, inject: diskStall},
		{Name: "split-brain", Says: "the nodes do not hear each other, both live, and the power switch does nothing for some seconds", inject: splitBrain},
		{Name: "address-flap", Says: "the address of the service is taken away from the node that has it, again and again", inject: addressFlap},
		{Name: "takeover-kill", Says: "the node that serves loses its power, and the server is killed while it starts on the other", Takeover: true, inject: takeoverKill},
		{Name: "starved-survivor", Says: "the node that serves loses its power, and the other has no memory left", Takeover: true, skip: needGroups, inject: starvedSurvivor},
		{Name: "clock-jump", Says: "the clock of the node that serves jumps ahead by an hour, and then back by two", skip: noClock, inject: clockJump},
	}
}

// Available returns the faults that hosts of namespaces can have here, and why they cannot
// have others.
func Available() (all []Fault, others []string) {
	for _, f := range Faults() {
		if why := f.Skip(false); why != "" {
			others = append(others, f.Name+": "+why)
			continue
		}
		all = append(all, f)
	}
	return all, others
}

// Skip says why nodes, which are guests or hosts of namespaces, cannot have the fault here;
// empty if they can.
func (f *Fault) Skip(guests bool) string {
	if f.skip == nil {
		return ""
	}
	return f.skip(guests)
}

// FindFault returns the fault with a name.
func FindFault(name string) (Fault, error) {
	var names []string
	for _, f := range Faults() {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return Fault{}, fmt.Errorf("no fault is called %q; there are: %s", name, strings.Join(names, ", "))
}

func noClock(guests bool) string {
	if guests {
		return ""
	}
	return "hosts of namespaces have the clock of the machine; guests have their own (--via qemu)"
}

func noFreezer(guests bool) string {
	if guests {
		return "a guest's disk cannot be held up from outside"
	}
	return ""
}

func needGroups(guests bool) string {
	if !guests && newGroups().top == "" {
		return "no control groups of memory (version 1) can be made here"
	}
	return ""
}

// move moves the service as an administrator does.
func move(ctx context.Context, c *Cluster, d *drama) error {
	h := c.host(d.serving)
	if _, err := h.Run(ctx, "crm_resource", "--resource", "nfs", "--move", "--node", d.second); err != nil {
		return err
	}
	err := c.awaitServing(ctx, d.second)
	_, clearErr := h.Run(ctx, "crm_resource", "--resource", "nfs", "--clear")
	return errors.Join(err, clearErr)
}

// serverKill kills the server and its keeper.
func serverKill(ctx context.Context, c *Cluster, d *drama) error {
	_, err := c.host(d.serving).Run(ctx, "pkill", "-KILL", "-f", "loopnfs serve")
	return err
}

func nodeKill(_ context.Context, c *Cluster, d *drama) error { return c.off(d.serving) }

func linkCut(ctx context.Context, c *Cluster, d *drama) error {
	if err := c.net.Plug(d.serving, false); err != nil {
		return err
	}
	return c.awaitServing(ctx, d.second)
}

func diskStall(ctx context.Context, c *Cluster, d *drama) error {
	if err := c.disk.stall(c.dir); err != nil {
		return err
	}
	sleep(ctx, d.between(2*time.Second, 6*time.Second))
	return c.disk.resume(c.dir)
}

// clockJump sets the clock of a guest.
func clockJump(ctx context.Context, c *Cluster, d *drama) error {
	for _, by := range []time.Duration{time.Hour, -2 * time.Hour} {
		out, err := c.host(d.serving).Run(ctx, "sh", "-c", fmt.Sprintf(`date -s "@$(($(date +%%s) + %d))"`, int(by.Seconds())))
		if err != nil {
			return err
		}
		c.events.note("%s: it is %s", d.serving, strings.TrimSpace(out))
		if err := d.progress(ctx); err != nil {
			return err
		}
	}
	return nil
}

// splitBrain also looks whether the other node keeps its hands off the disk while it
// cannot know.
func splitBrain(ctx context.Context, c *Cluster, d *drama) error {
	c.power.block()
	if err := c.net.Separate(addrs[node1], addrs[node2]); err != nil {
		return err
	}
	sleep(ctx, d.between(5*time.Second, 8*time.Second))
	servers, err := c.servers(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(servers, d.second) {
		return fmt.Errorf("with fencing blocked there is a server on %s, while %s may have the disk", d.second, d.serving)
	}
	c.events.note("the power switch works again; there is no server on %s", d.second)
	c.power.unblock()
	return c.awaitFencing(ctx)
}

func addressFlap(ctx context.Context, c *Cluster, d *drama) error {
	for range 2 + d.rng.IntN(3) {
		// Pacemaker may have it somewhere else by now.
		at, err := c.awaitServingNode(ctx)
		if err != nil {
			return err
		}
		_, _ = c.host(at).Run(ctx, "ip", "addr", "del", fmt.Sprintf("%s/%d", serviceAddr, network.Bits()), "dev", "eth0")
		sleep(ctx, d.between(500*time.Millisecond, 3*time.Second))
	}
	return nil
}

// takeoverKill kills the server of the survivor as soon as there is one.
func takeoverKill(ctx context.Context, c *Cluster, d *drama) error {
	if err := c.off(d.serving); err != nil {
		return err
	}
	h := c.host(d.second)
	limit := time.Now().Add(c.upLimit())
	for time.Now().Before(limit) && ctx.Err() == nil {
		if _, err := h.Run(ctx, "pgrep", "-f", "loopnfs serve"); err == nil {
			sleep(ctx, d.between(0, 150*time.Millisecond))
			_, err := h.Run(ctx, "pkill", "-KILL", "-f", "loopnfs serve")
			c.events.note("the server that was starting on %s is killed", d.second)
			return err
		}
	}
	return fmt.Errorf("no server started on %s", d.second)
}

// Limits of starvedSurvivor.
const (
	// spareBytes is what the survivor may have beside what it uses.
	spareBytes = 96 << 20
	// hogs take hogBytes of it in all: what is left is less than a server needs. There are
	// several, as the OOM killer is sometimes called again before the memory of the last
	// one is back, and must find another.
	hogs, hogBytes = 6, spareBytes - 12<<20
)

// starvedSurvivor limits the memory of the survivor to little more than what it uses,
// and has hogs take nearly all of that. Whoever needs more waits until the OOM killer has
// found one, and has to be quick, as it comes back. The machine itself has enough.
// Corosync is left alone: it is locked in memory and has a real-time priority, which a
// limit of its group would make void, as no real want of memory does.
func starvedSurvivor(ctx context.Context, c *Cluster, d *drama) (err error) {
	if c.opt.Guests != nil {
		return c.starveGuest(ctx, d)
	}
	h := c.host(d.second)
	if err := c.groups.apart(d.second, "corosync"); err != nil {
		return err
	}
	release, err := c.groups.limit(d.second, spareBytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	hog, err := h.Start("/var/log/hog.out", "", "sh", "-c", fmt.Sprintf(
		"for i in $(seq %d); do while :; do loopnfs failover hog --bytes %d; sleep 0.1; done & done; wait", hogs, hogBytes/hogs))
	if err != nil {
		return err
	}
	sleep(ctx, time.Second)
	err = c.off(d.serving)
	if err == nil {
		err = c.awaitServing(ctx, d.second)
	}
	_, endErr := h.Run(ctx, "pkill", "-KILL", "-s", fmt.Sprint(hog.PID())) // its session
	return errors.Join(err, endErr)
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// serving returns the node that has the address of the service; empty if none has.
func (c *Cluster) serving(ctx context.Context) (string, error) {
	if c.opt.Guests != nil {
		return c.events.serving(), nil // to ask a guest takes time that it does not have
	}
	for _, name := range nodeNames {
		h := c.host(name)
		if h.Gone() {
			continue
		}
		out, err := h.Run(ctx, "ip", "-o", "addr", "show", "to", serviceAddr.String()+"/32")
		if err != nil && !errors.Is(err, host.ErrGone) {
			return "", err
		}
		if out != "" {
			return name, nil
		}
	}
	return "", nil
}

// servers returns the nodes in which there is a server process.
func (c *Cluster) servers(ctx context.Context) (found []string, err error) {
	for _, name := range nodeNames {
		h := c.host(name)
		if h.Gone() {
			continue
		}
		if _, err := h.Run(ctx, "pgrep", "-f", "loopnfs serve"); err == nil {
			found = append(found, name)
		}
	}
	return found, nil
}

// awaitServing waits until a node has the service, and it answers.
func (c *Cluster) awaitServing(ctx context.Context, name string) error {
	limit := time.Now().Add(c.upLimit())
	for time.Now().Before(limit) && ctx.Err() == nil {
		at, err := c.serving(ctx)
		if err != nil {
			return err
		}
		if at == name {
			return c.awaitService(ctx, time.Until(limit))
		}
		sleep(ctx, 50*time.Millisecond)
	}
	return fmt.Errorf("%s did not get the service within %v", name, c.upLimit())
}

func (c *Cluster) awaitServingNode(ctx context.Context) (string, error) {
	limit := time.Now().Add(c.upLimit())
	for time.Now().Before(limit) && ctx.Err() == nil {
		at, err := c.serving(ctx)
		if err != nil || at != "" {
			return at, err
		}
		sleep(ctx, 50*time.Millisecond)
	}
	return "", fmt.Errorf("no node had the address within %v", c.upLimit())
}

// awaitFencing waits until a node is off.
func (c *Cluster) awaitFencing(ctx context.Context) error {
	limit := time.Now().Add(c.upLimit())
	for time.Now().Before(limit) && ctx.Err() == nil {
		for _, name := range nodeNames {
			if c.host(name).Gone() {
				return nil
			}
		}
		sleep(ctx, 20*time.Millisecond)
	}
	return errors.New("the power switch was released, but no node was fenced")
}
