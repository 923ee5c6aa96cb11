package fusefs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

const (
	// tableType is the type number of the handles of an idTable. The kernel's
	// types (enum fid_type) end with 0xff, FILEID_INVALID, and leave this one out.
	tableType  = 0xfe
	tableBytes = 16 // number, tag

	// maxRecords bounds the memory of a table to some 190 MB, which is what
	// a host that serves a million files of a container can spare.
	maxRecords = 1_000_000
	// maxLive bounds it, too, if names are long or files have many of them, to as
	// much; in bytes of the log.
	maxLive = 128 << 20
	// maxPlaces is how many names of one file are remembered.
	maxPlaces = 4
	// maxSteps bounds the opens for one handle, whatever the names lead to.
	maxSteps = 4096
	// sweepSize is how many records are looked at to make room for one.
	sweepSize = 32
	// maxAgain is how many times a file is looked for again because names changed.
	maxAgain = 16
	// recordBytes is what a record takes on the heap: see TestRecordSize.
	recordBytes = 190

	rootNumber = uint64(0)
)

// idTable gives files handles where the file system has none: it remembers
// where each file that a handle was given for was seen, and what it was.
//
// A record is a file. Its handle is the record's number and the tag of the
// process that made it, which is random: a number that was lost with the end of
// the log is not taken for another one. Names are hints only. A file is found if
// one of the last names it was seen by leads to what the record says: the inode
// number, the type, and the time of birth where the file system keeps it. On an
// overlay the time of birth changes when a lower file is copied up, so there it
// counts only for files that are known to be in the upper layer, and to tell a file
// that was renamed from a new one with an old inode number.
//
// A rename notes the new name as one more place, changes the name, and then puts the
// places in order: a server that is killed in between finds the file by one of them. Who
// does not find a file meanwhile looks again (begin, end).
//
// Invariant: whoever has a handle, its record is in the log (idLog). No lock is
// held over system calls on the exported files or on the log.
type idTable struct {
	root   int // descriptor of the exported directory
	copyUp bool
	log    *slog.Logger
	limit  int   // of records
	most   int64 // of live
	tag    uint64
	disk   idLog

	stop, stopped chan struct{} // tend

	mu       sync.Mutex // above idLog.mu
	next     uint64     // number of the next record
	byNumber map[uint64]*idRecord
	byIno    map[uint64]*idRecord
	live     int64 // bytes of the log that are not out of date
	full     bool  // it was said that there is no room

	begun  uint64              // calls that give files other names
	naming map[uint64]struct{} // the numbers of those that have not ended
	moves  sync.Cond
}

// idRecord is one file.
type idRecord struct {
	number, tag uint64
	fileID
	upper bool    // of an overlay's upper layer: it keeps its time of birth
	at    []place // where it was seen, last first; of the root: nothing
}

// place is a name in a directory, which is known by the number of its record.
type place struct {
	dir  uint64
	name string
}

// fileID tells one file from another.
type fileID struct {
	ino   uint64
	born  int64 // ns; 0 if the file system does not tell
	nlink uint32
	typ   vfs.FileType
}

func identify(fd int, id *fileID) error {
	var st unix.Statx_t
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&emptyName)), unix.AT_EMPTY_PATH,
		unix.STATX_BASIC_STATS|unix.STATX_BTIME, uintptr(unsafe.Pointer(&st)), 0)
	if e != 0 {
		return e
	}
	*id = fileID{ino: st.Ino, nlink: st.Nlink, typ: typeOf(uint32(st.Mode))}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return nil
}

// placeIn returns the place of name in a directory that is in memory.
func placeIn(dir *inode, name string) place {
	return place{binary.BigEndian.Uint64(dir.key.b[2:]), name}
}

func (r *idRecord) raw(raw *rawHandle) {
	raw.typ, raw.bytes = tableType, tableBytes
	binary.BigEndian.PutUint64(raw.data[:], r.number)
	binary.BigEndian.PutUint64(raw.data[8:], r.tag)
}

