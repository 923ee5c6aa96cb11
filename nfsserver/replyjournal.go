package nfsserver

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A reply journal is a file of keptReplies records, each in a block of its own, written
// round and round:
//
//	CRC-32C of the rest | sequence number + 1 | ended | time | key | names | port | length | kind | reply, or intent
//	         4          |         8           |   8   |  8   | 36  | 2 * 8 |   4  |   2    |  2   |
//
// all in big endian. Ended is a sequence number: the calls of all records before that one
// have been carried out. A length of 0 says that the client of that address and port has all
// its replies. A record that was not written whole is as if it were not there. It fills no
// more than a sector, so that one that takes the place of another is there, or the other is.
//
// Time is that of the journal: seconds in which there was a server. It goes on where the
// last one stopped, so it does not matter what the clock of its host said, nor for how long
// nobody served, which two hosts cannot tell, and in which clients wait. One more record
// behind the others says what time it is, so that an idle server lets replies grow old.
const (
	journalName  = "replies"
	journalHead  = 4 + 8 + 8 + 8 + 36 + 2*8 + 4 + 2 + 2
	journalRec   = 512
	journalBlock = 4096 // the largest sector of a disk
	journalLen   = (keptReplies + 1) * journalBlock
	// journalAge is for how long a reply is heeded: so long before a server ends, and so
	// long after the next has started. Then another client may have come to the same XID.
	journalAge = 10 * time.Minute
	// journalTick is how often the time is written, while there are such replies.
	journalTick = time.Minute
)

// kind is what a record holds.
type kind uint16

const (
	kindReply kind = iota
	kindIntent
)

// replyJournal keeps replies for the next server.
type replyJournal struct {
	f     *os.File
	noise *throttledLog
	// async leaves it to the kernel when a record is on the disk.
	async bool
	// direct says that a record is at the disk when it is written. What is done after
	// that and synced, on that disk, has the record synced before.
	direct bool

	bufs sync.Pool // of []byte, a block that direct I/O can be done from

	settled uint64                    // of all calls before that number it was decided at the start
	base    int64                     // the time at the start, in s
	since   atomic.Pointer[time.Time] // when that was
	newest  atomic.Int64              // time of a record
	quit    chan struct{}             // closed by close
	ticking sync.WaitGroup

	// Those who write at the same time share a sync.
	mu             sync.Mutex
	cond           sync.Cond
	running        bool
	started, ended uint64 // syncs
	err            error  // of the last
}

// openJournal opens the journal in dir, for this server alone, and makes it if it is
// not there.
func openJournal(dir string, async bool, noise *throttledLog) (*replyJournal, error) {
	name := dir + "/" + journalName
	f, direct, err := openDirect(name, async)
	if err != nil {
		return nil, fmt.Errorf("nfsserver: replies for the next start: %w", err)
	}
	j := &replyJournal{f: f, async: async, direct: direct, noise: noise, quit: make(chan struct{})}
	began := time.Now()
	j.since.Store(&began)
	j.cond.L = &j.mu
	j.bufs.New = func() any { b := alignedBlocks(1); return &b }
	if err := j.prepare(); err != nil {
		f.Close()
		return nil, fmt.Errorf("nfsserver: %s: %w", name, err)
	}
	return j, nil
}

// openDirect opens a file past the kernel's cache if it can, unless it is better not to.
func openDirect(name string, buffered bool) (f *os.File, direct bool, err error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	if !buffered {
		if f, err = os.OpenFile(name, flags|unix.O_DIRECT, 0o600); !errors.Is(err, unix.EINVAL) {
			return f, true, err
		}
	}
	f, err = os.OpenFile(name, flags, 0o600)
	return f, false, err
}

// alignedBlocks returns zeros for n blocks, where direct I/O wants them.
func alignedBlocks(n int) []byte {
	b := make([]byte, (n+1)*journalBlock)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (journalBlock - 1)
	return b[skip : skip+n*journalBlock : skip+n*journalBlock]
}

