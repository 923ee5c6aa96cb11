package nfsserver

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"loopnfs/internal/fslog"
)

// A reply journal is a file of keptReplies records, each in a block of its own, written
// round and round:
//
//	CRC-32C | sequence number + 1 | ended | undone | boot | time | key | names | port | length | kind | reply, or intent
//	   4    |         8           |   8   |   8    |  8   |  8   | 36  | 2 * 8 |   4  |   2    |  2   |
//
// all in big endian. Ended is a sequence number: the calls of all records before that one
// have ended, and changed what they were to. Undone has a bit for each of the 64 records
// before, the lowest for the last: those did not. Boot, if not 0, says that the record is
// worth nothing after another boot, as what it tells of may be lost; a server that finds one
// of another boot erases it, and one that promises more than its writer syncs first. A length of 0 says that
// the client of that address and port has all its replies. A record that was not written
// whole is as if it were not there. It fills no more than a sector, so that one that takes
// the place of another is there, or the other is.
//
// Time is that of the journal: seconds in which there was a server. It goes on where the
// last one stopped, so it does not matter what the clock of its host said, nor for how long
// nobody served, which two hosts cannot tell, and in which clients wait. One more record
// behind the others says what time it is, so that an idle server lets replies grow old.
const (
	journalName    = "replies"
	journalVersion = 2
	journalHead    = 4 + 8 + 8 + 8 + 8 + 8 + 36 + 2*8 + 4 + 2 + 2
	journalRec     = 512
	journalBlock   = 4096 // the largest sector of a disk
	journalLen     = (keptReplies + 1) * journalBlock
	// journalAge is for how long a reply is heeded: so long before a server ends, and so
	// long after the next has started. Then another client may have come to the same XID.
	journalAge = 10 * time.Minute
	// journalTick is how often the time is written, while there are such replies.
	journalTick = time.Minute
	// journalBufs is how many records are written at once without memory being made.
	journalBufs = 32
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
	boot  uint64 // of the machine
	// direct says that a record is at the disk when it is written. What is done after
	// that and synced, in that file system, has the record synced before.
	direct bool
	// holds, if not nil, is Config.Holds: nothing is written any more when it is over.
	holds func() bool
	// progress, if not nil, returns the number before which all calls have ended.
	progress func() uint64

	bufs spares[[]byte] // blocks that direct I/O can be done from

	unsynced bool                      // there are replies to calls that were not synced
	settled  uint64                    // of all calls before that number it was decided at the start
	base     int64                     // the time at the start, in s
	since    atomic.Pointer[time.Time] // when that was
	newest   atomic.Int64              // time of a record
	quit     chan struct{}             // closed by close
	ticking  sync.WaitGroup

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
	j := &replyJournal{f: f, async: async, boot: thisBoot(), direct: direct, noise: noise, quit: make(chan struct{})}
	began := time.Now()
	j.since.Store(&began)
	j.cond.L = &j.mu
	j.bufs = newSpares(journalBufs, func() []byte { return alignedBlocks(1) })
	if err := j.prepare(); err != nil {
		f.Close()
		return nil, fmt.Errorf("nfsserver: %s: %w", name, err)
	}
	return j, nil
}

// openDirect opens a file past the kernel's cache, unless it is better not to, or that would
// not mean what it is done for.
func openDirect(name string, buffered bool) (f *os.File, direct bool, err error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	if f, err = os.OpenFile(name, flags, 0o600); err != nil || buffered || !ordersDirect(f) {
		return f, false, err
	}
	d, err := os.OpenFile(name, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		return f, false, nil
	}
	return d, true, errors.Join(err, f.Close())
}

// ordersDirect reports whether direct I/O to f is done in place, without the kernel's cache,
// and the file system has one log for all changes, and flushes the disk before it writes to
// that: then whatever is logged later is on stable storage later.
func ordersDirect(f *os.File) bool {
	if fslog.Of(int(f.Fd())) == fslog.None {
		return false
	}
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	return err != nil || st.Mask&unix.STATX_DIOALIGN == 0 || st.Dio_mem_align != 0
}

// thisBoot returns a number for this boot of the machine, never 0.
func thisBoot() uint64 {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		id = strconv.AppendInt(nil, time.Now().UnixNano(), 10) // nothing is believed later
	}
	sum := sha256.Sum256(id)
	return binary.BigEndian.Uint64(sum[:]) | 1
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
	if err := j.f.Truncate(0); err != nil {
		return err
	}
	zeros := alignedBlocks(journalChunk)
	for at := int64(0); at < journalLen; at += int64(len(zeros)) {
		if _, err := j.f.WriteAt(zeros[:min(int64(len(zeros)), journalLen-at)], at); err != nil {
			return err
		}
	}
	return j.f.Sync()
}

// journalChunk is how many blocks are read or written at once.
const journalChunk = 32