// is reports whether id can be the file of r, seen where r was seen before.
func (t *idTable) is(r *idRecord, id *fileID) bool {
	return r.ino == id.ino && r.typ == id.typ && id.nlink > 0 &&
		(t.copyUp && !r.upper || r.born == id.born || r.number == rootNumber)
}

// same reports whether id, which was seen at p, is the file of r, which has its inode
// number.
func (t *idTable) same(r *idRecord, id *fileID, p place) bool {
	return r.has(p) && t.is(r, id) || r.typ == id.typ && r.born == id.born && id.born != 0
}

// name returns the handle of the file open as fd, which was found at p. Records
// of its inode number from before since, as mark returned it, are of other files.
// ErrStale: it has no name. ENOSPC: the table is full.
func (t *idTable) name(fd int, p place, since uint64, raw *rawHandle) error {
	var id fileID
	if err := identify(fd, &id); err != nil {
		return err
	}
	if id.nlink == 0 {
		return vfs.ErrStale
	}
	link, err := t.linkOf(&id, p)
	if err != nil {
		return err
	}
	fresh, err := t.record(&id, p, since, link, raw)
	if err == unix.ENOSPC && t.sweep() > 0 {
		fresh, err = t.record(&id, p, since, link, raw)
	}
	if err != nil {
		return err
	}
	// Who removes a file drops its record afterwards, and may have been before us.
	if fresh && identify(fd, &id) == nil && id.nlink == 0 {
		t.drop(raw)
		return vfs.ErrStale
	}
	return t.disk.write()
}

// linkOf returns the record that a file without a time of birth, found at p, is
// another name of, or nil: the one that has its inode number and is still there.
func (t *idTable) linkOf(id *fileID, p place) (*idRecord, error) {
	if id.born != 0 {
		return nil, nil
	}
	var raw rawHandle
	t.mu.Lock()
	r := t.byIno[id.ino]
	if r == nil || r.has(p) || r.typ != id.typ {
		t.mu.Unlock()
		return nil, nil
	}
	r.raw(&raw)
	t.mu.Unlock()
	fd, err := t.find(&raw)
	switch {
	case err == nil:
		unix.Close(fd)
		return r, nil
	case errors.Is(err, vfs.ErrStale):
		return nil, nil
	}
	return nil, err
}

// record finds or makes the record of a file. link is that of another name of it, or
// nil.
func (t *idTable) record(id *fileID, p place, since uint64, link *idRecord, raw *rawHandle) (fresh bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.byIno[id.ino]
	switch {
	case r == nil:
	case r.number == rootNumber:
		r.raw(raw)
		return false, nil
	case r.number >= since && (t.same(r, id, p) || r == link):
		t.see(r, id, p, since > 0)
		r.raw(raw)
		return false, nil
	default:
		t.remove(r) // another file has the inode number now
	}
	if t.noRoom() {
		if !t.full {
			t.full = true
			t.log.Warn("the table of file handles is full: files that no client has seen yet get ENOSPC",
				"files", len(t.byNumber)-1, "limit", t.limit, "bytes", t.live, "most", t.most,
				"remedy", "export a directory of ext4, XFS, btrfs or tmpfs, or a smaller one")
		}
		return false, unix.ENOSPC
	}
	r = &idRecord{number: t.next, tag: t.tag, fileID: *id}
	t.next++
	t.byNumber[r.number], t.byIno[r.ino] = r, r
	t.see(r, id, p, since > 0)
	r.raw(raw)
	return true, nil
}

// noRoom reports whether nothing can be added. mu is held.
func (t *idTable) noRoom() bool { return len(t.byNumber) >= t.limit || t.live >= t.most }

func (r *idRecord) has(p place) bool {
	for i := range r.at {
		if r.at[i] == p {
			return true
		}
	}
	return false
}

