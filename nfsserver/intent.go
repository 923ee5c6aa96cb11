package nfsserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// An intent is what a call is about to do to a name. It is in the journal before that is
// done, so that the next server can tell whether it was: a REMOVE that is carried out again
// would take what somebody else has made meanwhile.
type intent struct {
	dir  []byte // file handle of its directory
	name []byte
	// was is the file system's handle of what the name stood for; empty: nothing.
	was []byte
	// whole says that it was to be done in one step.
	whole bool
}

// maxIntent is the size in bytes of the largest: flags, and three times a length and so
// many bytes.
const maxIntent = 1 + 3 + nfs3.MaxHandle + nfs3.MaxName + nfs3.MaxHandle

// append appends i to b.
func (i *intent) append(b []byte) []byte {
	flags := byte(0)
	if i.whole {
		flags = 1
	}
	b = append(b, flags)
	for _, part := range [...][]byte{i.dir, i.name, i.was} {
		b = append(append(b, byte(len(part))), part...)
	}
	return b
}

// decodeIntent decodes what append made; the parts are borrowed from b.
func decodeIntent(b []byte) (i intent, ok bool) {
	if len(b) == 0 {
		return i, false
	}
	i.whole = b[0] != 0
	b = b[1:]
	for _, part := range [...]*[]byte{&i.dir, &i.name, &i.was} {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return i, false
		}
		end := 1 + int(b[0])
		*part, b = b[1:end], b[end:]
	}
	return i, len(b) == 0
}

// nameHash stands for a name in a directory; 0 for none.
type nameHash uint64

func hashName(dir, name []byte) nameHash {
	var b [1 + nfs3.MaxHandle + nfs3.MaxName]byte
	b[0] = byte(len(dir))
	n := 1 + copy(b[1:], dir)
	n += copy(b[n:], name)
	sum := sha256.Sum256(b[:n])
	return nameHash(binary.BigEndian.Uint64(sum[:]) | 1)
}

// changed are the names that a call changes.
type changed struct {
	intent
	handle [nfs3.MaxHandle]byte // what intent.dir is borrowed from
	dirs   [2]vfs.NodeID        // the directories of the names
	n      int
}

// changes says that the call changes a name in dir. The first is the one that it makes or
// takes away. It is borrowed.
func (r *request) changes(dir vfs.NodeID, name *nfs3.DirOpArgs) {
	if r.op.Witness == nil {
		return
	}
	c := &r.changed
	if c.n == 0 {
		c.intent = intent{dir: c.handle[:copy(c.handle[:], name.Dir.Bytes())], name: name.Name}
	}
	c.dirs[c.n], r.dup.names[c.n] = dir, hashName(name.Dir.Bytes(), name.Name)
	c.n++
}

// Before implements vfs.Witness: what is about to be done goes into the journal.
func (r *request) Before(was []byte, whole bool) error {
	d := r.srv.dups
	if d.othersChange(r.dup) {
		// What they have done is seen here, and must not be lost if this is not.
		if err := r.sync(r.changed.dirs[:r.changed.n]...); err != nil {
			return err
		}
	}
	r.changed.was, r.changed.whole = was, whole
	d.announce(r.dup, &r.changed.intent, r.exp.sharesDisk)
	if r.srv.cfg.Holds != nil && !r.srv.cfg.Holds() {
		return vfs.ErrJukebox // nobody will see it; the disk may have taken its time
	}
	return nil
}

// Undone implements vfs.Witness.
func (r *request) Undone() { r.srv.dups.retract(r.dup) }

// records counts those of the journal. Guarded by drc.mu.
type records struct {
	next   uint64            // number of the next one
	ended  uint64            // all calls announced before this number have ended
	open   [keptReplies]bool // those that have not, by number
	undone [keptReplies]bool // those that have, and changed nothing
	names  map[nameHash]int  // how many that are open change a name
}

// number returns that of a new record. A call that is still under way when all records
// after its own were used is not waited for: its record is gone.
func (n *records) number() uint64 {
	seq := n.next
	n.next++
	n.open[seq%keptReplies], n.undone[seq%keptReplies] = false, false
	n.ended = max(n.ended, n.next-min(n.next, keptReplies))
	return seq
}

