package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// namesWorker changes a directory of its own, and sizes of files in it, one call after
// the other, and knows what it looks like after each.
type namesWorker struct {
	disk *disk
	c    *rawnfs.Client
	dir  nfs3.FileHandle
	// sent and done are points in the record, states the directory after each call
	// that changed it; the first state is the one before all of them. calls are these.
	sent, done []int
	states     []state
	calls      [][]byte
}

type state map[string]object

// object is what a name stands for.
type object struct {
	handle nfs3.FileHandle
	typ    vfs.FileType
	size   uint64 // of a file
	mode   uint32 // of a file or directory
}

// String shows as much of a handle as tells one from another.
func (o object) String() string {
	return fmt.Sprintf("%v %x %#o %d bytes", o.typ, crc32.ChecksumIEEE(o.handle.Bytes()), o.mode, o.size)
}

var names = []string{"a", "b", "c", "d", "e", "f", "g", "h"}

func newNamesWorker(d *disk, c *rawnfs.Client, dir nfs3.FileHandle, name string) (*namesWorker, error) {
	h, err := c.Mkdir(dir, name)
	return &namesWorker{disk: d, c: c, dir: h, states: []state{{}}}, err
}

func (w *namesWorker) at(name string) nfs3.DirOpArgs {
	return nfs3.DirOpArgs{Dir: w.dir, Name: []byte(name)}
}

// step makes one change that is possible.
func (w *namesWorker) step(r *rand.Rand) error {
	now := w.states[len(w.states)-1]
	name := names[r.IntN(len(names))]
	o, exists := now[name]
	next := maps.Clone(now)
	w.sent = append(w.sent, w.disk.now())
	var err error
	switch {
	case !exists:
		next[name], err = w.make(r, now, name)
	case r.IntN(3) == 0 && o.typ == vfs.TypeRegular:
		o.size = uint64(r.IntN(20000))
		next.setSize(o)
		err = w.change(nfs3.ProcSetAttr, &nfs3.SetAttrArgs{Handle: o.handle, Set: vfs.SetAttr{SetSize: true, Size: o.size}})
	case r.IntN(2) == 0:
		err = w.rename(r, next, name)
	default:
		delete(next, name)
		proc := uint32(nfs3.ProcRemove)
		if o.typ == vfs.TypeDirectory {
			proc = nfs3.ProcRmdir
		}
		err = w.change(proc, &nfs3.RemoveArgs{Dir: w.dir, Name: []byte(name)})
	}
	w.done, w.states, w.calls = append(w.done, w.disk.now()), append(w.states, next), append(w.calls, w.c.Sent)
	return err
}

// setSize gives all names of o its size.
func (s state) setSize(o object) {
	for name, p := range s {
		if p.handle == o.handle {
			s[name] = o
		}
	}
}

func (w *namesWorker) make(r *rand.Rand, now state, name string) (object, error) {
	for _, other := range slices.Sorted(maps.Keys(now)) {
		if o := now[other]; o.typ == vfs.TypeRegular && r.IntN(4) == 0 {
			var res nfs3.LinkResult
			_, err := w.c.Call(nfs3.ProcLink, &nfs3.LinkArgs{Handle: o.handle, To: w.at(name)}, nil, &res)
			return o, asError("LINK", res.Status, err)
		}
	}
	var res nfs3.CreateResult
	var err error
	set := vfs.SetAttr{SetMode: true, Mode: []uint32{0o600, 0o644, 0o755}[r.IntN(3)]}
	o := object{mode: set.Mode}
	o.typ = []vfs.FileType{vfs.TypeRegular, vfs.TypeRegular, vfs.TypeDirectory, vfs.TypeSymlink, vfs.TypeFIFO}[r.IntN(5)]
	switch o.typ {
	case vfs.TypeRegular:
		how := []vfs.CreateMode{vfs.Unchecked, vfs.Guarded, vfs.Exclusive}[r.IntN(3)]
		if how == vfs.Exclusive {
			o.mode = 0
		}
		_, err = w.c.Call(nfs3.ProcCreate, &nfs3.CreateArgs{Where: w.at(name), How: how, Set: set, Verf: vfs.Verifier{byte(r.Uint32()), 1}}, nil, &res)
	case vfs.TypeDirectory:
		_, err = w.c.Call(nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: w.at(name), Set: set}, nil, &res)
	case vfs.TypeSymlink:
		o.mode = 0
		_, err = w.c.Call(nfs3.ProcSymlink, &nfs3.SymlinkArgs{Where: w.at(name), Target: []byte("target")}, nil, &res)
	default:
		o.mode = 0
		_, err = w.c.Call(nfs3.ProcMknod, &nfs3.MknodArgs{Where: w.at(name), Type: o.typ}, nil, &res)
	}
	o.handle = res.Handle.Handle
	return o, asError("make "+name, res.Status, err)
}

