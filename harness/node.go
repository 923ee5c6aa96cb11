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
	Workers                   int      // of the server
	Without                   []string // mechanisms switched off
}

// Event is a line that a node writes.
type Event struct {
	// Ready: the mount can be used.
	Ready bool `json:",omitempty"`
	// Deadlock: the tasks of this circle have not moved for a while.
	Deadlock []string `json:",omitempty"`
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
			n.send(Event{Waits: n.mem.Graph.Waits()})
		case "stop":
			return n.stop()
		}
	}
	return n.stop()
}

func startNode(ctx context.Context, cfg NodeConfig, out io.Writer) (*node, error) {
	p := policiesWithout(cfg.Memory, cfg.Without)
	mem, err := stack.NewMemory(p.memory)
	if err != nil {
		return nil, err
	}
	mem.Start()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	n := &node{mem: mem, out: json.NewEncoder(out)}
	n.server, err = stack.StartServer(mem, stack.ServerConfig{
		Exports:  []stack.ExportConfig{{Dir: cfg.Export, Name: nodeExport}},
		StateDir: cfg.State, Listen: "127.0.0.1:0", Squash: nfsserver.SquashNone,
		Workers: cfg.Workers, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	n.client, err = stack.StartClient(ctx, mem, stack.ClientConfig{
		NFS:    nfsclient.Config{Addr: n.server.Addr().String(), Export: nodeExport, Release: p.release},
		Door:   fusefs.DoorConfig{Mountpoint: cfg.Mountpoint, FsName: "loopnfs-drill"},
		Logger: log,
	})
	return n, err
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

// watch reports a circle of waits that stands still.
func (n *node) watch(ctx context.Context) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	var last *waitfor.Cycle
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c := n.mem.Graph.FindCycle()
		if !c.Same(last) {
			last, since = c, time.Now()
		}
		if last != nil && time.Since(since) >= stuckFor {
			n.send(Event{Deadlock: last.Edges})
		}
	}
}
