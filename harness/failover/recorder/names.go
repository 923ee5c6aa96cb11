package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Names is a load on the names of a directory.
type Names struct {
	Dir  string // on the mount
	Log  *Log
	Jobs int
	Seed uint64
}

const (
	// tokens is how many names all clients fight for.
	tokens = 4
	// keep is how many files of its own a job leaves alone before it removes the oldest.
	keep = 20
	// think is how long a job waits between two calls, at most.
	think = 30 * time.Millisecond
)

// Run changes names until ctx ends.
func (n *Names) Run(ctx context.Context) error {
	errs := make([]error, n.Jobs)
	var all sync.WaitGroup
	for i := range n.Jobs {
		j := &job{Names: n, number: i, rng: rand.New(rand.NewPCG(n.Seed, uint64(i)))}
		all.Go(func() { errs[i] = j.run(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// job makes one call after the other.
type job struct {
	*Names
	number int
	rng    *rand.Rand
	files  int      // so far
	own    []string // names of its own that are there, with the ID as their end
}

// run returns an error only if the log cannot be written or there is no mount: what a mount
// says is for Check.
func (j *job) run(ctx context.Context) error {
	for ctx.Err() == nil {
		var err error
		if j.rng.IntN(2) == 0 {
			err = j.fight()
		} else {
			err = j.private()
		}
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(j.rng.Int64N(int64(think))))
	}
	return nil
}

func (j *job) newID() string {
	j.files++
	return fmt.Sprintf("%s.%d-%d", j.Log.client, j.number, j.files)
}

// fight tries to get a name that others want, too, and to take it away.
func (j *job) fight() error {
	id, name := j.newID(), fmt.Sprintf("token-%d", j.rng.IntN(tokens))
	got, err := j.create(name, id)
	if err != nil || !got {
		return err
	}
	if j.rng.IntN(2) == 0 {
		return j.remove(name, id)
	}
	if err := j.rename(name, "done-"+id, id); err != nil {
		return err
	}
	return j.remove("done-"+id, id)
}

// private makes a file that nobody else looks at, renames it, and removes an older one.
func (j *job) private() error {
	id := j.newID()
	if _, err := j.create("new-"+id, id); err != nil {
		return err
	}
	if err := j.rename("new-"+id, "own-"+id, id); err != nil {
		return err
	}
	j.own = append(j.own, id)
	if len(j.own) <= keep {
		return nil
	}
	old := j.own[0]
	j.own = j.own[1:]
	return j.remove("own-"+old, old)
}

// create makes a file that was not there, and puts its ID into it.
func (j *job) create(name, id string) (got bool, err error) {
	e, err := j.Log.call(Create, name, "", id)
	if err != nil {
		return false, err
	}
	err = writeNew(filepath.Join(j.Dir, name), id)
	taken := errors.Is(err, fs.ErrExist)
	if taken {
		err = nil
	}
	return !taken && err == nil, j.Log.answer(e, taken, err)
}

func writeNew(path, id string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(id)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (j *job) rename(from, to, id string) error {
	e, err := j.Log.call(Rename, from, to, id)
	if err != nil {
		return err
	}
	return j.Log.answer(e, false, os.Rename(filepath.Join(j.Dir, from), filepath.Join(j.Dir, to)))
}

func (j *job) remove(name, id string) error {
	e, err := j.Log.call(Remove, name, "", id)
	if err != nil {
		return err
	}
	return j.Log.answer(e, false, os.Remove(filepath.Join(j.Dir, name)))
}