// rename moves name over another one, or to a free one.
func (w *namesWorker) rename(r *rand.Rand, next state, name string) error {
	to := names[r.IntN(len(names))]
	o, over := next[name], next[to]
	if over.typ != 0 && (over.typ == vfs.TypeDirectory) != (o.typ == vfs.TypeDirectory) {
		to = name
	}
	if over.handle != o.handle || over.typ == 0 { // two names of one file both stay
		delete(next, name)
		next[to] = o
	}
	var res nfs3.RenameResult
	_, err := w.c.Call(nfs3.ProcRename, &nfs3.RenameArgs{From: w.at(name), To: w.at(to)}, nil, &res)
	return asError("RENAME", res.Status, err)
}

func (w *namesWorker) change(proc uint32, args rawnfs.Encoder) error {
	var res nfs3.WCCResult
	_, err := w.c.Call(proc, args, nil, &res)
	return asError(nfs3.ProcName(proc), res.Status, err)
}

func asError(what string, st nfs3.Status, err error) error {
	if err == nil && st != nfs3.StatusOK {
		err = errors.New(st.String())
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// check finds the directory as it was after the last call that was answered, or after
// the one that was in progress.
func (w *namesWorker) check(c *rawnfs.Client, crash int) error {
	answered, _ := slices.BinarySearch(w.done, crash+1)
	sent, _ := slices.BinarySearch(w.sent, crash+1)
	is, err := w.look(c)
	if err != nil {
		return err
	}
	for i, s := range w.states[answered : max(answered, sent)+1] {
		if maps.Equal(s, is) {
			return w.sendAgain(c, answered+i, max(answered, sent), is)
		}
	}
	return fmt.Errorf("after call %d of %d that were sent\nthere is %v,\nbut was  %v", answered, sent, is, w.states[answered])
}

// sendAgain sends the last call again, whose reply its client may not have heard. If it was
// carried out, it is not carried out again; and in the end it was.
func (w *namesWorker) sendAgain(c *rawnfs.Client, carriedOut, last int, is state) error {
	if last == 0 || carriedOut < last-1 {
		return nil
	}
	reply, err := c.Exchange(w.calls[last-1])
	if err != nil {
		return err
	}
	var st nfs3.Status
	_, err = rawnfs.DecodeReply(reply, binary.BigEndian.Uint32(w.calls[last-1][4:]), statusOnly{&st})
	if err = asError("sent again", st, err); err != nil {
		return fmt.Errorf("call %d, carried out before: %v: %w", last, carriedOut == last, err)
	}
	now, err := w.look(c)
	if err == nil && carriedOut == last && !maps.Equal(now, is) {
		err = fmt.Errorf("call %d was sent again and carried out again:\nthere is %v,\nbut was  %v", last, now, is)
	}
	return err
}

// statusOnly decodes the status that all results begin with.
type statusOnly struct{ *nfs3.Status }

func (s statusOnly) Decode(d *xdr.Decoder) error {
	*s.Status = nfs3.Status(d.Uint32())
	return nil
}

// look returns what there is, with the attributes that the handles of then lead to.
func (w *namesWorker) look(c *rawnfs.Client) (state, error) {
	is := state{}
	for _, name := range names {
		found, err := c.Lookup(w.dir, name)
		switch {
		case err != nil:
			return nil, err
		case found.Status == nfs3.StatusNoEnt:
			continue
		case found.Status != nfs3.StatusOK:
			return nil, fmt.Errorf("LOOKUP %s: %v", name, found.Status)
		}
		at, err := c.GetAttr(found.Handle)
		if err != nil || at.Status != nfs3.StatusOK {
			return nil, fmt.Errorf("GETATTR %s: %v, %w", name, at.Status, err)
		}
		o := object{handle: found.Handle, typ: at.Attr.Type}
		if o.typ == vfs.TypeRegular {
			o.size = at.Attr.Size
		}
		if o.typ == vfs.TypeRegular || o.typ == vfs.TypeDirectory {
			o.mode = at.Attr.Mode
		}
		is[name] = o
	}
	return is, nil
}