// see notes that r was seen at p, and looks like id; upper: after a change, which an
// overlay copies a file up for. mu is held.
func (t *idTable) see(r *idRecord, id *fileID, p place, upper bool) {
	upper = upper && t.copyUp && !r.upper
	changed := !r.has(p) || r.ino != id.ino || r.born != id.born || upper
	r.upper = r.upper || upper
	t.place(r, id, p)
	if changed {
		t.disk.put(opFile, r, r.at[0])
	}
}

// place puts p in front of the places of r, in place of the one that was seen the
// longest time ago if there are too many, or no room is left. mu is held.
func (t *idTable) place(r *idRecord, id *fileID, p place) {
	i, most := 0, maxPlaces
	if t.live >= t.most {
		most = 2 // while a file is being renamed
	}
	t.turn(r, id)
	t.live -= r.size()
	for i < len(r.at) && r.at[i] != p {
		i++
	}
	switch {
	case i < len(r.at):
		p = r.at[i]
	case i < most:
		p.name = strings.Clone(p.name) // may be a part of a request
		r.at = append(r.at[:i:i], p)   // most have one place, and no room for more
	default:
		p.name = strings.Clone(p.name)
		i--
	}
	copy(r.at[1:i+1], r.at[:i])
	r.at[0] = p
	t.live += r.size()
}

// turn gives r the identity that its file has now. mu is held.
func (t *idTable) turn(r *idRecord, id *fileID) {
	if r.ino != id.ino {
		if t.byIno[r.ino] == r {
			delete(t.byIno, r.ino)
		}
		t.byIno[id.ino] = r
	}
	r.fileID = *id
}

// remove forgets r for good. mu is held.
func (t *idTable) remove(r *idRecord) {
	t.unlink(r)
	t.disk.put(opGone, r, place{})
}

// unlink takes r out of the table. mu is held.
func (t *idTable) unlink(r *idRecord) {
	delete(t.byNumber, r.number)
	if t.byIno[r.ino] == r {
		delete(t.byIno, r.ino)
	}
	t.live -= r.size()
}

// get returns the record of a handle, or nil. mu is held.
func (t *idTable) get(raw *rawHandle) *idRecord {
	if raw.typ != tableType || raw.bytes != tableBytes {
		return nil
	}
	r := t.byNumber[binary.BigEndian.Uint64(raw.data[:])]
	if r == nil || r.tag != binary.BigEndian.Uint64(raw.data[8:]) {
		return nil
	}
	return r
}

// mark returns what tells the records made from now on from older ones.
func (t *idTable) mark() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next
}

// room reports whether another file can get a handle: ENOSPC if not, or why the log
// cannot be written.
func (t *idTable) room() error {
	if err := t.disk.works(); err != nil {
		return err
	}
	t.mu.Lock()
	full := t.noRoom()
	t.mu.Unlock()
	if full && t.sweep() == 0 {
		return unix.ENOSPC
	}
	return nil
}

// known returns the handle of what is open as fd, if it has one.
func (t *idTable) known(id *fileID, raw *rawHandle) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.byIno[id.ino]
	if r == nil || r.typ != id.typ {
		return false
	}
	r.raw(raw)
	return true
}

// drop forgets a file that is gone: its handle is never good again.
func (t *idTable) drop(raw *rawHandle) {
	t.mu.Lock()
	if r := t.get(raw); r != nil && r.number != rootNumber {
		t.remove(r)
	}
	t.mu.Unlock()
	_ = t.disk.write() // an error was logged; it is written later
}

// begin says that a file is being given another name; end, that this is over and
// its record says so. It gets what begin returned.
func (t *idTable) begin() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun++
	t.naming[t.begun] = struct{}{}
	return t.begun
}

func (t *idTable) end(number uint64) {
	t.mu.Lock()
	delete(t.naming, number)
	t.moves.Broadcast()
	t.mu.Unlock()
	_ = t.disk.write() // an error was logged; it is written later
}

// named returns how many files have begun to get another name, and whether all have got it.
func (t *idTable) named() (begun uint64, all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.begun, len(t.naming) == 0
}

