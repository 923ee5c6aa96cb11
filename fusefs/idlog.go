package fusefs

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// The log of an idTable: a header, and records that are only appended.
//
//	header: magic and version  inode number of the root  CRC-32C
//	              8                      8                  4
//	record: CRC-32C  op  type  length of name  number  tag  inode  birth  directory  name
//	           4      1   1          2            8     8     8      8        8
//
// opFile says that a file was seen at a place, and looked so; opGone that its
// handle is never good again. The type has typeUpper if the file is of the upper layer.
const (
	idMagic     = "loopids\x01"
	idHeader    = 8 + 8 + 4
	idFixed     = 8 + 5*8
	opFile      = 1
	opGone      = 2
	typeUpper   = 0x80
	idSyncDelay = time.Second // what LOOKUP has told may be lost with the power for so long
	idSlack     = 1 << 20     // bytes out of date that nobody minds
	maxQueued   = 1 << 20     // bytes that are kept while they cannot be written
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendRecord(b []byte, op byte, r *idRecord, p place) []byte {
	start := len(b)
	typ := byte(r.typ)
	if r.upper {
		typ |= typeUpper
	}
	b = append(b, 0, 0, 0, 0, op, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.name)))
	for _, v := range [...]uint64{r.number, r.tag, r.ino, uint64(r.born), p.dir} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = append(b, p.name...)
	binary.BigEndian.PutUint32(b[start:], crc32.Checksum(b[start+4:], castagnoli))
	return b
}

// size returns how many bytes of the log r needs.
func (r *idRecord) size() (n int64) {
	for i := range r.at {
		n += int64(idFixed + len(r.at[i].name))
	}
	return n
}

// idLog is where an idTable outlives the process. What is put is written in
// order; those who come together share a write, and a sync.
type idLog struct {
	path string
	ino  uint64 // of the root
	log  *slog.Logger
	lock *os.File // keeps other servers away

	queued, written atomic.Int64 // bytes put and in the file, ever; they change with mu held

	mu     sync.Mutex
	cond   sync.Cond
	f      *os.File
	size   int64  // of the file, as far as it is known to be whole
	buf    []byte // put and not written
	spare  []byte
	synced int64
	busy   bool // somebody writes: nobody else touches f
	redo   bool // the kernel may have lost a part: all of it has to be written again
	lost   bool // what was put is not all in the file or in buf: likewise, and before anything else
	failed bool // it was said that it cannot be written
}

// put queues a record. If too many cannot be written it keeps none, for the table has it all.
// The lock of the table is held.
func (l *idLog) put(op byte, r *idRecord, p place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.buf)
	l.buf = appendRecord(l.buf, op, r, p)
	l.queued.Add(int64(len(l.buf) - n))
	if l.failed && len(l.buf) > maxQueued || l.lost {
		l.buf, l.lost = nil, true
	}
}

// write returns when everything that was put before is in the file: it outlives
// the process.
func (l *idLog) write() error {
	upTo := l.queued.Load()
	if l.written.Load() >= upTo {
		return nil
	}
	return l.reach(upTo, false)
}

// sync returns when everything that was put before is on stable storage.
func (l *idLog) sync() error { return l.reach(l.queued.Load(), true) }

// reach writes the log up to upTo, and with sync puts it on stable storage.
func (l *idLog) reach(upTo int64, sync bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.written.Load() < upTo || sync && l.synced < upTo {
		if l.busy {
			l.cond.Wait()
			continue
		}
		if err := l.flush(sync); err != nil {
			l.complain(err)
			return err
		}
		l.failed = false
	}
	return nil
}

// works returns why the log cannot be written, if the last attempt failed and
// another one does, too.
func (l *idLog) works() error {
	l.mu.Lock()
	failed := l.failed
	l.mu.Unlock()
	if !failed {
		return nil
	}
	return l.write()
}

// complain says once that the log cannot be written. mu is held.
func (l *idLog) complain(err error) {
	if !l.failed {
		l.log.Error("cannot write the table of file handles: clients get errors for files that they have not seen yet",
			"file", l.path, "error", err, "remedy", "make room in the state directory, or repair its disk")
	}
	l.failed = true
}

