package nfsserver

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/waitfor"
)

const (
	// keptReplies is how many replies the duplicate request cache keeps.
	keptReplies = 2048
	// maxKept is the size in bytes of the largest reply that is kept: CREATE.
	maxKept = 320
)

// dupKey tells calls apart (struct nfsd_cacherep).
type dupKey struct {
	addr      [16]byte
	xid, proc uint32
	uid       uint32
	args, sum uint32 // length and checksum of the arguments, without WRITE's data
}

func keyOf(r *request) dupKey {
	args := r.dec.Rest()
	return dupKey{
		addr: r.conn.peer.Addr().As16(), xid: r.call.XID, proc: r.call.Proc, uid: r.call.Cred.Sys.UID,
		args: uint32(len(args)), sum: crc32.Checksum(args, castagnoli),
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (k *dupKey) hash() uint32 {
	return (k.xid ^ k.sum ^ binary.LittleEndian.Uint32(k.addr[12:])) * 0x9e3779b1
}

// dupEntry is a call that is being carried out, or was.
type dupEntry struct {
	key dupKey
	// port is that of the client, conn its connection. A client that has to connect
	// again may get another port, so it is compared only if delivered is set: the
	// client closed the connection when it had all its replies. Whoever calls from
	// another port then is somebody else, unless the connection is older: the client
	// gave that up before, and what is left in it is read late.
	port      uint16
	delivered bool
	conn      uint64
	// next and prev link the entries of a bucket.
	next, prev *dupEntry
	// owner carries the call out; nil once reply is there.
	owner *request
	// waiting are calls like it, linked by request.next, that get the same reply.
	waiting *request
	n       int
	reply   [maxKept]byte // from the XID on
}

// drc is the duplicate request cache (RFC 1813 §4.3, nfsd_cache_lookup): a call
// that is sent again, because its client heard nothing, is not carried out again.
// It gets the reply of the first one, which it waits for without a worker. Of WRITE
// only that is remembered which is being carried out, so that a late one does not
// overwrite what came after: once it is done, it may be done again.
type drc struct {
	journal *replyJournal // nil: the replies are gone with the process

	mu      sync.Mutex
	buckets []*dupEntry
	free    *dupEntry // by next
	kept    [keptReplies]*dupEntry
	seq     uint64 // replies kept so far; the oldest is at seq % keptReplies
}

// newDRC returns a cache with the replies of the server before this one.
func newDRC(slots int, journal *replyJournal) (*drc, error) {
	d := &drc{journal: journal, buckets: touched[*dupEntry](2 * keptReplies)}
	all := touched[dupEntry](keptReplies + slots)
	for i := range all {
		d.release(&all[i])
	}
	if journal == nil {
		return d, nil
	}
	found, err := journal.load()
	if err != nil {
		return nil, err
	}
	for i := range found {
		d.restore(&found[i])
	}
	return d, nil
}

// restore takes over a reply; each is newer than those before.
func (d *drc) restore(r *journaled) {
	if old := d.find(&r.key); old != nil {
		d.forget(old)
	}
	e := d.insert(&r.key)
	e.n, e.port = copy(e.reply[:], r.reply), r.port
	d.keep(e, r.seq)
	d.seq = r.seq + 1
}

// duplicable reports whether the call must not be carried out twice at once, and
// whether not twice at all.
func (r *request) duplicable() (atOnce, atAll bool) {
	if r.headerErr != nil || r.call.Prog != nfs3.Program || r.call.Vers != nfs3.Version {
		return false, false
	}
	switch r.call.Proc {
	case nfs3.ProcWrite:
		return true, false
	case nfs3.ProcSetAttr, nfs3.ProcCreate, nfs3.ProcMkdir, nfs3.ProcSymlink, nfs3.ProcMknod,
		nfs3.ProcRemove, nfs3.ProcRmdir, nfs3.ProcRename, nfs3.ProcLink:
		return true, true
	}
	return false, false
}

// verdict is what is to be done with a call.
type verdict uint8

const (
	carryOut verdict = iota // and then call end
	answered                // the reply is there
	parked                  // somebody else will answer it; r is not the caller's any more
)

// begin looks for a call like r.
func (d *drc) begin(r *request) verdict {
	if atOnce, _ := r.duplicable(); !atOnce {
		return carryOut
	}
	key := keyOf(r)
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.find(&key)
	if e != nil && e.delivered && e.port != r.conn.peer.Port() && e.conn < r.conn.id {
		d.forget(e)
		e = nil
	}
	switch {
	case e == nil:
		r.dup = d.insert(&key)
		r.dup.owner, r.dup.conn, r.dup.port = r, r.conn.id, r.conn.peer.Port()
		return carryOut
	case e.owner == nil:
		r.answerWith(e.reply[:e.n])
		r.srv.count.duplicates.Add(1)
		return answered
	}
	r.task.Wait("", "the reply to the same call, sent before", 0, e.owner.replyResource())
	r.next, e.waiting = e.waiting, r
	return parked
}

// end keeps the reply of r, which has carried out its call, and answers who waits
// for it. A call that was given up, or is to be sent again, leaves nothing behind:
// one of those who wait carries it out.
func (d *drc) end(r *request) {
	e := r.dup
	if e == nil {
		return
	}
	r.dup = nil
	reply, done := r.finalReply()
	_, keep := r.duplicable()
	keep = keep && done
	var seq uint64
	if keep {
		seq = d.record(e, reply)
	}
	d.mu.Lock()
	waiting := e.waiting
	e.waiting, e.owner = nil, nil
	if keep {
		e.n = copy(e.reply[:], reply)
		d.keep(e, seq)
	} else {
		d.remove(e)
	}
	d.mu.Unlock()
	for waiting != nil {
		w := waiting
		waiting, w.next = w.next, nil
		w.task.Done()
		if !done {
			w.enqueue()
			continue
		}
		w.answerWith(reply)
		r.srv.count.duplicates.Add(1)
		w.reply()
	}
}

// record puts a reply on disk, if there is a journal, and returns its number.
func (d *drc) record(e *dupEntry, reply []byte) uint64 {
	d.mu.Lock()
	seq := d.seq
	d.seq++
	d.mu.Unlock()
	if d.journal != nil {
		d.journal.write(&journaled{seq: seq, when: time.Now().Unix(), key: e.key, port: e.port, reply: reply})
	}
	return seq
}

// keep puts e among those that are kept, and drops the oldest. mu is held.
func (d *drc) keep(e *dupEntry, seq uint64) {
	at := &d.kept[seq%keptReplies]
	if *at != nil {
		d.remove(*at)
	}
	*at = e
}

// forget drops a reply that is kept. mu is held.
func (d *drc) forget(e *dupEntry) {
	d.kept[slices.Index(d.kept[:], e)] = nil
	d.remove(e)
}

// delivered is called when a client has closed a connection in order, with no call
// in progress.
func (d *drc) delivered(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.kept {
		if e != nil && e.conn == c.id {
			e.delivered = true
		}
	}
}

func (d *drc) bucket(k *dupKey) **dupEntry {
	return &d.buckets[k.hash()%uint32(len(d.buckets))]
}

func (d *drc) find(k *dupKey) *dupEntry {
	for e := *d.bucket(k); e != nil; e = e.next {
		if e.key == *k {
			return e
		}
	}
	return nil
}

// insert returns a new entry for k. There is always one: no more calls are carried
// out than there are slots.
func (d *drc) insert(k *dupKey) *dupEntry {
	e := d.free
	d.free = e.next
	b := d.bucket(k)
	e.key, e.prev, e.next = *k, nil, *b
	if e.next != nil {
		e.next.prev = e
	}
	*b = e
	return e
}

func (d *drc) remove(e *dupEntry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		*d.bucket(&e.key) = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	d.release(e)
}

func (d *drc) release(e *dupEntry) {
	e.n, e.conn, e.delivered, e.prev, e.next = 0, 0, false, nil, d.free
	d.free = e
}

// finalReply returns the reply of r from its XID on, and whether it says what came
// of the call: not if the call failed since the client is gone, or is to be sent
// again (NFS3ERR_JUKEBOX).
func (r *request) finalReply() (reply []byte, done bool) {
	if r.accept != sunrpc.Success {
		return nil, false
	}
	reply = r.enc.Buf[r.mark+4:]
	status := nfs3.Status(binary.BigEndian.Uint32(reply[successHeader:]))
	switch {
	case status == nfs3.StatusOK:
		return reply, true
	case status == nfs3.StatusJukebox:
		return reply, false
	}
	select {
	case <-r.conn.done:
		return reply, false
	default:
		return reply, true
	}
}

// successHeader is the size in bytes of the header of a successful reply.
const successHeader = 6 * 4

// answerWith makes reply, from its XID on, that of r.
func (r *request) answerWith(reply []byte) {
	r.startReply()
	r.enc.FixedOpaque(reply)
}

// replyResource is what somebody waits for who waits for the reply of r.
func (r *request) replyResource() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Reply, ID: waitfor.ReplyID(r.conn.peer.Port(), r.call.XID)}
}