// settled reports that no file has been given another name since named returned
// begun and all, and that raw is not found for another reason. If one has, it
// returns when those that had begun are over.
func (t *idTable) settled(raw *rawHandle, begun uint64, all bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if all && begun == t.begun || t.get(raw) == nil {
		return true
	}
	for upTo := t.begun; t.namingUpTo(upTo); {
		t.moves.Wait()
	}
	return false
}

// namingUpTo reports whether one of the first n that have begun has not ended. mu is held.
func (t *idTable) namingUpTo(n uint64) bool {
	for number := range t.naming {
		if number <= n {
			return true
		}
	}
	return false
}

// recordAt returns the record of the file that is what id says and was seen at p, or nil.
// mu is held.
func (t *idTable) recordAt(id *fileID, p place) *idRecord {
	r := t.byIno[id.ino]
	if r == nil || r.number == rootNumber || !t.same(r, id, p) {
		return nil
	}
	return r
}

// moving notes that the file at from, which is what was says, may be at to soon, and returns
// the places it had; with an error, the log does not know, and the file must stay. moved or
// stays follows.
func (t *idTable) moving(was *fileID, from, to place) (had []place, err error) {
	if err := t.disk.works(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	if r := t.recordAt(was, from); r != nil {
		had = slices.Clone(r.at)
		t.keep(r, was, from)
		t.see(r, was, to, false)
	}
	t.mu.Unlock()
	return had, t.disk.write()
}

// keep has p, if r has it, not be what the next one takes the place of. mu is held.
func (t *idTable) keep(r *idRecord, id *fileID, p place) {
	if r.has(p) && r.at[0] != p {
		t.place(r, id, p)
		t.disk.put(opFile, r, p)
	}
}

// moved notes that the file open as fd, which was what was says, has another name
// now: to, and not from. To give it one copies it up. What cannot be written now is
// written later; clients may have to look the file up again. end follows.
func (t *idTable) moved(fd int, was *fileID, from, to place) {
	var id fileID
	if identify(fd, &id) != nil || id.nlink == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.recordAt(was, from); r != nil {
		t.see(r, &id, to, true)
		t.shrink(r)
	}
}

// shrink leaves r one place if no room is left. mu is held.
func (t *idTable) shrink(r *idRecord) {
	if t.live < t.most {
		return
	}
	t.live -= r.size()
	clear(r.at[1:])
	r.at = r.at[:1]
	t.live += r.size()
}

// stays takes back what moving has noted: the file is at from, and had these places.
func (t *idTable) stays(was *fileID, from, to place, had []place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := cmp.Or(t.recordAt(was, from), t.recordAt(was, to))
	if r == nil || had == nil || slices.Contains(had, to) {
		return
	}
	t.live -= r.size()
	r.at = slices.DeleteFunc(r.at, func(p place) bool { return p == to })
	for _, p := range had {
		if len(r.at) < maxPlaces && !r.has(p) {
			r.at = append(r.at, p)
		}
	}
	t.live += r.size()
	for _, p := range slices.Backward(r.at) { // who reads the log sees them as they are
		t.disk.put(opFile, r, p)
	}
}

// gone reports whether the file open as fd, which was what was says before one of
// its names was removed, has no other. A lower file of an overlay keeps its link
// count when it is covered.
func (t *idTable) gone(fd int, was *fileID, raw *rawHandle) bool {
	var id fileID
	if identify(fd, &id) != nil {
		return false
	}
	if id.nlink == 0 {
		return true
	}
	if id.nlink != was.nlink || id.typ != vfs.TypeDirectory && id.nlink > 1 {
		return false
	}
	again, err := t.find(raw)
	if err == nil {
		unix.Close(again)
	}
	return errors.Is(err, vfs.ErrStale)
}

// open opens a file by its handle (open_by_handle_at). ErrStale: it is not where
// it was seen.
func (t *idTable) open(raw *rawHandle, flags int) (int, error) {
	fd, err := t.find(raw)
	if err != nil || flags&unix.O_PATH != 0 {
		return fd, err
	}
	defer unix.Close(fd)
	// What was found is opened, not its name, which may stand for something
	// else by now: a FIFO, for one, would keep us waiting.
	return reopen(fd, flags)
}

func reopen(fd, flags int) (int, error) {
	for {
		again, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags&^unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return again, err
		}
	}
}

