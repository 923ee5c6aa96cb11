package nfsserver

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/waitfor"
)

const (
	// keptReplies is how many replies the duplicate request cache keeps, keptWrites
	// how many of WRITE besides: they would leave no room for the others.
	keptReplies, keptWrites = 2048, 1024
	// keptLast of the replies that would make room for others are kept longer, as they are
	// among the lastCalls that a connection had: its client may be on its way back, and ask
	// again, while others make thousands of calls in a second.
	keptLast, lastCalls = 2048, 64
	// maxKept is the size in bytes of the largest reply that is kept: CREATE.
	maxKept = 320
)

// dupKey tells calls apart (struct nfsd_cacherep).
type dupKey struct {
	addr      [16]byte // 0: see identity
	xid, proc uint32
	uid       uint32
	args, sum uint32 // length and checksum of the arguments, with the first of WRITE's data
}

// sumData is how much of the data is in the checksum (RC_CSUMLEN).
const sumData = 256

func keyOf(r *request) dupKey {
	args := r.dec.Rest()
	sum := crc32.Checksum(args, castagnoli)
	if r.carries {
		first := r.data.Bufs[0]
		sum = crc32.Update(sum, castagnoli, first[:min(sumData, len(first))])
	}
	return dupKey{
		addr: r.conn.client.addr, xid: r.call.XID, proc: r.call.Proc, uid: r.call.Cred.Sys.UID,
		args: uint32(len(args)), sum: sum,
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// identity returns the address that a client is known by; 0 if it connects from the address
// that it connects to. That moves with the service: before or after, the same client is one
// of another address.
func identity(peer, here netip.Addr) [16]byte {
	if peer == here && !peer.IsLoopback() {
		return [16]byte{}
	}
	return peer.As16()
}

func (k *dupKey) hash() uint32 { return (k.xid ^ k.sum) * 0x9e3779b1 }

// same reports whether both are the same call. Whose it is can be unknown: XID, user, and
// arguments have to do then.
func (k *dupKey) same(other *dupKey) bool {
	o := *other
	if k.addr == ([16]byte{}) || o.addr == ([16]byte{}) {
		o.addr = k.addr
	}
	return *k == o
}

// dupEntry is a call that is being carried out, or was.
type dupEntry struct {
	key dupKey
	// from is where the client sent the call last. A client that has to connect
	// again may get another port, so the port is compared only if the client closed
	// that connection when it had all its replies. Whoever calls from another port
	// then is somebody else.
	from *client
	// next and prev link the entries of a bucket.
	next, prev *dupEntry
	// at is where it is kept.
	at **dupEntry
	// owner carries the call out; nil once reply is there.
	owner *request
	// names are those that it changes. If announced is set, the journal says so in the record
	// of that number; ordered: on stable storage before they are changed there.
	names              [2]nameHash
	announced, ordered bool
	seq                uint64
	// waiting are calls like it, linked by request.next, that get the same reply.
	waiting *request
	call    uint64 // calls of from, up to this one
	n       int
	reply   [maxKept]byte // from the XID on
}

// client is what is known of the client at the other end of a connection. It outlives
// the connection, so it is small.
type client struct {
	id   uint64 // in the order of connecting
	addr [16]byte
	port uint16

	// inflight counts calls whose replies have not begun to be sent, begun the bytes
	// of those that have: more than the socket has taken, perhaps.
	inflight atomic.Int32
	begun    atomic.Uint64

	// Guarded by drc.mu.
	nc        *net.TCPConn // nil once it is closed
	delivered bool         // the client closed it, and has all its replies
	recorded  bool         // some of them are in the journal
	calls     uint64       // how many replies were kept, but for those of WRITE
}

// sending says that a reply of n bytes is about to be sent.
func (c *client) sending(n int) {
	c.begun.Add(uint64(n))
	c.inflight.Add(-1)
}

// hasAll reports whether the client has closed the connection and has all replies
// to its calls. The reader may not have noticed yet. mu is held.
func (c *client) hasAll() bool {
	return c.delivered || c.nc != nil && c.inflight.Load() == 0 && closedAfter(c.nc, c.begun.Load())
}

// isAnother reports whether c is not the client of an earlier call: that had all its
// replies, and c has another port and connected later. What is read from an older
// connection is late, and was left in it. mu is held.
func (c *client) isAnother(earlier *client) bool {
	return c.port != earlier.port && c.id > earlier.id && earlier.hasAll()
}

// closedAfter reports whether the peer of nc has closed it in order, and has
// acknowledged n bytes before that. What comes to one that has closed is not.
func closedAfter(nc *net.TCPConn, n uint64) bool {
	const closeWait = 8 // TCP_CLOSE_WAIT
	raw, err := nc.SyscallConn()
	if err != nil {
		return false
	}
	var info *unix.TCPInfo
	ctlErr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return ctlErr == nil && err == nil && info.State == closeWait && info.Bytes_acked >= n
}

// drc is the duplicate request cache (RFC 1813 §4.3, nfsd_cache_lookup): a call
// that is sent again, because its client heard nothing, is not carried out again.
// It gets the reply of the first one, which it waits for without a worker. So does a
// WRITE: one that is carried out again may be late, and overwrite what came after.
type drc struct {
	journal *replyJournal // nil: the replies are gone with the process

	mu      sync.Mutex
	buckets []*dupEntry
	free    *dupEntry // by next
	kept    [keptReplies]*dupEntry
	seq     uint64 // replies kept so far; the oldest is at seq % keptReplies
	records records
	wrote   [keptWrites]*dupEntry
	last    [keptLast]*dupEntry
	lasts   uint64 // likewise
	writes  uint64 // likewise; of them nothing goes into the journal
}

// newDRC returns a cache with the replies of the server before this one.
func newDRC(slots int, journal *replyJournal, past past) (*drc, error) {
	d := &drc{journal: journal, buckets: touched[*dupEntry](2 * (keptReplies + keptWrites + keptLast))}
	all := touched[dupEntry](keptReplies + keptWrites + keptLast + slots)
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
	for _, r := range d.settle(found, past) {
		d.restore(&r)
	}
	journal.progress = d.allEnded
	journal.start()
	return d, nil
}

// restore takes over a reply; each is newer than those before.
func (d *drc) restore(r *journaled) {
	if len(r.reply) == 0 {
		d.restoreEnd(r)
		return
	}
	if old := d.find(&r.key); old != nil {
		d.forget(old)
	}
	e := d.insert(&r.key)
	e.n, e.from = copy(e.reply[:], r.reply), &client{port: r.port}
	d.keep(e, d.place())
}

// place returns where the next reply is kept. mu is held.
func (d *drc) place() **dupEntry {
	d.seq++
	return &d.kept[d.seq%keptReplies]
}

// restoreEnd takes over that a client has all its replies.
func (d *drc) restoreEnd(r *journaled) {
	for _, e := range d.kept {
		if e != nil && e.key.addr == r.key.addr && e.from.port == r.port {
			e.from.delivered = true
		}
	}
}

// duplicable reports whether the call must not be carried out twice.
func (r *request) duplicable() bool {
	if r.headerErr != nil || r.call.Prog != nfs3.Program || r.call.Vers != nfs3.Version {
		return false
	}
	switch r.call.Proc {
	case nfs3.ProcWrite, nfs3.ProcSetAttr, nfs3.ProcCreate, nfs3.ProcMkdir, nfs3.ProcSymlink, nfs3.ProcMknod,
		nfs3.ProcRemove, nfs3.ProcRmdir, nfs3.ProcRename, nfs3.ProcLink:
		return true
	}
	return false
}

// verdict is what is to be done with a call.
type verdict uint8

const (
	carryOut verdict = iota // and then call end
	answered                // the reply is there
	parked                  // somebody else will answer it; r is not the caller's any more
	dropped                 // the reply to the first is for this one, too
)

// cameFrom says that c has sent the call, too. What is read late may have come on
// a connection that the client gave up.
func (e *dupEntry) cameFrom(c *client) {
	if e.from == nil || c.id > e.from.id {
		e.from, e.call = c, c.calls
	}
}

// outlived reports whether the reply of e is one of the server before, and this one has
// been there for so long that who needs it has asked.
func (d *drc) outlived(e *dupEntry) bool {
	return e.from.id == 0 && d.journal.tooOld(d.journal.base, d.journal.now())
}

// begin looks for a call like r.
func (d *drc) begin(r *request) verdict {
	if !r.duplicable() {
		return carryOut
	}
	key := keyOf(r)
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.find(&key)
	if e != nil && e.owner == nil && (r.conn.client.isAnother(e.from) || d.outlived(e)) {
		d.forget(e)
		e = nil
	}
	switch {
	case e == nil:
		r.dup = d.insert(&key)
		r.dup.owner = r
		r.dup.cameFrom(r.conn.client)
		return carryOut
	case e.owner == nil:
		e.cameFrom(r.conn.client)
		r.answerWith(e.reply[:e.n])
		r.srv.count.duplicates.Add(1)
		return answered
	case e.willReplyOn(r.conn):
		r.srv.count.duplicates.Add(1)
		return dropped
	}
	e.cameFrom(r.conn.client)
	r.waitFor(e.owner)
	r.next, e.waiting = e.waiting, r
	return parked
}

// willReplyOn reports whether a reply to the call will be sent on c. One is enough,
// and there is never more than one slot of c for a call.
func (e *dupEntry) willReplyOn(c *conn) bool {
	for w := e.waiting; w != nil; w = w.next {
		if w.conn == c {
			return true
		}
	}
	return e.owner.conn == c
}

// end keeps the reply of r, which has carried out its call, and answers who waits
// for it. A call that was given up leaves nothing behind: one of those who wait
// carries it out.
func (d *drc) end(r *request) {
	e := r.dup
	if e == nil {
		return
	}
	r.dup = nil
	reply, final := r.finalReply()
	keep := final && r.accept == sunrpc.Success
	var at **dupEntry
	if keep {
		at = d.record(e, reply)
	} else {
		d.retract(e)
	}
	d.mu.Lock()
	waiting := e.waiting
	e.waiting, e.owner = nil, nil
	if keep {
		e.n = copy(e.reply[:], reply)
		d.keep(e, at)
	} else {
		d.remove(e)
	}
	d.mu.Unlock()
	for waiting != nil {
		w := waiting
		waiting, w.next = w.next, nil
		w.waitedFor(r)
		if !final {
			w.enqueue()
			continue
		}
		w.answerWith(reply)
		r.srv.count.duplicates.Add(1)
		w.reply()
	}
}

// record sees to it that the next server knows how a call ended, if there is a journal and
// something was changed, and returns where e is to be kept. What failed may fail again.
func (d *drc) record(e *dupEntry, reply []byte) **dupEntry {
	d.mu.Lock()
	if e.key.proc == nfs3.ProcWrite {
		defer d.mu.Unlock()
		d.writes++
		return &d.wrote[d.writes%keptWrites]
	}
	at := d.place()
	done := d.journal != nil && statusIn(reply) == nfs3.StatusOK
	e.from.recorded = e.from.recorded || done
	r := journaled{key: e.key, port: e.from.port, reply: reply}
	if done && !e.announced {
		r.seq = d.records.number()
	}
	d.mu.Unlock()
	switch {
	case e.announced && !done:
		d.retract(e)
	case e.announced:
		if !e.ordered {
			d.journal.flush()
		}
		d.closes(e, false)
	case done:
		_ = d.journal.add(&r)
		d.journal.flush()
	}
	return at
}

// keep keeps e at a place, and drops what was there, the oldest. mu is held.
func (d *drc) keep(e *dupEntry, at **dupEntry) {
	if e.key.proc != nfs3.ProcWrite {
		e.from.calls++
		e.call = e.from.calls
	}
	old := *at
	*at, e.at = e, at
	switch {
	case old == nil:
	case old.key.proc != nfs3.ProcWrite && old.from.calls-old.call < lastCalls && !old.from.delivered:
		d.keepLonger(old)
	default:
		d.remove(old)
	}
}

// keepLonger keeps e as one of the last calls of its client. mu is held.
func (d *drc) keepLonger(e *dupEntry) {
	d.lasts++
	at := &d.last[d.lasts%keptLast]
	if *at != nil {
		d.remove(*at)
	}
	*at, e.at = e, at
}

// forget drops a reply that is kept. mu is held.
func (d *drc) forget(e *dupEntry) {
	*e.at = nil
	d.remove(e)
}

// ends is called when all replies on a connection were sent, and it is about to be
// closed. The next server must know, too, whether the client has them; that much is
// not worth a sync.
func (d *drc) ends(c *client) {
	d.mu.Lock()
	c.delivered, c.nc = c.hasAll(), nil
	tell := c.delivered && c.recorded
	var seq uint64
	if tell {
		seq = d.records.number()
	}
	d.mu.Unlock()
	if tell {
		_ = d.journal.add(&journaled{seq: seq, key: dupKey{addr: c.addr}, port: c.port})
	}
}

func (d *drc) bucket(k *dupKey) **dupEntry {
	return &d.buckets[k.hash()%uint32(len(d.buckets))]
}

func (d *drc) find(k *dupKey) *dupEntry {
	for e := *d.bucket(k); e != nil; e = e.next {
		if e.key.same(k) {
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
	e.n, e.from, e.at, e.prev, e.next = 0, nil, nil, nil, d.free
	e.announced, e.ordered, e.names = false, false, [2]nameHash{}
	d.free = e
}

// finalReply returns the reply of r from its XID on, and whether it is the answer to
// whoever sent the call: not if the call failed since its client is gone.
func (r *request) finalReply() (reply []byte, final bool) {
	reply = r.enc.Buf[r.mark+4:]
	if r.accept != sunrpc.Success || statusIn(reply) == nfs3.StatusOK {
		return reply, true
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

// statusIn returns the status in a successful reply.
func statusIn(reply []byte) nfs3.Status {
	return nfs3.Status(binary.BigEndian.Uint32(reply[successHeader:]))
}

// answerWith makes reply, from its XID on, that of r.
func (r *request) answerWith(reply []byte) {
	r.startReply()
	r.enc.FixedOpaque(reply)
}

// waitFor says that r waits for the reply to owner. If both are of one port, to the
// wait-for graph their replies are the same, and r would wait for itself.
func (r *request) waitFor(owner *request) {
	res := owner.replyResource()
	if res == r.replyResource() {
		r.task.Release(res)
	}
	r.task.Wait("", "the reply to the same call, sent before", 0, res)
}

// waitedFor takes back waitFor.
func (r *request) waitedFor(owner *request) {
	r.task.Done()
	if res := owner.replyResource(); res == r.replyResource() {
		r.task.Hold(res)
	}
}

// replyResource is what somebody waits for who waits for the reply of r.
func (r *request) replyResource() waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Reply, ID: waitfor.ReplyID(r.conn.peer.Port(), r.call.XID)}
}
