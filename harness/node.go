package harness

import (
	"bufio"
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
}

// Event is a line that a node writes.
type Event struct {
	// Ready: the mount can be used.
	Ready bool `json:",omitempty"`
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
	// stopLimit bounds the orderly end of a node.
	stopLimit = 30 * time.Second
)

// node is the server side and the client side of a drill, on one arena.
type node struct {
	mem    *stack.Memory
	server *stack.Server
	client *stack.Client

	mu  sync.Mutex
	out *json.Encoder
}

// RunNode is the main function of a node process: it takes its configuration
// from the first line of in, then commands, one a line ("waits", "stop"), and
// writes Events to out. The end of in means stop.
func RunNode(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return fmt.Errorf("node: no configuration: %w", lines.Err())
	}
	var cfg NodeConfig
	if err := json.Unmarshal(lines.Bytes(), &cfg); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	n, err := startNode(ctx, cfg, out)
	if err != nil {
		return err
	}
	go n.watch(ctx)
	n.send(Event{Ready: true})
	for lines.Scan() {
		switch strings.TrimSpace(lines.Text()) {
		case "waits":
			n.send(Event{Waits: n.mem.Graph.Summary()})
		case "stop":
			return n.stop()
		}
	}
	return n.stop()
}

func startNode(ctx context.Context, cfg NodeConfig, out io.Writer) (*node, error) {
	p := policiesWithout(cfg.Memory, cfg.Without)
	p.memory.DirtyRatio = dirtyRatio
	mem, err := stack.NewMemory(p.memory)
	if err != nil {
		return nil, err
	}
	mem.Start()
	if err := occupy(mem.Arena, occupiedPercent); err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	n := &node{mem: mem, out: json.NewEncoder(out)}
	n.server, err = stack.StartServer(mem, stack.ServerConfig{
		Exports:  []stack.ExportConfig{{Dir: cfg.Export, Name: nodeExport, Squash: nfsserver.SquashNone}},
		StateDir: cfg.State, Listen: "127.0.0.1:0",
		Workers: nodeWorkers, Slots: nodeSlots, CopyWrites: p.copies, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	n.client, err = stack.StartClient(ctx, mem, stack.ClientConfig{
		NFS:    nfsclient.Config{Addr: n.server.Addr().String(), Export: nodeExport, Slots: nodeSlots / 2, Release: p.release},
		Door:   fusefs.DoorConfig{Mountpoint: cfg.Mountpoint, FsName: "loopnfs-drill"},
		Logger: log,
	})
	return n, err
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
	if err := n.client.Stop(ctx); err != nil {
		return err
	}
	if err := n.server.Stop(ctx); err != nil {
		return err
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