// copied notes the identity that in, open as fd, may have got from a change, or from
// being opened for writing; at is another name that it got, or nil; upper: an overlay
// has copied it up for sure.
func (t *idTable) copied(in *inode, fd int, at *place, upper bool) {
	var id fileID
	if identify(fd, &id) != nil || id.nlink == 0 {
		return
	}
	var raw rawHandle
	in.key.raw(&raw)
	t.mu.Lock()
	if r := t.get(&raw); r != nil && r.number != rootNumber {
		if at == nil {
			at = &r.at[0]
		}
		t.see(r, &id, *at, upper)
	}
	t.mu.Unlock()
	_ = t.disk.write() // an error was logged; it is written later
}

// find opens the file of a handle with O_PATH.
func (t *idTable) find(raw *rawHandle) (fd int, err error) {
	for range maxAgain {
		begun, all := t.named()
		fd, err = t.findOnce(raw)
		if !errors.Is(err, vfs.ErrStale) || t.settled(raw, begun, all) {
			break
		}
	}
	return fd, err
}

func (t *idTable) findOnce(raw *rawHandle) (int, error) {
	t.mu.Lock()
	r := t.get(raw)
	p := ""
	if r != nil {
		p = t.path(r)
	}
	t.mu.Unlock()
	if r == nil {
		return -1, vfs.ErrStale
	}
	if p != "" {
		if fd, err := t.try(r, t.root, p); fd >= 0 || err != nil {
			return fd, err
		}
	}
	steps := maxSteps
	return t.walk(r, &steps)
}

// path returns the path from the root that the last places lead along, or "" if
// they do not. mu is held.
func (t *idTable) path(r *idRecord) string {
	if r.number == rootNumber {
		return "."
	}
	const most = 4096 - 1 // PATH_MAX
	var b [most]byte
	at := len(b)
	for r.number != rootNumber {
		name := r.at[0].name
		if at <= len(name) {
			return ""
		}
		at -= len(name)
		copy(b[at:], name)
		if r = t.byNumber[r.at[0].dir]; r == nil {
			return ""
		}
		if r.number != rootNumber {
			at--
			b[at] = '/'
		}
	}
	return string(b[at:])
}