// prepare locks the file and gives it all its blocks.
func (j *replyJournal) prepare() error {
	err := unix.Flock(int(j.f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return fmt.Errorf("another server uses it: give each its own directory for state (%w)", err)
	}
	if err != nil {
		return fmt.Errorf("cannot lock it: %w", err)
	}
	st, err := j.f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil || st.Size() == journalLen {
		return err
	}
	return errors.Join(j.f.Truncate(journalLen), j.clear(st.Size()/journalBlock), j.f.Sync())
}

// clear writes zeros to all blocks from that number on.
func (j *replyJournal) clear(from int64) error {
	zeros := alignedBlocks(journalChunk)
	for end := int64(keptReplies + 1); from < end; from += journalChunk {
		n := min(journalChunk, end-from) * journalBlock
		if _, err := j.f.WriteAt(zeros[:n], from*journalBlock); err != nil {
			return err
		}
	}
	return nil
}

// journalChunk is how many blocks are read or written at once.
const journalChunk = 32

func (j *replyJournal) close() error {
	if j == nil {
		return nil
	}
	close(j.quit)
	j.ticking.Wait()
	j.tick()
	return j.f.Close()
}

// journaled is a record as it was found.
type journaled struct {
	seq   uint64
	ended uint64
	when  int64
	key   dupKey
	names [2]nameHash // that the call changes, or 0
	port  uint16
	kind  kind
	reply []byte // or intent
}

// load returns what the last server left, oldest first, and has the time go on from there.
func (j *replyJournal) load() ([]journaled, error) {
	var found []journaled
	buf := alignedBlocks(journalChunk)
	for at := int64(0); at < journalLen; at += int64(len(buf)) {
		n, err := j.f.ReadAt(buf[:min(int64(len(buf)), journalLen-at)], at)
		if err != nil {
			return nil, err
		}
		for i := 0; i < n; i += journalBlock {
			r, ok := decodeJournaled(buf[i : i+journalRec])
			if !ok {
				continue
			}
			j.base = max(j.base, r.when)
			if at+int64(i) == keptReplies*journalBlock {
				j.settled = r.ended
				break
			}
			r.reply = bytes.Clone(r.reply)
			found = append(found, r)
			j.newest.Store(max(j.newest.Load(), r.when))
		}
	}
	found = slices.DeleteFunc(found, func(r journaled) bool { return j.tooOld(r.when, j.base) })
	slices.SortFunc(found, func(a, b journaled) int { return cmp.Compare(a.seq, b.seq) })
	return found, nil
}

// now returns the time.
func (j *replyJournal) now() int64 { return j.base + int64(time.Since(*j.since.Load())/time.Second) }

// tooOld reports whether a reply of that time is not heeded any more at now.
func (j *replyJournal) tooOld(when, now int64) bool {
	return now-when > int64(journalAge/time.Second)
}

// start has the time go on.
func (j *replyJournal) start() { j.ticking.Go(j.keepTime) }

// keepTime writes the time now and then, until the journal is closed.
func (j *replyJournal) keepTime() {
	t := time.NewTicker(journalTick)
	defer t.Stop()
	for {
		select {
		case <-j.quit:
			return
		case <-t.C:
			j.tick()
		}
	}
}

// tick writes the time, if replies grow old by it. It is not worth a sync.
func (j *replyJournal) tick() {
	now := j.now()
	if j.newest.Load() == 0 || j.tooOld(j.newest.Load(), now-2*int64(journalTick/time.Second)) {
		return
	}
	j.mark(now)
}

// mark writes the time, and what was decided.
func (j *replyJournal) mark(now int64) {
	r := journaled{when: now, ended: j.settled}
	if err := j.put(&r, keptReplies); err != nil {
		j.noise.warn("the age of replies is not kept for the next start", "err", err)
	}
}

// decided says that the calls before that number were carried out, but for those that were
// erased.
func (j *replyJournal) decided(ended uint64) {
	j.flush()
	j.settled = ended
	j.mark(j.base)
	j.flush()
}

// put writes a record to a block.
func (j *replyJournal) put(r *journaled, block int64) error {
	b := j.bufs.Get().(*[]byte)
	defer j.bufs.Put(b)
	r.encode((*b)[:journalRec])
	_, err := j.f.WriteAt(*b, block*journalBlock)
	return err
}

// write puts a record on stable storage if stable is set and j is not async, and sooner
// or later otherwise. One that cannot be written is lost at the next start, which the
// operator is told; the call is carried out all the same.
func (j *replyJournal) write(r *journaled, stable bool) {
	r.when = j.now()
	j.newest.Store(r.when)
	if err := j.put(r, int64(r.seq%keptReplies)); err != nil {
		j.noise.warn("a reply is not kept for the next start", "err", err)
	}
	if stable {
		j.flush()
	}
}

// flush puts the records that were written on stable storage, unless j is async.
func (j *replyJournal) flush() {
	if j.async {
		return
	}
	if err := j.sync(); err != nil {
		j.noise.warn("a reply is not kept for the next start", "err", err)
	}
}

// erase makes a record one that was never there.
func (j *replyJournal) erase(seq uint64) {
	b := j.bufs.Get().(*[]byte)
	defer j.bufs.Put(b)
	clear(*b)
	if _, err := j.f.WriteAt(*b, int64(seq%keptReplies)*journalBlock); err != nil {
		j.noise.warn("a call that failed stays announced for the next start", "err", err)
	}
}

// sync makes sure that a sync which starts after now has ended.
func (j *replyJournal) sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for mine := j.started + 1; j.ended < mine; {
		if j.running {
			j.cond.Wait()
			continue
		}
		j.running = true
		j.started++
		j.mu.Unlock()
		err := unix.Fdatasync(int(j.f.Fd()))
		for err == unix.EINTR { // by the runtime's signals, on FUSE
			err = unix.Fdatasync(int(j.f.Fd()))
		}
		j.mu.Lock()
		j.running, j.ended, j.err = false, j.started, err
		j.cond.Broadcast()
	}
	return j.err
}

