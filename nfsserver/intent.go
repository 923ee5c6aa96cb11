package nfsserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
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
		*part, b = b[1:1+b[0]], b[1+b[0]:]
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

// changes says which names the call changes, the first of which it makes or takes away.
// They are borrowed.
func (r *request) changes(names ...*nfs3.DirOpArgs) {
	if r.op.Witness == nil {
		return
	}
	first := names[0]
	r.intent = intent{dir: first.Dir.Bytes(), name: first.Name}
	for i, n := range names {
		r.dup.names[i] = hashName(n.Dir.Bytes(), n.Name)
	}
}

// Before implements vfs.Witness: what is about to be done goes into the journal.
func (r *request) Before(was []byte, whole bool) error {
	r.intent.was, r.intent.whole = was, whole
	r.srv.dups.announce(r.dup, &r.intent, r.exp.sharesDisk)
	if r.srv.cfg.Holds != nil && !r.srv.cfg.Holds() { // the disk may have taken its time
		r.Undone()
		return vfs.ErrJukebox // nobody will see it
	}
	return nil
}

// Undone implements vfs.Witness.
func (r *request) Undone() { r.srv.dups.retract(r.dup) }

// records counts those of the journal. Guarded by drc.mu.
type records struct {
	next  uint64            // number of the next one
	ended uint64            // all calls announced before this number have ended
	open  [keptReplies]bool // those that have not, by number
}

// number returns that of a new record. A call that is still under way when all records
// after its own were used is not waited for: its record is gone.
func (n *records) number() uint64 {
	seq := n.next
	n.next++
	n.open[seq%keptReplies] = false
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

// announce records what the call of e is about to do. same says that it does that on the
// disk of the journal.
func (d *drc) announce(e *dupEntry, i *intent, same bool) {
	d.mu.Lock()
	e.announced, e.seq = true, d.records.number()
	e.ordered = same && d.journal.direct
	d.records.open[e.seq%keptReplies] = true
	r := journaled{seq: e.seq, ended: d.records.ended, key: e.key, names: e.names, port: e.from.port, kind: kindIntent}
	d.mu.Unlock()
	var b [maxIntent]byte
	r.reply = i.append(b[:0])
	d.journal.write(&r, false)
}

// retract takes announce back: nothing was done, or nothing that was promised.
func (d *drc) retract(e *dupEntry) {
	d.mu.Lock()
	there := d.records.has(e.seq)
	d.mu.Unlock()
	if there {
		d.journal.erase(e.seq)
	}
	d.closes(e)
	e.announced, e.ordered = false, false
}

// closes says that the call of e, which was announced, has ended.
func (d *drc) closes(e *dupEntry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.records.has(e.seq) {
		d.records.open[e.seq%keptReplies] = false
	}
	d.records.advance()
}

// settle decides about the intents that the last server left, and returns all replies. It
// is for good: later, when others have changed the same names, nobody could tell. found is
// in the order of numbers.
func (d *drc) settle(found []journaled, outcome func(r *journaled, ended bool) []byte) []journaled {
	changed := map[nameHash]bool{}
	unsettled, ended := 0, d.journal.settled
	d.records.next = ended
	for _, r := range found {
		ended = max(ended, r.ended)
		d.records.next = max(d.records.next, r.seq+1)
	}
	d.records.ended = d.records.next
	for k := len(found) - 1; k >= 0; k-- {
		r := &found[k]
		if r.kind == kindIntent {
			r.reply = outcome(r, r.seq < ended || changed[r.names[0]] || changed[r.names[1]])
			if r.seq >= ended {
				unsettled++
			}
			if r.reply == nil {
				d.journal.erase(r.seq)
			}
		}
		for _, h := range r.names {
			changed[h] = h != 0
		}
	}
	if unsettled > 0 {
		d.journal.decided(d.records.next)
	}
	return slices.DeleteFunc(found, func(r journaled) bool { return r.reply == nil })
}

// outcome returns the reply to a call that the last server had announced, or nil if it was
// not carried out. ended says that it was: the record says so, or a later call has changed
// one of its names, which had to wait for this one. Otherwise nobody has changed them since.
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