// try opens path below dir, if it is the file of r. It returns -1 and no error if
// it is not there.
func (t *idTable) try(r *idRecord, dir int, path string) (int, error) {
	fd, err := openBelow(dir, path)
	switch {
	case err == nil:
	case notThere(err):
		return -1, nil
	default:
		return -1, err
	}
	var id fileID
	if err := identify(fd, &id); err != nil {
		unix.Close(fd)
		return -1, err
	}
	t.mu.Lock()
	// A record that was dropped meanwhile is of a file whose inode number this
	// one may have got.
	is := t.byNumber[r.number] == r && t.is(r, &id)
	t.mu.Unlock()
	if !is {
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// notThere reports whether an open failed because the file is not where it was.
func notThere(err error) bool {
	switch err {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ESTALE, unix.ENAMETOOLONG:
		return true
	}
	return false
}

// goneError returns the error for a file by its handle if opening it failed with err.
func goneError(err error) error {
	if notThere(err) {
		return vfs.ErrStale
	}
	return openError(err, 0)
}

// openBelow opens path with O_PATH. No link is followed, nothing outside of dir
// and no other mount is entered.
func openBelow(dir int, path string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(dir, path, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// walk opens the file of r by any of the places it, and each directory above it,
// was seen at, and notes which one was right.
func (t *idTable) walk(r *idRecord, steps *int) (int, error) {
	if r.number == rootNumber {
		return openBelow(t.root, ".")
	}
	t.mu.Lock()
	at := append([]place(nil), r.at...)
	t.mu.Unlock()
	for _, p := range at {
		if *steps--; *steps < 0 {
			break
		}
		fd, err := t.walkTo(r, p, steps)
		if err != nil {
			return -1, err
		}
		if fd >= 0 {
			t.mu.Lock()
			if r.has(p) {
				t.see(r, &r.fileID, p, false)
			}
			t.mu.Unlock()
			return fd, nil
		}
	}
	return -1, vfs.ErrStale
}

func (t *idTable) walkTo(r *idRecord, p place, steps *int) (int, error) {
	t.mu.Lock()
	up := t.byNumber[p.dir]
	t.mu.Unlock()
	if up == nil {
		return -1, nil
	}
	dir, err := t.walk(up, steps)
	if errors.Is(err, vfs.ErrStale) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return t.try(r, dir, p.name)
}

// nameUp is name for a directory of the export that was found by "..", so that
// nobody has told its name.
func (t *idTable) nameUp(fd int, raw *rawHandle) error {
	var id fileID
	if err := identify(fd, &id); err != nil {
		return err
	}
	t.mu.Lock()
	r := t.byIno[id.ino]
	if r != nil && (r.number == rootNumber || r.typ == id.typ && r.born == id.born && id.born != 0) {
		r.raw(raw)
		t.mu.Unlock()
		return t.disk.write()
	}
	t.mu.Unlock()
	rel, err := t.pathOf(fd)
	if err != nil {
		return err
	}
	return t.nameAll(rel, &id, raw)
}

// pathOf asks the kernel where a directory is, from the root of the export.
func (t *idTable) pathOf(fd int) (string, error) {
	root, err := fdPath(t.root)
	if err != nil {
		return "", err
	}
	p, err := fdPath(fd)
	if err != nil {
		return "", err
	}
	rel, ok := strings.CutPrefix(p, strings.TrimSuffix(root, "/")+"/")
	if !ok {
		return "", vfs.ErrStale
	}
	return rel, nil
}

func fdPath(fd int) (string, error) {
	var b [4096]byte
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), b[:])
	if err == nil && n == len(b) {
		err = unix.ENAMETOOLONG
	}
	return string(b[:max(n, 0)]), err
}

// nameAll gives each directory on the way to rel a record; the last one has to be
// the file id.
func (t *idTable) nameAll(rel string, id *fileID, raw *rawHandle) error {
	at, dir := t.root, uint64(rootNumber)
	defer func() {
		if at != t.root {
			unix.Close(at)
		}
	}()
	for name := range strings.SplitSeq(path.Clean(rel), "/") {
		fd, err := openBelow(at, name)
		if at != t.root {
			unix.Close(at)
		}
		at = fd
		if err != nil {
			at = t.root
			return goneError(err)
		}
		if err := t.name(fd, place{dir, name}, 0, raw); err != nil {
			return err
		}
		dir = binary.BigEndian.Uint64(raw.data[:])
	}
	var last fileID
	if err := identify(at, &last); err != nil || last.ino != id.ino {
		return vfs.ErrStale
	}
	return nil
}

// sweep looks at some records and forgets those whose file is gone. It returns
// how many.
func (t *idTable) sweep() (n int) {
	raws := make([]rawHandle, 0, sweepSize)
	t.mu.Lock()
	for _, r := range t.byNumber { // begins anywhere
		if len(raws) == sweepSize {
			break
		}
		raws = append(raws, rawHandle{})
		r.raw(&raws[len(raws)-1])
	}
	t.mu.Unlock()
	for i := range raws {
		fd, err := t.find(&raws[i])
		if err == nil {
			unix.Close(fd)
		} else if errors.Is(err, vfs.ErrStale) {
			t.drop(&raws[i])
			n++
		}
	}
	return n
}
