package recorder

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Verdict is what came of all promises.
type Verdict struct {
	// Promises is how many changes were answered.
	Promises int
	// Lost are promises that were not kept, Twice what happened more than once, Failed
	// the calls that were answered with an error: each in a sentence.
	Lost, Twice, Failed []string
}

// Err returns all of it as an error.
func (v *Verdict) Err() error {
	var errs []error
	for _, kind := range []struct {
		what string
		all  []string
	}{{"lost", v.Lost}, {"applied twice", v.Twice}, {"an error", v.Failed}} {
		for i, s := range kind.all {
			if i == maxComplaints {
				errs = append(errs, fmt.Errorf("and %d more of these", len(kind.all)-i))
				break
			}
			errs = append(errs, fmt.Errorf("%s: %s", kind.what, s))
		}
	}
	return errors.Join(errs...)
}

const maxComplaints = 10

// Check compares the logs of all clients with what is in dir, which is seen through a new
// mount when all clients have ended.
func Check(dir string, calls []Call) (*Verdict, error) {
	there, err := scan(dir)
	if err != nil {
		return nil, err
	}
	v := &Verdict{}
	for i := range calls {
		c := &calls[i]
		if c.ok() {
			v.Promises++
		}
		if c.Err != "" {
			v.Failed = append(v.Failed, fmt.Sprintf("%s: %s %s: %s", c.Client, c.Op, c.Name, c.Err))
		}
	}
	names := slices.DeleteFunc(slices.Clone(calls), func(c Call) bool { return c.Op == Lock || c.Op == Unlock })
	v.checkFiles(there, names)
	v.checkRefusals(names)
	v.checkOwners(calls)
	return v, nil
}

// scan returns the names in a directory, and the IDs that their files hold.
func scan(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	there := map[string]string{}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		there[e.Name()] = string(content)
	}
	return there, nil
}

// life is where a file may be.
type life struct {
	places map[string]bool // "" is nowhere
	last   string          // what was promised last, in words
	began  int64           // when that was called
	since  int64           // when it was answered
	// empty are names under which it may be without content: its creation was not
	// answered.
	empty map[string]bool
}

// checkFiles follows each file through its life.
func (v *Verdict) checkFiles(there map[string]string, calls []Call) {
	lives := map[string]*life{}
	for i := range calls {
		c := &calls[i]
		l := lives[c.ID]
		if l == nil {
			l = &life{places: map[string]bool{"": true}, empty: map[string]bool{}}
			lives[c.ID] = l
		}
		l.apply(c)
	}
	at := map[string][]string{}
	for name, id := range there {
		at[id] = append(at[id], name)
	}
	for _, id := range slices.Sorted(maps.Keys(lives)) {
		v.checkLife(id, lives[id], at[id], calls)
	}
	for name, id := range there {
		if lives[id] == nil && !mayBeEmpty(lives, name, id) {
			v.Lost = append(v.Lost, fmt.Sprintf("%s holds %q, which nobody has written there", name, id))
		}
	}
}

func mayBeEmpty(lives map[string]*life, name, content string) bool {
	if content != "" {
		return false
	}
	for _, l := range lives {
		if l.empty[name] {
			return true
		}
	}
	return false
}

// apply adds what a call may have changed.
func (l *life) apply(c *Call) {
	after := map[Op]string{Create: c.Name, Rename: c.To, Remove: ""}[c.Op]
	switch {
	case c.Answered != 0 && (c.Taken || c.Err != ""): // it has not happened
	case c.Answered != 0:
		l.places, l.began, l.since = map[string]bool{after: true}, c.At, c.Answered
		l.last = fmt.Sprintf("%s was answered", strings.TrimSpace(fmt.Sprint(c.Op, " ", c.Name, " ", c.To)))
	default:
		l.places[after] = true
		l.empty[c.Name] = c.Op == Create
	}
}

func (v *Verdict) checkLife(id string, l *life, at []string, calls []Call) {
	slices.Sort(at)
	twice := l.takenBy(id, calls)
	switch {
	case len(at) == 0 && !l.places[""] && twice != nil:
		v.Twice = append(v.Twice, fmt.Sprintf("%s, but the file %s is not there: %s %s of %s, under way then, was carried out again and took it, or that answer was of the file of somebody else", l.last, id, twice.Op, twice.Name, twice.Client))
	case len(at) > 1:
		v.Twice = append(v.Twice, fmt.Sprintf("the file %s is there as %s", id, strings.Join(at, " and as ")))
	case len(at) == 0 && !l.places[""]:
		v.Lost = append(v.Lost, fmt.Sprintf("%s, but the file %s is not there", l.last, id))
	case len(at) == 1 && !l.places[at[0]]:
		v.Lost = append(v.Lost, fmt.Sprintf("%s, but the file %s is there as %s", l.last, id, at[0]))
	}
}

// checkRefusals looks for a name that is said to exist already, though nobody else ever makes
// it: the call that made it was carried out again.
func (v *Verdict) checkRefusals(calls []Call) {
	makers := map[string]map[string]bool{} // IDs for each name
	for i := range calls {
		name := calls[i].Name
		if calls[i].Op == Rename {
			name = calls[i].To
		} else if calls[i].Op != Create {
			continue
		}
		if makers[name] == nil {
			makers[name] = map[string]bool{}
		}
		makers[name][calls[i].ID] = true
	}
	for i := range calls {
		if c := &calls[i]; c.Op == Create && c.Taken && len(makers[c.Name]) == 1 {
			v.Twice = append(v.Twice, fmt.Sprintf("create %s of %s, which took %.1f s, was answered with \"it exists\", and nobody else makes that", c.Name, c.Client, float64(c.Answered-c.At)/1e9))
		}
	}
}

// takenBy returns a call for another file under the same name that was under way while the
// last promise was made: if that was true, the call had been carried out, and if the file is
// not there, it was carried out again.
func (l *life) takenBy(id string, calls []Call) *Call {
	for i := range calls {
		c := &calls[i]
		if c.ID != id && c.Op != Create && l.places[c.Name] && c.At < l.since && (c.Answered == 0 || c.Answered > l.began) {
			return c
		}
	}
	return nil
}

// tenure is a time in which somebody certainly had something that only one can have.
type tenure struct {
	id       string
	from, to int64
}

// checkOwners looks whether two had the same name, or lock, at a time: from the answer to
// the call that got it, to the call that let go of it.
func (v *Verdict) checkOwners(calls []Call) {
	all := map[string][]tenure{}
	for i := range calls {
		c := &calls[i]
		if (c.Op == Create || c.Op == Lock) && c.ok() {
			all[c.Name] = append(all[c.Name], tenure{c.ID, c.Answered, end(calls, c)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		ts := all[name]
		slices.SortFunc(ts, func(a, b tenure) int { return int(a.from - b.from) })
		for i := 1; i < len(ts); i++ {
			if a, b := ts[i-1], ts[i]; a.id != b.id && b.from < a.to {
				v.Twice = append(v.Twice, fmt.Sprintf("%s was given to %s, and to %s while it had it", name, a.id, b.id))
			}
		}
	}
}

// end returns when the owner has begun to let go of what c got. A client that died without
// doing so lets go at its last call.
func end(calls []Call, c *Call) int64 {
	last := c.Answered
	for i := range calls {
		d := &calls[i]
		if d.Client != c.Client || d.N <= c.N {
			continue
		}
		if d.ID == c.ID && d.Name == c.Name {
			return d.At
		}
		last = max(last, d.At)
	}
	return last
}
