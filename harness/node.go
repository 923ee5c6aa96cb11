package harness

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/fusefs"
	"loopnfs/internal/stack"
	"loopnfs/internal/waitfor"
	"loopnfs/nfsclient"
	"loopnfs/nfsserver"
)

// NodeConfig says what a node is; it crosses to the node process as JSON.
type NodeConfig struct {
	Export, State, Mountpoint string
	Memory                    int64    // bytes
	Without                   []string // mechanisms switched off
	// Part is what the node has of a server and its client; Addr is where the server is, or
	// will be: host:port.
	Part Part
	Addr string
}

// Part is what runs on a node.
type Part string

// Parts.
const (
	// Both is a server, and a mount of what it serves.
	Both Part = ""
	// Elsewhere is a server whose clients are on another machine.
	Elsewhere Part = "server"
	// Survivor is the mount of a server elsewhere, and that server after a "takeover".
	Survivor Part = "client"
)

// Event is a line that a node writes.
type Event struct {
	// Ready: the mount can be used, and the server, at Addr.
	Ready bool   `json:",omitempty"`
	Addr  string `json:",omitempty"`
	// Deadlock: the tasks of each of these circles have not moved for a
	// while.
	Deadlock [][]string `json:",omitempty"`
	// Waits: all waits of this moment, in answer to "waits".
	Waits []string `json:",omitempty"`
}

const (
	// nodeExport is the name of the export in a node.
	nodeExport = "/drill"
	// checkEvery is how often a node looks for a circle of waits, and
	// stuckFor how long one must stand still to be called a deadlock.
	checkEvery = 250 * time.Millisecond
	stuckFor   = 2 * time.Second
	// A starved machine: others hold most of the memory, and little of the
	// rest has to be clean (vm.dirty_ratio). The server has fewer workers
	// than there are writers, and room for more calls than it has workers.
	occupiedPercent = 60
	dirtyRatio      = 40
	nodeWorkers     = 4
	nodeSlots       = 1024
	// stopLimit bounds the orderly end of a node, which syncs a file system that others may
	// write to, and tellLimit what it takes to say why that was not enough.
	stopLimit = 60 * time.Second
	tellLimit = 5 * time.Second
)

// node is the server side and the client side of a drill, or one of them, on one arena.
type node struct {
	cfg    NodeConfig
	policy policies
	mem    *stack.Memory
	server *stack.Server
	client *stack.Client
	log    *slog.Logger

	mu  sync.Mutex
	out *json.Encoder
}

// RunNode is the main function of a node process: it takes its configuration
// from the first line of in, then commands, one a line ("waits", "takeover", "stop"), and
// writes Events to out. The end of in means stop.
func RunNode(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return fmt.Errorf("node: no configuration: %w", lines.Err())
	}
	n := &node{out: json.NewEncoder(out)}
	if err := json.Unmarshal(lines.Bytes(), &n.cfg); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if err := n.start(ctx); err != nil {
		return err
	}
	go n.watch(ctx)
	n.send(Event{Ready: true, Addr: n.cfg.Addr})
	for lines.Scan() {
		switch strings.TrimSpace(lines.Text()) {
		case "waits":
			n.send(Event{Waits: n.mem.Graph.Summary()})
		case "takeover":
			if err := n.startServer(); err != nil {
				return err
			}
		case "stop":
			return n.stop()
		}
	}
	return n.stop()
}

// start starts the parts that the node has.
func (n *node) start(ctx context.Context) (err error) {
	n.policy = policiesWithout(n.cfg.Memory, n.cfg.Without)
	n.policy.memory.DirtyRatio = dirtyRatio
	n.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if n.mem, err = stack.NewMemory(n.policy.memory); err != nil {
		return err
	}
	n.mem.Start()
	if n.cfg.Part == Elsewhere {
		n.policy.locality = nfsserver.NeverLocal{}
	} else if err := occupy(n.mem.Arena, occupiedPercent); err != nil {
		return err
	}
	if n.cfg.Part != Survivor {
		if err := n.startServer(); err != nil {
			return err
		}
	}
	if n.cfg.Part != Elsewhere {
		err = n.startClient(ctx)
	}
	return err
}

func (n *node) startServer() (err error) {
	n.server, err = stack.StartServer(n.mem, stack.ServerConfig{
		Exports:  []stack.ExportConfig{{Dir: n.cfg.Export, Name: nodeExport, Squash: nfsserver.SquashNone}},
		StateDir: n.cfg.State, Listen: cmp.Or(n.cfg.Addr, "127.0.0.1:0"),
		Workers: nodeWorkers, Slots: nodeSlots, CopyWrites: n.policy.copies, Locality: n.policy.locality, Logger: n.log,
	})
	if err == nil {
		n.cfg.Addr = n.server.Addr().String()
	}
	return err
}

func (n *node) startClient(ctx context.Context) (err error) {
	n.client, err = stack.StartClient(ctx, n.mem, stack.ClientConfig{
		NFS:    nfsclient.Config{Addr: n.cfg.Addr, Export: nodeExport, Slots: nodeSlots / 2, Release: n.policy.release},
		Door:   fusefs.DoorConfig{Mountpoint: n.cfg.Mountpoint, FsName: "loopnfs-drill"},
		Logger: n.log,
	})
	return err
}

// occupy takes a part of the arena for good, as programs do that share the
// machine's memory with the server.
func occupy(a *alloc.Arena, percent int) error {
	for range a.Total() * percent / 100 {
		if _, err := a.Alloc(gfp.Scope{}, gfp.NoWait); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) send(e Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = n.out.Encode(e) // a drill that is gone is noticed by the end of in
}

// stop ends the mount first, so that nobody is left to wait for the rest.
func (n *node) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if n.client != nil {
		if err := n.client.Stop(ctx); err != nil {
			return err
		}
	}
	if n.server != nil {
		if err := n.server.Stop(ctx); err != nil {
			return err
		}
	}
	n.mem.Stop()
	return nil
}

// watch reports circles of waits that stand still.
func (n *node) watch(ctx context.Context) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	var seen []standing
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		seen = update(seen, n.mem.Graph.FindCycles())
		var stuck [][]string
		for _, s := range seen {
			if time.Since(s.since) >= stuckFor {
				stuck = append(stuck, s.cycle.Edges)
			}
		}
		if stuck != nil {
			n.send(Event{Deadlock: stuck})
		}
	}
}

// standing is a circle that has not moved since a point in time.
type standing struct {
	cycle *waitfor.Cycle
	since time.Time
}

// update returns the circles of now, with how long they have been there.
func update(seen []standing, now []*waitfor.Cycle) []standing {
	var next []standing
	for _, c := range now {
		s := standing{c, time.Now()}
		for _, old := range seen {
			if old.cycle.Same(c) {
				s.since = old.since
			}
		}
		next = append(next, s)
	}
	return next
}