// encode writes r to b, of journalRec bytes.
func (r *journaled) encode(b []byte) {
	clear(b)
	p := binary.BigEndian.AppendUint64(b[:4], r.seq+1) // a file of zeros has no records
	p = binary.BigEndian.AppendUint64(p, r.ended)
	p = binary.BigEndian.AppendUint64(p, uint64(r.when))
	p = append(p, r.key.addr[:]...)
	for _, v := range [...]uint32{r.key.xid, r.key.proc, r.key.uid, r.key.args, r.key.sum} {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	for _, h := range r.names {
		p = binary.BigEndian.AppendUint64(p, uint64(h))
	}
	p = binary.BigEndian.AppendUint32(p, uint32(r.port))
	p = binary.BigEndian.AppendUint16(p, uint16(len(r.reply)))
	p = binary.BigEndian.AppendUint16(p, uint16(r.kind))
	copy(b[len(p):], r.reply)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
}

// decodeJournaled decodes a record, whose reply is borrowed from b; ok is false if it
// is none.
func decodeJournaled(b []byte) (r journaled, ok bool) {
	seq := binary.BigEndian.Uint64(b[4:])
	if seq == 0 || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:journalRec], castagnoli) {
		return r, false
	}
	r.seq, r.ended, r.when = seq-1, binary.BigEndian.Uint64(b[12:]), int64(binary.BigEndian.Uint64(b[20:]))
	p := b[28:]
	copy(r.key.addr[:], p)
	p = p[len(r.key.addr):]
	for _, v := range [...]*uint32{&r.key.xid, &r.key.proc, &r.key.uid, &r.key.args, &r.key.sum} {
		*v, p = binary.BigEndian.Uint32(p), p[4:]
	}
	for i := range r.names {
		r.names[i], p = nameHash(binary.BigEndian.Uint64(p)), p[8:]
	}
	r.port, r.kind = uint16(binary.BigEndian.Uint32(p)), kind(binary.BigEndian.Uint16(p[6:]))
	n := int(binary.BigEndian.Uint16(p[4:]))
	switch {
	case r.kind == kindReply && (n > maxKept || n > 0 && n < successHeader+4):
	case r.kind == kindIntent && n > maxIntent:
	case r.kind > kindIntent:
	default:
		r.reply = p[8 : 8+n]
		return r, true
	}
	return r, false
}
