package linear

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// Load is clients that make calls for as long as they are told to, and send them again if
// the server is away, also those that were answered.
type Load struct {
	Addr, Export string
	// Name begins the names of the directories.
	Name string
	Seed uint64
	// Clients is how many there are in each group.
	Clients int
	// Think is how long a client waits between two calls, at most: the check takes much
	// longer than the calls.
	Think time.Duration
	// Patience is how long a client waits for a reply before it sends the call again.
	Patience time.Duration
}

// Recording is what clients called and were answered, in a form for files.
type Recording struct {
	Groups [][]Recorded
}

// Recorded is a call with its reply; what is in it is for this package.
type Recorded struct {
	Client     int
	Proc       uint32
	How        vfs.CreateMode
	Verf       byte
	Obj        id
	FromDir    id
	FromName   byte
	AtDir      id
	AtName     byte
	Status     nfs3.Status
	Made       id
	Nlink      int
	Sent, Done int64 // CLOCK_MONOTONIC
}

func recordedOf(c *call, start int64) Recorded {
	return Recorded{
		c.client, c.in.proc, c.in.how, c.in.verf, c.in.obj, c.in.from.dir, c.in.from.name, c.in.at.dir, c.in.at.name,
		c.out.status, c.out.obj, c.out.nlink, start + c.sent, start + c.done,
	}
}

func (r *Recorded) call() call {
	return call{
		client: r.Client, sent: r.Sent, done: r.Done,
		in:  input{proc: r.Proc, how: r.How, verf: r.Verf, obj: r.Obj, from: place{r.FromDir, r.FromName}, at: place{r.AtDir, r.AtName}},
		out: output{status: r.Status, obj: r.Made, nlink: r.Nlink},
	}
}

// Run has clients make calls until ctx ends, and writes the recording to a file.
func (l *Load) Run(ctx context.Context, file string) error {
	var groups []*group
	for i, m := range mixes {
		dirs, err := l.mkdirs(i)
		if err != nil {
			return err
		}
		groups = append(groups, newGroup(m, dirs))
	}
	start := monotonic() - int64(time.Since(groups[0].start))
	for _, g := range groups {
		g.start = groups[0].start
	}
	err := l.run(ctx, groups)
	var rec Recording
	for _, g := range groups {
		var calls []Recorded
		for i := range g.calls {
			calls = append(calls, recordedOf(&g.calls[i], start))
		}
		rec.Groups = append(rec.Groups, calls)
	}
	text, jsonErr := json.Marshal(&rec)
	return errors.Join(err, jsonErr, os.WriteFile(file, text, 0o600))
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
	return ts.Nano()
}

// recent is for how many calls of its group a client of a Load may send an answered call
// again. Others make calls at the same server, some ten times as many, and it keeps the
// replies to the last 2048 of all of them.
const recent = 30

// run has the clients of all groups make calls.
func (l *Load) run(ctx context.Context, groups []*group) error {
	errs := make([]error, len(groups)*l.Clients)
	var all sync.WaitGroup
	for i := range errs {
		c := newClient(groups[i/l.Clients], i+1, l.Addr, rand.New(rand.NewPCG(l.Seed, uint64(i))))
		c.resend, c.repeat, c.patience, c.fresh = true, true, l.Patience, recent
		all.Go(func() {
			defer c.close()
			for ctx.Err() == nil && errs[i] == nil {
				errs[i] = c.step()
				time.Sleep(time.Duration(c.r.Int64N(int64(l.Think))))
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// mkdirs makes the directories of a group.
func (l *Load) mkdirs(group int) (dirs [roots]nfs3.FileHandle, err error) {
	for i := range dirs {
		if dirs[i], err = mkdir(l.Addr, l.Export, fmt.Sprintf("%s-%d-%d", l.Name, group, i)); err != nil {
			return dirs, err
		}
	}
	return dirs, nil
}

// mkdir makes a directory in the root, also if the server is killed meanwhile.
func mkdir(addr, export, name string) (h nfs3.FileHandle, err error) {
	for limit := time.Now().Add(rawnfs.CallLimit); time.Now().Before(limit); {
		if h, err = tryMkdir(addr, export, name); err == nil {
			return h, nil
		}
	}
	return h, err
}

// tryLimit is how long a try to make a directory may take.
const tryLimit = 5 * time.Second

func tryMkdir(addr, export, name string) (h nfs3.FileHandle, err error) {
	c, err := rawnfs.DialTimeout(addr, tryLimit)
	if err != nil {
		return h, err
	}
	defer c.Close()
	root, err := c.Mount(export)
	if err != nil {
		return h, err
	}
	if found, err := c.Lookup(root, name); err == nil && found.Status == nfs3.StatusOK {
		return found.Handle, nil
	}
	return c.Mkdir(root, name)
}

// ReadRecording reads what Run has written.
func ReadRecording(file string) (*Recording, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var rec Recording
	return &rec, json.Unmarshal(text, &rec)
}