// flush writes what is queued. mu is held, but not meanwhile.
func (l *idLog) flush(sync bool) (err error) {
	if l.lost || l.redo && sync {
		return unix.EIO // until rewrite
	}
	p, end := l.buf, l.queued.Load()
	l.busy, l.buf, l.spare = true, l.spare[:0], nil
	l.mu.Unlock()
	_, err = l.f.WriteAt(p, l.size) // after a failure: over what there is of it
	wrote := err == nil
	if wrote && sync {
		err = unix.Fdatasync(int(l.f.Fd()))
	}
	l.mu.Lock()
	l.busy = false
	l.cond.Broadcast()
	if !wrote {
		l.buf = append(p, l.buf...)
		return err
	}
	l.size += int64(len(p))
	l.spare = p
	l.written.Store(end)
	if err == nil && sync {
		l.synced = end
	}
	l.redo = l.redo || err != nil
	return err
}

// begin keeps others from the file; end lets them. mu is not held.
func (l *idLog) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.busy {
		l.cond.Wait()
	}
	l.busy = true
}

// end takes over f, which holds size bytes and all that was put up to upTo, if
// there is one; if not, held goes back in front of what is queued, of which lost says whether
// it is all.
func (l *idLog) end(f *os.File, size, upTo int64, held []byte, lost bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = false
	l.cond.Broadcast()
	if f == nil {
		l.buf, l.lost = append(held, l.buf...), l.lost || lost
		return
	}
	if l.f != nil {
		l.f.Close()
	}
	l.f, l.size, l.redo = f, size, err != nil
	l.written.Store(upTo)
	if err == nil {
		l.synced = upTo
	}
}

// openTable opens the table of the exported directory that is open as root, whose
// inode number is ino, in the file name of the directory state; if there is none,
// it makes one. copyUp: the file system is an overlay. close ends it.
func openTable(state, name string, root int, ino uint64, copyUp bool, log *slog.Logger) (*idTable, error) {
	t := &idTable{
		root: root, copyUp: copyUp, log: log, limit: maxRecords, most: maxLive, next: rootNumber + 1, tag: randomTag(),
		byNumber: map[uint64]*idRecord{}, byIno: map[uint64]*idRecord{},
		naming: map[uint64]struct{}{}, stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	t.moves.L = &t.mu
	r := &idRecord{number: rootNumber, fileID: fileID{ino: ino, typ: vfs.TypeDirectory}}
	t.byNumber[rootNumber], t.byIno[ino] = r, r
	l := &t.disk
	l.cond.L, l.path, l.ino, l.log = &l.mu, filepath.Join(state, name), ino, log
	err := l.exclude()
	if err == nil {
		err = t.load()
	}
	if err == nil && (l.f == nil || t.wasteful()) {
		err = t.rewrite()
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("cannot use the table of file handles %s: %w", l.path, err)
	}
	go t.tend()
	return t, nil
}

func randomTag() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}

// exclude makes sure that no other server uses the table.
func (l *idLog) exclude() (err error) {
	if l.lock, err = os.OpenFile(l.path+".lock", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err = unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return errors.New("another server uses it, or another export whose directory has the same inode number: " +
			"end that one, or give this one a state directory of its own")
	}
	return err
}

func (l *idLog) close() {
	if l.f != nil {
		l.f.Close()
	}
	if l.lock != nil {
		l.lock.Close()
	}
}

// errDamaged is what all errors of a record wrap that is not as it was written.
var errDamaged = errors.New("damaged")

// load reads the log. What is torn or damaged is cut off, with all that follows; what the disk
// does not read now it may read another time. What is good is on stable storage then.
func (t *idTable) load() error {
	l := &t.disk
	f, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	l.f = f
	in := bufio.NewReaderSize(f, 1<<20)
	var head [idHeader]byte
	if _, err := io.ReadFull(in, head[:]); err != nil || head != l.header() {
		return errors.New("it is damaged, of another directory, or of another version: restore it from a copy, " +
			"or delete it, which makes every file handle of the clients stale")
	}
	l.size = idHeader
	for {
		n, err := t.replay(in)
		l.size += int64(n)
		switch {
		case err == io.EOF:
			return unix.Fdatasync(int(f.Fd()))
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errDamaged):
			return t.cut(err)
		case err != nil:
			return err
		}
	}
}

func (l *idLog) header() (h [idHeader]byte) {
	copy(h[:], idMagic)
	binary.BigEndian.PutUint64(h[8:], l.ino)
	binary.BigEndian.PutUint32(h[16:], crc32.Checksum(h[:16], castagnoli))
	return h
}

// cut drops what cannot be read, from size on.
func (t *idTable) cut(why error) error {
	l := &t.disk
	fi, err := l.f.Stat()
	if err != nil {
		return err
	}
	t.log.Warn("the end of the table of file handles is damaged and was cut off: some file handles of clients are stale",
		"file", l.path, "bytes", fi.Size()-l.size, "error", why)
	return errors.Join(l.f.Truncate(l.size), l.f.Sync())
}

