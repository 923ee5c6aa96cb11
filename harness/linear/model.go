package linear

import (
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// id is the number of an object within the history of a group. The objects that clients
// have seen have numbers from 0 on, the directories of the group first. One that nobody is
// known to have seen, as the reply did not tell, has a number below 0.
type id int

// roots is how many directories are always there.
const roots = 2

// noID is the number of nothing.
const noID id = math.MinInt

// place is a name in a directory.
type place struct {
	dir  id
	name byte
}

func (p place) String() string { return fmt.Sprintf("%d/%c", p.dir, p.name) }

// object is what a name stands for.
type object struct {
	id   id
	typ  vfs.FileType
	verf byte // of the EXCLUSIVE CREATE that made it, or 0
}

// input is a call.
type input struct {
	proc     uint32
	how      vfs.CreateMode
	verf     byte
	obj      id // of GETATTR and LINK
	from, at place

	number int // tells calls apart
}

// output is a reply.
type output struct {
	status nfs3.Status
	obj    id // what was made or found
	nlink  int
}

// state is the name space. It does not change; changed ones are copies.
type state struct {
	names map[place]object
}

// apply carries out a call; made is the number of an object that it may make.
func (s state) apply(in *input, made id) (output, state) {
	switch in.proc {
	case nfs3.ProcGetAttr:
		n := s.links(in.obj)
		if n == 0 {
			return output{status: nfs3.StatusStale}, s
		}
		return output{nlink: n}, s
	case nfs3.ProcLink:
		return s.link(in)
	case nfs3.ProcRename:
		return s.rename(in)
	}
	if s.links(in.at.dir) == 0 {
		return output{status: nfs3.StatusStale}, s
	}
	o, exists := s.names[in.at]
	switch in.proc {
	case nfs3.ProcLookup:
		if !exists {
			return output{status: nfs3.StatusNoEnt}, s
		}
		return output{obj: o.id}, s
	case nfs3.ProcRemove, nfs3.ProcRmdir:
		return s.remove(in)
	case nfs3.ProcMkdir:
		return s.make(in, object{made, vfs.TypeDirectory, 0})
	case nfs3.ProcSymlink:
		return s.make(in, object{made, vfs.TypeSymlink, 0})
	}
	again := in.how == vfs.Unchecked || in.how == vfs.Exclusive && o.verf == in.verf
	if exists && o.typ == vfs.TypeRegular && again {
		return output{obj: o.id}, s
	}
	return s.make(in, object{made, vfs.TypeRegular, in.verf})
}

func (s state) make(in *input, o object) (output, state) {
	if _, exists := s.names[in.at]; exists {
		return output{status: nfs3.StatusExist}, s
	}
	if s.links(o.id) > 0 {
		return output{obj: noID}, s // what was replied is not new
	}
	return output{obj: o.id}, s.with(in.at, o)
}

func (s state) remove(in *input) (output, state) {
	o, exists := s.names[in.at]
	isDir := o.typ == vfs.TypeDirectory
	switch {
	case !exists:
		return output{status: nfs3.StatusNoEnt}, s
	case in.proc == nfs3.ProcRemove && isDir:
		return output{status: nfs3.StatusIsDir}, s
	case in.proc == nfs3.ProcRmdir && !isDir:
		return output{status: nfs3.StatusNotDir}, s
	case isDir && !s.empty(o.id):
		return output{status: nfs3.StatusNotEmpty}, s
	}
	return output{}, s.without(in.at)
}

func (s state) link(in *input) (output, state) {
	if s.links(in.at.dir) == 0 {
		return output{status: nfs3.StatusStale}, s
	}
	if s.links(in.obj) == 0 {
		return output{status: nfs3.StatusStale}, s
	}
	if _, exists := s.names[in.at]; exists {
		return output{status: nfs3.StatusExist}, s
	}
	return output{}, s.with(in.at, s.names[s.whereIs(in.obj)])
}

func (s state) rename(in *input) (output, state) {
	if s.links(in.from.dir) == 0 || s.links(in.at.dir) == 0 {
		return output{status: nfs3.StatusStale}, s
	}
	o, exists := s.names[in.from]
	old, over := s.names[in.at]
	isDir, overDir := o.typ == vfs.TypeDirectory, old.typ == vfs.TypeDirectory
	switch {
	case !exists:
		return output{status: nfs3.StatusNoEnt}, s
	case isDir && s.within(in.at.dir, o.id):
		return output{status: nfs3.StatusInval}, s
	case over && overDir && s.within(in.from.dir, old.id):
		return output{status: nfs3.StatusNotEmpty}, s
	case over && o.id == old.id:
		return output{}, s
	case over && isDir && !overDir:
		return output{status: nfs3.StatusNotDir}, s
	case over && !isDir && overDir:
		return output{status: nfs3.StatusIsDir}, s
	case over && overDir && !s.empty(old.id):
		return output{status: nfs3.StatusNotEmpty}, s
	}
	return output{}, s.without(in.from).with(in.at, o)
}

// links returns the number of names of an object; of a directory, 1 if it is there.
func (s state) links(obj id) int {
	if 0 <= obj && obj < roots {
		return 1
	}
	n := 0
	for _, o := range s.names {
		if o.id == obj {
			n++
		}
	}
	return n
}

func (s state) empty(dir id) bool {
	for p := range s.names {
		if p.dir == dir {
			return false
		}
	}
	return true
}

// within reports whether dir is top, or somewhere below it.
func (s state) within(dir, top id) bool {
	for dir != top {
		if 0 <= dir && dir < roots {
			return false
		}
		dir = s.whereIs(dir).dir
	}
	return true
}

// whereIs returns a name of an object that has one.
func (s state) whereIs(obj id) place {
	for p, o := range s.names {
		if o.id == obj {
			return p
		}
	}
	panic("linear: no name has it")
}

func (s state) with(p place, o object) state {
	s.names = maps.Clone(s.names)
	s.names[p] = o
	return s
}

func (s state) without(p place) state {
	s.names = maps.Clone(s.names)
	delete(s.names, p)
	return s
}

// step returns the state after a call, if it can have been answered with out.
func (s state) step(in *input, out *output) (bool, state) {
	made := out.obj
	if made == noID {
		made = id(-1 - in.number)
	}
	got, next := s.apply(in, made)
	if in.makes() && out.obj == noID {
		return got.status == out.status, next
	}
	next, ok := next.agree(&got, out)
	return ok, next
}

// agree reports whether got is what was replied, and returns the state with what that
// tells: the number of an object that was made without anybody knowing.
func (s state) agree(got, out *output) (state, bool) {
	switch {
	case got.obj >= 0 || out.obj < 0:
		return s, *got == *out
	case got.status != out.status || s.links(out.obj) > 0:
		return s, false
	}
	return s.rebind(got.obj, out.obj), true
}

func (s state) rebind(unknown, known id) state {
	s.names = maps.Clone(s.names)
	for p, o := range s.names {
		if o.id == unknown {
			o.id = known
			s.names[p] = o
		}
		if p.dir == unknown {
			delete(s.names, p)
			s.names[place{known, p.name}] = o
		}
	}
	return s
}

func (s state) equal(t state) bool { return maps.Equal(s.names, t.names) }

var hashSeed = maphash.MakeSeed()

func (s state) hash() (h uint64) {
	for p, o := range s.names {
		h += maphash.Comparable(hashSeed, p) ^ 3*maphash.Comparable(hashSeed, o)
	}
	return h
}

func (s state) String() string {
	var parts []string
	for p, o := range s.names {
		parts = append(parts, fmt.Sprintf("%v=%d", p, o.id))
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

var hows = [...]string{vfs.Unchecked: "unchecked", vfs.Guarded: "guarded", vfs.Exclusive: "exclusive"}

func (in *input) String() string {
	name := nfs3.ProcName(in.proc)
	switch in.proc {
	case nfs3.ProcGetAttr:
		return fmt.Sprintf("%s %d", name, in.obj)
	case nfs3.ProcLink:
		return fmt.Sprintf("%s %d %v", name, in.obj, in.at)
	case nfs3.ProcRename:
		return fmt.Sprintf("%s %v %v", name, in.from, in.at)
	case nfs3.ProcCreate:
		if in.how == vfs.Exclusive {
			return fmt.Sprintf("%s exclusive(%d) %v", name, in.verf, in.at)
		}
		return fmt.Sprintf("%s %s %v", name, hows[in.how], in.at)
	}
	return fmt.Sprintf("%s %v", name, in.at)
}

// describe says what a call was, and what came of it.
func describe(in *input, out *output) string {
	switch {
	case out.status != nfs3.StatusOK:
		return fmt.Sprintf("%v: %v", in, out.status)
	case in.proc == nfs3.ProcGetAttr:
		return fmt.Sprintf("%v: nlink %d", in, out.nlink)
	case in.makes() || in.proc == nfs3.ProcLookup:
		return fmt.Sprintf("%v: %d", in, out.obj)
	}
	return in.String() + ": done"
}

// makes reports whether a reply has the handle of something new.
func (in *input) makes() bool {
	return in.proc == nfs3.ProcCreate || in.proc == nfs3.ProcMkdir || in.proc == nfs3.ProcSymlink
}

// changes reports whether carrying it out twice is not the same as once.
func (in *input) changes() bool { return in.proc != nfs3.ProcGetAttr && in.proc != nfs3.ProcLookup }

// model is the name space for porcupine.
var model = porcupine.Model{
	Init: func() any { return state{names: map[place]object{}} },
	Step: func(s, in, out any) (bool, any) {
		ok, next := s.(state).step(in.(*input), out.(*output))
		return ok, next
	},
	Equal:             func(a, b any) bool { return a.(state).equal(b.(state)) },
	Hash:              func(s any) uint64 { return s.(state).hash() },
	DescribeOperation: func(in, out any) string { return describe(in.(*input), out.(*output)) },
	DescribeState:     func(s any) string { return s.(state).String() },
}