// has reports whether no other record has taken the place of that one.
func (n *records) has(seq uint64) bool { return n.next-seq <= keptReplies }

// advance moves ended past what has ended.
func (n *records) advance() {
	for n.ended < n.next && !n.open[n.ended%keptReplies] {
		n.ended++
	}
}

// begin makes a record that is open.
func (n *records) begin(names *[2]nameHash) (seq uint64) {
	seq = n.number()
	n.open[seq%keptReplies] = true
	for _, h := range names {
		if h != 0 {
			n.names[h]++
		}
	}
	return seq
}

// end closes a record; undone says that nothing was changed. If it is the last one, its
// number is free again: who may do nothing does not take the place of others.
func (n *records) end(seq uint64, names *[2]nameHash, undone bool) {
	for _, h := range names {
		if n.names[h]--; n.names[h] <= 0 {
			delete(n.names, h)
		}
	}
	if n.has(seq) {
		n.open[seq%keptReplies], n.undone[seq%keptReplies] = false, undone
	}
	if undone && seq == n.next-1 {
		n.next--
		n.ended = min(n.ended, n.next)
	}
	n.advance()
}

// before returns which of the 64 records before that one were undone.
func (n *records) before(seq uint64) (mask uint64) {
	for i := range min(seq, 64) {
		if n.undone[(seq-1-i)%keptReplies] {
			mask |= 1 << i
		}
	}
	return mask
}

// allEnded returns the number before which all calls have ended.
func (d *drc) allEnded() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.records.ended
}

// othersChange reports whether a call that is under way has announced a change of a name
// that e changes.
func (d *drc) othersChange(e *dupEntry) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.records.names[e.names[0]] > 0 || d.records.names[e.names[1]] > 0
}

// announce records what the call of e is about to do. same says that it does that in the
// file system of the journal.
func (d *drc) announce(e *dupEntry, i *intent, same bool) {
	d.mu.Lock()
	e.announced, e.seq = true, d.records.begin(&e.names)
	e.ordered = same && d.journal.direct
	r := journaled{
		seq: e.seq, ended: d.records.ended, undone: d.records.before(e.seq),
		key: e.key, names: e.names, port: e.from.port, kind: kindIntent,
	}
	d.mu.Unlock()
	var b [maxIntent]byte
	r.reply = i.append(b[:0])
	if d.journal.add(&r) != nil {
		d.closes(e, true) // the reply may be recorded
	}
}

// retract takes announce back: nothing was done, or nothing that was promised. If the
// journal cannot say so, the record stays open.
func (d *drc) retract(e *dupEntry) {
	if !e.announced {
		return
	}
	d.mu.Lock()
	there := d.records.has(e.seq)
	d.mu.Unlock()
	if there && d.journal.erase(e.seq) != nil {
		e.announced, e.ordered = false, false
		return
	}
	d.closes(e, true)
}

// closes says that the call of e, which was announced, has ended.
func (d *drc) closes(e *dupEntry, undone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records.end(e.seq, &e.names, undone)
	e.announced, e.ordered = false, false
}

// past tells what the last server has done.
type past interface {
	// outcome returns the reply to a call that it had announced, or nil if it was not
	// carried out. ended says that it was: the record says so, or a later call has changed
	// one of its names, which had to wait for this one. Otherwise nobody has changed them
	// since.
	outcome(r *journaled, ended bool) []byte
	// makeStable puts what it has done on stable storage, if this server promises that.
	makeStable()
}

