package linear

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// mix is what the clients of a group do.
type mix struct {
	procs []uint32 // as often as they are called
	dirs  int      // that are always there; the clients use others if they make them
	names string
}

// mixes are: all there is, and files that take the place of others in one directory.
var mixes = []mix{
	{slices.Concat(
		often(10, nfs3.ProcCreate), often(8, nfs3.ProcLookup, nfs3.ProcRename), often(7, nfs3.ProcRemove),
		often(5, nfs3.ProcGetAttr, nfs3.ProcLink), often(4, nfs3.ProcMkdir, nfs3.ProcRmdir), often(2, nfs3.ProcSymlink),
	), roots, "abc"},
	{slices.Concat(
		often(10, nfs3.ProcLookup), often(5, nfs3.ProcRename), often(2, nfs3.ProcCreate),
		often(1, nfs3.ProcLink, nfs3.ProcGetAttr, nfs3.ProcRemove),
	), 1, "ab"},
}

func often(n int, procs ...uint32) []uint32 { return slices.Repeat(procs, n) }

// group is what the clients of a few directories know and have seen.
type group struct {
	mix
	start time.Time

	mu      sync.Mutex
	ids     map[nfs3.FileHandle]id
	objects []seen // by id
	calls   []call
}

type seen struct {
	handle nfs3.FileHandle
	typ    vfs.FileType
}

// call is one call with its reply, and when they were, in nanoseconds from the start.
type call struct {
	client     int
	in         input
	out        output
	sent, done int64
}

func newGroup(m mix, dirs [roots]nfs3.FileHandle) *group {
	g := &group{mix: m, start: time.Now(), ids: map[nfs3.FileHandle]id{}}
	for _, h := range dirs {
		g.number(h, vfs.TypeDirectory)
	}
	return g
}

// number returns the number of an object.
func (g *group) number(h nfs3.FileHandle, typ vfs.FileType) id {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, known := g.ids[h]
	if !known {
		n = id(len(g.objects))
		g.ids[h] = n
		g.objects = append(g.objects, seen{h, typ})
	}
	return n
}

func (g *group) handle(n id) nfs3.FileHandle {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.objects[n].handle
}

// pick returns one of the objects seen last, a directory or anything else.
func (g *group) pick(r *rand.Rand, dir bool) (id, bool) {
	const last = 5
	g.mu.Lock()
	defer g.mu.Unlock()
	var found []id
	for n, o := range slices.Backward(g.objects) {
		if (o.typ == vfs.TypeDirectory) == dir && n >= roots && len(found) < last {
			found = append(found, id(n))
		}
	}
	if len(found) == 0 {
		return 0, false
	}
	return found[r.IntN(len(found))], true
}

func (g *group) record(c call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, c)
}

func (g *group) now() int64 { return int64(time.Since(g.start)) }

// client makes calls, each when the one before is answered.
type client struct {
	*group
	number int
	addr   string
	r      *rand.Rand
	xid    uint32
	// resend has it send a call again if the connection ends, cut has it end the
	// connection itself now and then, repeat has it send answered calls again.
	resend, cut, repeat bool
	// patience is how long it waits for a reply before it sends the call again; 0 is as
	// long as the connection lives, or CallLimit.
	patience time.Duration
	// fresh, if not 0, is for how many calls of its group an answered call may be sent
	// again.
	fresh    int
	last     exchange
	answered []exchange // newest last

	nc, old net.Conn // old is one that was given up, but not closed
}

func newClient(g *group, number int, addr string, r *rand.Rand) *client {
	// All clients have the same address: their XIDs have to differ.
	return &client{group: g, number: number, addr: addr, r: r, xid: uint32(number)<<24 | r.Uint32N(1<<16)}
}

func (c *client) close() {
	for _, nc := range []net.Conn{c.nc, c.old} {
		if nc != nil {
			nc.Close()
		}
	}
}

// exchange is a call and its reply, as they were sent.
type exchange struct {
	call, reply []byte
	at          int // how many calls its group had made
}

// saysLess reports whether a reply has the same status as another, and otherwise leaves
// something out. Of what was made it may tell the handle, which comes first.
func saysLess(reply, than []byte) bool {
	told := binary.BigEndian.Uint32(reply[statusEnd:]) != 0 // no attributes come first then
	end := statusEnd
	if told {
		end += 4 + 4 + int(binary.BigEndian.Uint32(reply[statusEnd+4:]))
	}
	return len(reply) < len(than) && bytes.Equal(reply[:end], than[:end])
}

