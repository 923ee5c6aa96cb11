package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"loopnfs/harness/failover/recorder"
	"loopnfs/harness/linear"
	"loopnfs/harness/work"
)

// ClientConfig says what the clients of a host do; it crosses to their process as JSON.
type ClientConfig struct {
	Host string
	// Name is the host and how often it was started, so that no two clients are alike.
	Name string
	// Dir is on the mount; Logs is a directory outside of the cluster.
	Dir, Logs string
	// Addr and Export are of the server, for who speaks to it without a mount.
	Addr, Export string
	Others       []string // hosts
	State        uint32   // of the host, for the lock manager
	// Apart has the host change names that no other host does, and leave locks alone: its
	// clock is not that of the others, so it could not be told who was first.
	Apart bool
	// Linear has the host also run clients whose calls are recorded one by one. It must
	// not be switched off.
	Linear bool
	Seed   int64
}

// work is the load on data: see package work.
func (c *ClientConfig) work() work.Config {
	return work.Config{
		Mode: work.Blocks, Dir: filepath.Join(c.Dir, "data-"+c.Name), Log: filepath.Join(c.Logs, c.Name+".data"),
		Jobs: 1, Blocks: 32, Rounds: 1 << 30, Seed: c.Seed,
	}
}

// stream is another load on data, which keeps much of it in memory.
func (c *ClientConfig) stream() work.Config {
	return work.Config{
		Mode: work.Stream, Dir: filepath.Join(c.Dir, "stream-"+c.Name), Log: filepath.Join(c.Logs, c.Name+".stream"),
		Jobs: 1, Blocks: 512, Rounds: 1 << 30, Seed: c.Seed,
	}
}

func (c *ClientConfig) namesDir() string {
	if c.Apart {
		return filepath.Join(c.Dir, "names-"+c.Name)
	}
	return filepath.Join(c.Dir, "names")
}

func (c *ClientConfig) namesLog() string { return filepath.Join(c.Logs, c.Name+".names") }
func (c *ClientConfig) locksLog() string { return filepath.Join(c.Logs, c.Name+".locks") }

func (c *ClientConfig) calls() string { return filepath.Join(c.Logs, c.Name+".calls") }

func (c *ClientConfig) validate() error {
	if c.Host == "" || c.Name == "" || !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.Logs) {
		return errors.New("failover: a client needs a host, a name, and absolute paths")
	}
	return nil
}

// RunClient runs the clients of a host until ctx ends, or one fails. Its configuration comes
// from in.
func RunClient(ctx context.Context, in io.Reader) error {
	ctx, fail := context.WithCancel(ctx)
	defer fail()
	var c ClientConfig
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return fmt.Errorf("failover: no configuration: %w", err)
	}
	if err := c.validate(); err != nil {
		return err
	}
	w := c.work()
	if err := errors.Join(os.MkdirAll(c.namesDir(), 0o755), os.MkdirAll(w.Dir, 0o755)); err != nil {
		return err
	}
	names, err := recorder.Open(c.namesLog(), c.Name)
	if err != nil {
		return err
	}
	defer names.Close()
	loads := []func() error{
		func() error { return ignoreEnd(ctx, work.Run(ctx, w, io.Discard)) },
		func() error {
			return (&recorder.Names{Dir: c.namesDir(), Log: names, Jobs: 2, Seed: uint64(c.Seed)}).Run(ctx)
		},
	}
	if c.Apart {
		s := c.stream()
		if err := os.MkdirAll(s.Dir, 0o755); err != nil {
			return err
		}
		loads = append(loads, func() error { return ignoreEnd(ctx, work.Run(ctx, s, io.Discard)) })
	} else {
		locks, err := recorder.Open(c.locksLog(), c.Name)
		if err != nil {
			return err
		}
		defer locks.Close()
		loads = append(loads, func() error {
			return (&recorder.Locker{Addr: c.Addr, Export: c.Export, Host: c.Host, State: c.State, Log: locks, Others: c.Others}).Run(ctx)
		})
	}
	if c.Linear {
		loads = append(loads, func() error {
			l := linear.Load{
				Addr: c.Addr, Export: c.Export, Name: filepath.Base(c.Logs) + "-linear", Seed: uint64(c.Seed), Clients: 3,
				Think: 150 * time.Millisecond, Patience: 2 * time.Second,
			}
			return l.Run(ctx, c.calls())
		})
	}
	errs := make([]error, len(loads))
	var all sync.WaitGroup
	for i, load := range loads {
		all.Go(func() {
			if errs[i] = load(); errs[i] != nil {
				fail()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// ignoreEnd returns err unless it is that of a ctx that has ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// Checked is what RunCheck found.
type Checked struct {
	recorder.Verdict
	Blocks int // acknowledged, and found to be right
	Data   string
}

// RunCheck looks whether everything that was promised to clients is there. Their
// configurations come from in, as an array, and what was found goes to out.
func RunCheck(in io.Reader, out io.Writer) error {
	var clients []ClientConfig
	if err := json.NewDecoder(in).Decode(&clients); err != nil {
		return err
	}
	var found Checked
	calls := map[string][]recorder.Call{} // by the directory of their names
	var data error
	for i := range clients {
		c := &clients[i]
		written, logs := []work.Config{c.work()}, []string{c.namesLog(), c.locksLog()}
		if c.Apart {
			written, logs = append(written, c.stream()), logs[:1]
		}
		for _, w := range written {
			n, err := work.Verify(w)
			if err != nil {
				data = errors.Join(data, fmt.Errorf("%s: %w", c.Name, err))
			}
			found.Blocks += n
		}
		for _, log := range logs {
			more, err := recorder.Read(log)
			if err != nil {
				return err
			}
			calls[c.namesDir()] = append(calls[c.namesDir()], more...)
		}
	}
	for dir, of := range calls {
		v, err := recorder.Check(dir, of)
		if err != nil {
			return err
		}
		found.Promises += v.Promises
		found.Lost, found.Twice = append(found.Lost, v.Lost...), append(found.Twice, v.Twice...)
	}
	if data != nil {
		found.Data = data.Error()
	}
	return json.NewEncoder(out).Encode(found)
}

// client is the process of the clients of a host, from outside.
func (c *Cluster) clientConfig(name, dir, logs string, seed int64) ClientConfig {
	var others []string
	for _, h := range hostNames {
		if h != name {
			others = append(others, h)
		}
	}
	c.mu.Lock()
	start := c.starts[name]
	c.mu.Unlock()
	return ClientConfig{
		Host: name, Name: fmt.Sprintf("%s.%d", name, start), Dir: mountpoint + "/" + dir, Logs: labDir + "/" + logs,
		Addr: net.JoinHostPort(serviceAddr.String(), servicePort), Export: exportName, Others: others, State: uint32(2*start + 1), Seed: seed,
		Linear: name == client1 && c.opt.Guests == nil, Apart: c.isGuest(name),
	}
}

const mountpoint = "/mnt"

// gap is the longest time for which a client waited for an answer that came between two
// moments.
func gap(calls []recorder.Call, from, to int64) time.Duration {
	var longest int64
	for i := range calls {
		c := &calls[i]
		if c.Op == recorder.Lock || c.Op == recorder.Unlock || c.Answered == 0 || c.Answered < from || c.Answered >= to {
			continue
		}
		longest = max(longest, c.Answered-c.At)
	}
	return time.Duration(longest)
}