// settle decides about the intents that the last server left, and returns all replies. It
// is for good: later, when others have changed the same names, nobody could tell. found is
// in the order of numbers.
func (d *drc) settle(found []journaled, past past) []journaled {
	changed, undone := map[nameHash]bool{}, map[uint64]bool{}
	unsettled, ended := 0, d.journal.settled
	d.records.names, d.records.next = map[nameHash]int{}, ended
	for _, r := range found {
		ended = max(ended, r.ended)
		d.records.next = max(d.records.next, r.seq+1)
		for mask := r.undone; mask != 0; mask &= mask - 1 {
			undone[r.seq-1-uint64(bits.TrailingZeros64(mask))] = true
		}
	}
	d.records.ended = d.records.next
	for k := len(found) - 1; k >= 0; k-- {
		r := &found[k]
		if r.kind == kindIntent {
			if r.seq >= ended {
				unsettled++
			}
			if undone[r.seq] {
				r.reply, r.names = nil, [2]nameHash{}
			} else {
				r.reply = past.outcome(r, r.seq < ended || changed[r.names[0]] || changed[r.names[1]])
			}
			if r.reply == nil {
				_ = d.journal.erase(r.seq)
			}
		}
		for _, h := range r.names {
			changed[h] = h != 0
		}
	}
	if unsettled > 0 || d.journal.unsynced {
		past.makeStable()
		d.journal.decided(d.records.next)
	}
	return slices.DeleteFunc(found, func(r journaled) bool { return r.reply == nil })
}

// outcome implements past.
func (s *Server) outcome(r *journaled, ended bool) []byte {
	i, ok := decodeIntent(r.reply)
	if !ok {
		return nil
	}
	var res nfs3.CreateResult
	if !ended {
		now, attr, err := s.standsFor(&i)
		if err != nil {
			s.noise.warn("what became of a call of the last server cannot be told: it is carried out when it is sent again", "err", err)
		}
		if err != nil || !i.done(now) {
			return nil
		}
		if len(now) > 0 {
			res.Handle.Handle, res.Handle.Has = nfs3.MakeHandle(slices.Concat(i.dir[:handlePrefix], now))
			res.Attr.Set(&attr)
		}
	}
	var e xdr.Encoder
	sunrpc.ReplySuccess(&e, r.key.xid)
	switch r.key.proc {
	case nfs3.ProcRename:
		(&nfs3.RenameResult{}).Encode(&e)
	case nfs3.ProcLink:
		(&nfs3.LinkResult{}).Encode(&e)
	case nfs3.ProcRemove, nfs3.ProcRmdir:
		(&nfs3.WCCResult{}).Encode(&e)
	default:
		res.Encode(&e)
	}
	return e.Buf
}

// makeStable implements past. Who killed the last server may have kept it from that.
func (s *Server) makeStable() {
	if s.cfg.AsyncMetadata {
		return
	}
	for _, x := range s.exports.Load().list {
		if err := x.syncAll(); err != nil {
			s.noise.warn("what the last server has changed may not be on stable storage", "export", x.Name, "err", err)
		}
	}
}

// syncAll puts all changes in the export on stable storage, if its file system can.
func (x *export) syncAll() error {
	if a, ok := x.FS.(vfs.Announcer); ok {
		return a.SyncAll()
	}
	return nil
}

// done reports whether what was intended was done, if the name stands for now.
func (i *intent) done(now []byte) bool {
	if len(i.was) > 0 {
		return !bytes.Equal(now, i.was)
	}
	return len(now) > 0 && i.whole
}

// standsFor returns the file system's handle of what the name of i stands for, and its
// attributes; the handle is empty if there is nothing.
func (s *Server) standsFor(i *intent) (now []byte, attr vfs.Attr, err error) {
	if len(i.dir) < handlePrefix {
		return nil, attr, vfs.ErrBadHandle
	}
	x, err := s.exports.Load().ofHandle(binary.BigEndian.Uint32(i.dir))
	if err != nil {
		return nil, attr, err
	}
	if x.stater == nil {
		return nil, attr, errors.ErrUnsupported
	}
	var op vfs.Op
	dir, err := x.FS.ByHandle(&op, i.dir[handlePrefix:])
	if err == nil {
		defer x.FS.Forget(dir, 1)
		now, err = x.stater.StatEntry(&op, dir, string(i.name), &attr, nil)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, vfs.ErrStale) {
		return nil, attr, nil
	}
	return now, attr, err
}