func (j *replyJournal) close() error {
	if j == nil {
		return nil
	}
	close(j.quit)
	j.ticking.Wait()
	j.mark(j.now())
	return j.f.Close()
}

// journaled is a record as it was found.
type journaled struct {
	seq    uint64
	ended  uint64
	undone uint64
	boot   uint64
	when   int64
	key    dupKey
	names  [2]nameHash // that the call changes, or 0
	port   uint16
	kind   kind
	reply  []byte // or intent
}

// load returns what the last server left, oldest first, and has the time go on from there.
func (j *replyJournal) load() ([]journaled, error) {
	var found []journaled
	var lost []int64
	buf := alignedBlocks(journalChunk)
	for first := int64(0); first <= keptReplies; first += journalChunk {
		b := buf[:min(journalChunk, keptReplies+1-first)*journalBlock]
		if _, err := j.f.ReadAt(b, first*journalBlock); err != nil {
			return nil, err
		}
		for i := range int64(len(b) / journalBlock) {
			r, ok := decodeJournaled(b[i*journalBlock:][:journalRec])
			if !ok {
				continue
			}
			j.base = max(j.base, r.when)
			switch {
			case r.boot != 0 && r.boot != j.boot:
				lost = append(lost, first+i)
			case first+i == keptReplies:
				j.settled = r.ended
			default:
				j.unsynced = j.unsynced || r.boot != 0 && !j.async
				r.reply = bytes.Clone(r.reply)
				found = append(found, r)
				j.newest.Store(max(j.newest.Load(), r.when))
			}
		}
	}
	j.wipe(lost)
	found = slices.DeleteFunc(found, func(r journaled) bool { return j.tooOld(r.when, j.base) })
	slices.SortFunc(found, func(a, b journaled) int { return cmp.Compare(a.seq, b.seq) })
	return found, nil
}

// wipe erases records that are not believed. A server on the host that wrote them would, after
// what this one does.
func (j *replyJournal) wipe(blocks []int64) {
	if len(blocks) == 0 {
		return
	}
	b := j.bufs.take()
	defer j.bufs.put(b)
	clear(b)
	var err error
	for _, block := range blocks {
		if block < keptReplies && err == nil {
			err = j.writeBlock(b, block)
		}
	}
	j.mark(j.base)
	if err = errors.Join(err, j.sync()); err != nil {
		j.noise.warn("replies of another boot are still in the journal", "err", err)
	}
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

// mark writes the time, and which calls have ended.
func (j *replyJournal) mark(now int64) {
	if j.progress != nil {
		j.settled = max(j.settled, j.progress())
	}
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
	b := j.bufs.take()
	defer j.bufs.put(b)
	r.boot = 0
	if j.async {
		r.boot = j.boot
	}
	r.encode(b[:journalRec])
	return j.writeBlock(b, block)
}

// writeBlock writes a block, unless it may be another server's.
func (j *replyJournal) writeBlock(b []byte, block int64) error {
	if j.holds != nil && !j.holds() {
		return errLeaseOver
	}
	_, err := j.f.WriteAt(b, block*journalBlock)
	return err
}

var errLeaseOver = errors.New("the lease is over")

// add writes a record, whose time is now. One that cannot be written is not there for the
// next start, which the operator is told; the call is carried out all the same.
func (j *replyJournal) add(r *journaled) error {
	r.when = j.now()
	j.newest.Store(r.when)
	err := j.put(r, int64(r.seq%keptReplies))
	if err != nil {
		j.noise.warn("a reply is not kept for the next start", "err", err)
	}
	return err
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
func (j *replyJournal) erase(seq uint64) error {
	b := j.bufs.take()
	defer j.bufs.put(b)
	clear(b)
	err := j.writeBlock(b, int64(seq%keptReplies))
	if err != nil {
		j.noise.warn("a call that failed stays announced for the next start", "err", err)
	}
	return err
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
	for _, v := range [...]uint64{r.ended, r.undone, r.boot, uint64(r.when)} {
		p = binary.BigEndian.AppendUint64(p, v)
	}
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
	binary.BigEndian.PutUint32(b, checksum(b))
}

// checksum is that of a record, for this version of the format.
func checksum(b []byte) uint32 {
	return crc32.Update(journalVersion, castagnoli, b[4:journalRec])
}

// decodeJournaled decodes a record, whose reply is borrowed from b; ok is false if it
// is none.
func decodeJournaled(b []byte) (r journaled, ok bool) {
	seq := binary.BigEndian.Uint64(b[4:])
	if seq == 0 || binary.BigEndian.Uint32(b) != checksum(b) {
		return r, false
	}
	r.seq = seq - 1
	p := b[12:]
	var when uint64
	for _, v := range [...]*uint64{&r.ended, &r.undone, &r.boot, &when} {
		*v, p = binary.BigEndian.Uint64(p), p[8:]
	}
	r.when = int64(when)
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
