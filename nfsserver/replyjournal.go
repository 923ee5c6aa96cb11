package nfsserver

import (
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

	"golang.org/x/sys/unix"
)

// A reply journal is a file of keptReplies records, written round and round:
//
//	CRC-32C of the rest | sequence number + 1 | time | key | port | length | reply from its XID on
//	         4          |         8           |  8   | 36  |  4   |   4    |       maxKept
//
// all in big endian. A length of 0 says that the client of that address and port has all
// its replies. A record that was not written whole is as if it were not there.
//
// Time is that of the journal: seconds in which there was a server. It goes on where the
// last one stopped, so it does not matter what the clock of its host said, nor for how long
// nobody served, which two hosts cannot tell, and in which clients wait. One more record
// behind the others says what time it is, so that an idle server lets replies grow old.
const (
	journalName = "replies"
	journalHead = 4 + 8 + 8 + 36 + 4 + 4
	journalRec  = 512
	journalLen  = (keptReplies + 1) * journalRec
	// journalAge is for how long a reply is heeded: so long before a server ends, and so
	// long after the next has started. Then another client may have come to the same XID.
	journalAge = 10 * time.Minute
	// journalTick is how often the time is written, while there are such replies.
	journalTick = time.Minute
)

// replyJournal keeps replies for the next server.
type replyJournal struct {
	f     *os.File
	noise *throttledLog
	// async leaves it to the kernel when a reply is on the disk.
	async bool

	bufs sync.Pool // of *[journalRec]byte

	base    atomic.Int64  // the time at the start, in s
	since   time.Time     // when that was
	newest  atomic.Int64  // time of a record
	quit    chan struct{} // closed by close
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
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("nfsserver: replies for the next start: %w", err)
	}
	j := &replyJournal{f: f, async: async, noise: noise, since: time.Now(), quit: make(chan struct{})}
	j.cond.L = &j.mu
	j.bufs.New = func() any { return new([journalRec]byte) }
	if err := j.prepare(); err != nil {
		f.Close()
		return nil, fmt.Errorf("nfsserver: %s: %w", name, err)
	}
	return j, nil
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
	has := min(st.Size(), journalLen)
	if _, err := j.f.WriteAt(make([]byte, journalLen-has), has); err != nil {
		return err
	}
	return errors.Join(j.f.Truncate(journalLen), j.f.Sync())
}

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
	when  int64
	key   dupKey
	port  uint16
	reply []byte
}

// load returns what the last server left, oldest first, and has the time go on from there.
func (j *replyJournal) load() ([]journaled, error) {
	all := make([]byte, journalLen)
	if _, err := j.f.ReadAt(all, 0); err != nil {
		return nil, err
	}
	var found []journaled
	for rec := range slices.Chunk(all[:keptReplies*journalRec], journalRec) {
		if r, ok := decodeJournaled(rec); ok {
			found = append(found, r)
			j.newest.Store(max(j.newest.Load(), r.when))
		}
	}
	base := j.newest.Load()
	if mark, ok := decodeJournaled(all[keptReplies*journalRec:]); ok {
		base = max(base, mark.when)
	}
	j.ticking.Go(j.keepTime)
	found = slices.DeleteFunc(found, func(r journaled) bool { return j.tooOld(r.when, base) })
	j.base.Store(base)
	slices.SortFunc(found, func(a, b journaled) int { return cmp.Compare(a.seq, b.seq) })
	return found, nil
}

// now returns the time.
func (j *replyJournal) now() int64 { return j.base.Load() + int64(time.Since(j.since)/time.Second) }

// tooOld reports whether a reply of that time is not heeded any more at now.
func (j *replyJournal) tooOld(when, now int64) bool {
	return now-when > int64(journalAge/time.Second)
}

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
	b := j.bufs.Get().(*[journalRec]byte)
	defer j.bufs.Put(b)
	mark := journaled{when: now}
	mark.encode(b)
	if _, err := j.f.WriteAt(b[:], keptReplies*journalRec); err != nil {
		j.noise.warn("the age of replies is not kept for the next start", "err", err)
	}
}

// write puts a reply on stable storage, sooner or later if it is empty or j is async.
// One that cannot be written is lost at the next start, which the operator is told; the
// call was carried out all the same.
func (j *replyJournal) write(r *journaled) {
	b := j.bufs.Get().(*[journalRec]byte)
	defer j.bufs.Put(b)
	r.when = j.now()
	j.newest.Store(r.when)
	r.encode(b)
	_, err := j.f.WriteAt(b[:], int64(r.seq%keptReplies)*journalRec)
	if err == nil && len(r.reply) > 0 && !j.async {
		err = j.sync()
	}
	if err != nil {
		j.noise.warn("a reply is not kept for the next start", "err", err)
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

func (r *journaled) encode(b *[journalRec]byte) {
	clear(b[:])
	p := binary.BigEndian.AppendUint64(b[:4], r.seq+1) // a file of zeros has no records
	p = binary.BigEndian.AppendUint64(p, uint64(r.when))
	p = append(p, r.key.addr[:]...)
	for _, v := range [...]uint32{
		r.key.xid, r.key.proc, r.key.uid, r.key.args, r.key.sum, uint32(r.port), uint32(len(r.reply)),
	} {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	copy(b[len(p):], r.reply)
	binary.BigEndian.PutUint32(b[:], crc32.Checksum(b[4:], castagnoli))
}

// decodeJournaled decodes a record, whose reply is borrowed from b; ok is false if it
// is none.
func decodeJournaled(b []byte) (r journaled, ok bool) {
	seq := binary.BigEndian.Uint64(b[4:])
	if seq == 0 || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:journalRec], castagnoli) {
		return r, false
	}
	r.seq, r.when = seq-1, int64(binary.BigEndian.Uint64(b[12:]))
	p := b[20:]
	copy(r.key.addr[:], p)
	p = p[len(r.key.addr):]
	var port, n uint32
	for _, v := range [...]*uint32{&r.key.xid, &r.key.proc, &r.key.uid, &r.key.args, &r.key.sum, &port, &n} {
		*v, p = binary.BigEndian.Uint32(p), p[4:]
	}
	if n > maxKept || n > 0 && n < successHeader+4 {
		return r, false
	}
	r.port, r.reply = uint16(port), p[:n]
	return r, true
}