// statusEnd is where the status in a reply ends: all before it has its fixed place.
const statusEnd = 6*4 + 4

// maxAnswered is how many calls a client may send again: much less than the server keeps.
const maxAnswered = 40

// sendAgain sends an answered call again, and wants the same reply, or from another server
// one that has less to say.
func (c *client) sendAgain() error {
	x := c.answered[c.r.IntN(len(c.answered))]
	reply, err := c.exchange(x.call)
	if err == nil && !bytes.Equal(reply, x.reply) && !saysLess(reply, x.reply) {
		err = fmt.Errorf("the same call was answered with\n%x, and then with\n%x", x.reply, reply)
	}
	return err
}

// step makes one call and takes down what came of it. After NFS3ERR_JUKEBOX it makes
// another: Linux says that memory is short if a handle is opened of a file that is gone
// while another one is made with its inode number (iget_locked).
func (c *client) step() error {
	c.dropOld()
	if c.repeat && len(c.answered) > 0 && c.r.IntN(10) == 0 {
		if err := c.sendAgain(); err != nil {
			return fmt.Errorf("client %d: %w", c.number, err)
		}
	}
	in := c.choose()
	sent := c.now()
	out, err := c.do(&in)
	for limit := time.Now().Add(rawnfs.CallLimit); err == nil && out.status == nfs3.StatusJukebox && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
		out, err = c.do(&in)
	}
	if err != nil {
		return fmt.Errorf("client %d: %v: %w", c.number, &in, err)
	}
	if in.changes() && out.status == nfs3.StatusOK { // the next server knows no other replies
		c.answered = append(c.answered, c.last)
		c.answered = c.answered[max(0, len(c.answered)-maxAnswered):]
	}
	c.record(call{client: c.number, in: in, out: out, sent: sent, done: c.now()})
	return nil
}

// made returns how many calls the group has made.
func (g *group) made() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.calls)
}

// dropOld forgets answered calls whose replies the server may not have any more.
func (c *client) dropOld() {
	if c.fresh == 0 {
		return
	}
	made := c.made()
	c.answered = slices.DeleteFunc(c.answered, func(x exchange) bool { return made-x.at > c.fresh })
}

func (c *client) choose() input {
	in := input{proc: c.procs[c.r.IntN(len(c.procs))], from: c.place(), at: c.place()}
	switch in.proc {
	case nfs3.ProcCreate:
		in.how = vfs.CreateMode(c.r.IntN(3))
		if in.how == vfs.Exclusive {
			in.verf = byte(1 + c.r.IntN(2))
		}
	case nfs3.ProcLink, nfs3.ProcGetAttr:
		var ok bool
		if in.obj, ok = c.pick(c.r, in.proc == nfs3.ProcGetAttr && c.r.IntN(4) == 0); !ok {
			in.proc = nfs3.ProcLookup
		}
	}
	return in
}

func (c *client) place() place {
	p := place{id(c.r.IntN(c.dirs)), c.names[c.r.IntN(len(c.names))]}
	if c.r.IntN(5) == 0 {
		if dir, ok := c.pick(c.r, true); ok {
			p.dir = dir
		}
	}
	return p
}

func (c *client) where(p place) nfs3.DirOpArgs {
	return nfs3.DirOpArgs{Dir: c.handle(p.dir), Name: []byte{p.name}}
}

// do makes a call.
func (c *client) do(in *input) (output, error) {
	at := c.where(in.at)
	switch in.proc {
	case nfs3.ProcLookup:
		var res nfs3.LookupResult
		err := c.call(in.proc, &at, &res)
		return c.found(res.Status, nfs3.PostOpFH{Has: true, Handle: res.Handle}, res.Attr), err
	case nfs3.ProcGetAttr:
		return c.getattr(in)
	case nfs3.ProcCreate:
		return c.make(in.proc, &nfs3.CreateArgs{Where: at, How: in.how, Verf: vfs.Verifier{3: in.verf, 7: in.verf}})
	case nfs3.ProcMkdir:
		return c.make(in.proc, &nfs3.MkdirArgs{Where: at})
	case nfs3.ProcSymlink:
		return c.make(in.proc, &nfs3.SymlinkArgs{Where: at, Target: []byte("target")})
	case nfs3.ProcRename:
		var res nfs3.RenameResult
		err := c.call(in.proc, &nfs3.RenameArgs{From: c.where(in.from), To: at}, &res)
		return output{status: res.Status}, err
	case nfs3.ProcLink:
		var res nfs3.LinkResult
		err := c.call(in.proc, &nfs3.LinkArgs{Handle: c.handle(in.obj), To: at}, &res)
		return output{status: res.Status}, err
	}
	var res nfs3.WCCResult
	err := c.call(in.proc, &at, &res)
	return output{status: res.Status}, err
}