// replay reads one record and returns its size; io.EOF at the end.
func (t *idTable) replay(in *bufio.Reader) (int, error) {
	var b [idFixed + maxName]byte
	if _, err := io.ReadFull(in, b[:idFixed]); err != nil {
		return 0, err
	}
	n := idFixed + int(binary.BigEndian.Uint16(b[6:]))
	if n > len(b) {
		return 0, fmt.Errorf("%w: a name is too long", errDamaged)
	}
	if _, err := io.ReadFull(in, b[idFixed:n]); err == io.EOF {
		return 0, io.ErrUnexpectedEOF
	} else if err != nil {
		return 0, err
	}
	if binary.BigEndian.Uint32(b[:]) != crc32.Checksum(b[4:n], castagnoli) {
		return 0, fmt.Errorf("%w: a checksum is wrong", errDamaged)
	}
	var v [5]uint64
	for i := range v {
		v[i] = binary.BigEndian.Uint64(b[8+8*i:])
	}
	r := idRecord{number: v[0], tag: v[1], upper: b[5]&typeUpper != 0,
		fileID: fileID{ino: v[2], born: int64(v[3]), typ: vfs.FileType(b[5] &^ typeUpper)}}
	return n, t.apply(b[4], &r, place{v[4], string(b[idFixed:n])})
}

// apply carries out a record of the log.
func (t *idTable) apply(op byte, as *idRecord, p place) error {
	r := t.byNumber[as.number]
	switch {
	case as.number == rootNumber:
		return fmt.Errorf("%w: a record of the root", errDamaged)
	case op == opGone:
		if r != nil {
			t.unlink(r)
		}
		return nil
	case op != opFile || checkName(p.name) != nil:
		return fmt.Errorf("%w: a record that means nothing", errDamaged)
	case r == nil && len(t.byNumber) > maxRecords:
		return fmt.Errorf("more than %d files", maxRecords)
	case r == nil:
		r = &idRecord{number: as.number, tag: as.tag, fileID: as.fileID}
		t.byNumber[r.number], t.byIno[r.ino] = r, r
		t.next = max(t.next, r.number+1)
	}
	r.upper = as.upper
	t.place(r, &as.fileID, p)
	return nil
}

// wasteful reports whether more than half of the log is out of date.
func (t *idTable) wasteful() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disk.mu.Lock()
	defer t.disk.mu.Unlock()
	return t.disk.redo || t.disk.lost || t.disk.size > 2*t.live+idSlack
}

// rewrite writes a log without what is out of date in place of the old one.
// Those who want to write wait meanwhile.
func (t *idTable) rewrite() error {
	l := &t.disk
	l.begin()
	t.mu.Lock()
	l.mu.Lock()
	all := t.dump()
	held, lost, upTo := l.buf, l.lost, l.queued.Load()
	l.buf, l.lost = nil, false
	l.mu.Unlock()
	t.mu.Unlock()
	f, err := replace(l.path, all)
	l.end(f, int64(len(all)), upTo, held, lost, err)
	return err
}

// dump returns the whole log. mu is held.
func (t *idTable) dump() []byte {
	head := t.disk.header()
	b := append(make([]byte, 0, idHeader+t.live), head[:]...)
	for _, r := range t.byNumber {
		for i := len(r.at) - 1; i >= 0; i-- { // the last one is the one seen last
			b = appendRecord(b, opFile, r, r.at[i])
		}
	}
	return b
}

// replace puts a file with the content b on stable storage as path. If it returns
// a file and an error, that file has the name, but may lose it.
func replace(path string, b []byte) (*os.File, error) {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, syncDir(filepath.Dir(path))
}

// tend syncs what nobody waits for, and keeps the log short.
func (t *idTable) tend() {
	defer close(t.stopped)
	tick := time.NewTicker(idSyncDelay)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
		}
		_ = t.disk.sync() // who needs it gets the error, and it was logged
		if !t.wasteful() {
			continue
		}
		if err := t.rewrite(); err != nil {
			t.disk.mu.Lock()
			t.disk.complain(err)
			t.disk.mu.Unlock()
		}
	}
}

// close puts everything on stable storage and lets go of the table. No call runs.
func (t *idTable) close() error {
	close(t.stop)
	<-t.stopped
	err := t.disk.sync()
	if err != nil {
		err = t.rewrite()
	}
	t.disk.close()
	return err
}