func (c *client) getattr(in *input) (output, error) {
	var res nfs3.GetAttrResult
	if err := c.call(in.proc, &nfs3.GetAttrArgs{Handle: c.handle(in.obj)}, &res); err != nil || res.Status != nfs3.StatusOK {
		return output{status: res.Status}, err
	}
	if res.Attr.Type == vfs.TypeDirectory {
		return output{nlink: 1}, nil // the others are those of "." and ".."
	}
	return output{nlink: int(res.Attr.Nlink)}, nil
}

func (c *client) make(proc uint32, args rawnfs.Encoder) (output, error) {
	var res nfs3.CreateResult
	err := c.call(proc, args, &res)
	return c.found(res.Status, res.Handle, res.Attr), err
}

func (c *client) found(status nfs3.Status, h nfs3.PostOpFH, a nfs3.PostOpAttr) output {
	switch {
	case status != nfs3.StatusOK:
		return output{status: status}
	case !h.Has || !a.Has:
		return output{obj: noID}
	}
	return output{obj: c.group.number(h.Handle, a.Attr.Type)}
}

// call makes a call.
func (c *client) call(proc uint32, args rawnfs.Encoder, res rawnfs.Decoder) error {
	c.xid++
	rec := rawnfs.Record(c.xid, nfs3.Program, proc, args, nil)
	reply, err := c.exchange(rec)
	if err != nil {
		return err
	}
	c.last = exchange{rec, reply, c.made()}
	_, err = rawnfs.DecodeReply(reply, c.xid, res)
	return err
}

// exchange sends a call, again and again until it is answered.
func (c *client) exchange(rec []byte) ([]byte, error) {
	for limit := time.Now().Add(rawnfs.CallLimit); ; {
		var reply []byte
		err := c.connect(limit)
		if err == nil {
			reply, err = c.try(rec)
		}
		if err == nil || !c.resend || time.Now().After(limit) {
			return reply, err
		}
		c.giveUp()
	}
}

func (c *client) connect(limit time.Time) (err error) {
	if soon := time.Now().Add(c.patience); c.patience != 0 && soon.Before(limit) {
		limit = soon
	}
	if c.nc == nil {
		if c.nc, err = net.DialTimeout("tcp", c.addr, time.Until(limit)); err != nil {
			c.nc = nil
			time.Sleep(10 * time.Millisecond) // it may have been refused
			return err
		}
	}
	return c.nc.SetDeadline(limit)
}

var errCut = errors.New("the client has cut the connection")

func (c *client) try(rec []byte) ([]byte, error) {
	cut := c.cut && c.r.IntN(4) == 0
	if cut && c.r.IntN(4) == 0 {
		rec = rec[:c.r.IntN(len(rec))]
	}
	if _, err := c.nc.Write(rec); err != nil {
		return nil, err
	}
	if cut {
		time.Sleep(time.Duration(c.r.Int64N(int64(3 * time.Millisecond))))
		return nil, errCut
	}
	reply, err := rawnfs.ReadReply(c.nc)
	if err == nil && c.cut && c.r.IntN(20) == 0 {
		c.giveUp() // which has all it asked for
	}
	return reply, err
}

// giveUp ends the connection: in order, by a reset, or without the server knowing.
func (c *client) giveUp() {
	if c.nc == nil {
		return
	}
	nc := c.nc
	c.nc = nil
	switch c.r.IntN(3) {
	case 0:
		nc, c.old = c.old, nc
	case 1:
		nc.(*net.TCPConn).SetLinger(0)
	}
	if nc != nil {
		nc.Close()
	}
}
