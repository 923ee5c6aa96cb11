package fusefs

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// A handle is what the backing file system knows a file by, with a check that
// only this export can have made:
//
//	version  kernel type  kernel handle  HMAC-SHA256, truncated
//	   1         1           n <= 50              8
//
// Where it has no handles, an idTable makes what stands for the kernel's.
const (
	handleVersion = 1
	macSize       = 8
	maxHandle     = 60
	maxKernel     = maxHandle - 2 - macSize
	keySize       = 32
)

// handle is a file handle as a map key.
type handle struct {
	n uint8
	b [maxHandle]byte
}

func (h *handle) bytes() []byte { return h.b[:h.n] }

// seal makes the handle for what the kernel returned.
func (s *Store) seal(raw *rawHandle) (h handle, err error) {
	if raw.bytes > maxKernel || raw.typ < 0 || raw.typ > 255 {
		return h, fmt.Errorf("the backing file system %s makes file handles of %d bytes (type %d), the limit is %d: %w",
			s.fsType, raw.bytes, raw.typ, maxKernel, unix.EOVERFLOW)
	}
	h.b[0], h.b[1] = handleVersion, byte(raw.typ)
	n := 2 + copy(h.b[2:], raw.data[:raw.bytes])
	sum := s.mac(h.b[:n])
	h.n = uint8(n + copy(h.b[n:], sum[:]))
	return h, nil
}

// parseHandle turns bytes from outside into a map key; nothing is checked but
// the form.
func parseHandle(b []byte) (h handle, ok bool) {
	if len(b) < 2+macSize || len(b) > maxHandle || b[0] != handleVersion {
		return h, false
	}
	h.n = uint8(copy(h.b[:], b))
	return h, true
}

// open checks h and returns what the kernel knows it by.
func (s *Store) open(h *handle) (raw rawHandle, ok bool) {
	n := int(h.n) - macSize
	if sum := s.mac(h.b[:n]); !hmac.Equal(sum[:], h.b[n:h.n]) {
		return raw, false
	}
	h.raw(&raw)
	return raw, true
}

// raw returns the kernel's part of a handle that is known to be good.
func (h *handle) raw(raw *rawHandle) {
	raw.typ = int32(h.b[1])
	raw.bytes = uint32(copy(raw.data[:], h.b[2:int(h.n)-macSize]))
}

// macs make the checks of handles: HMAC-SHA-256, cut. What crypto/hmac makes is for one
// caller at a time, so there is one for each of those that can be at it, as none of them
// waits meanwhile.
type macs [16]struct {
	busy atomic.Bool
	hash hash.Hash
	buf  []byte
	_    [88]byte // cache lines of its own
}

func (m *macs) init(key []byte) {
	for i := range m {
		m[i].hash, m[i].buf = hmac.New(sha256.New, key), make([]byte, 0, maxHandle)
		m[i].hash.Reset() // it remembers how to begin from now on
	}
}

// mac returns the check of b, at most maxHandle bytes. It does not allocate.
func (s *Store) mac(b []byte) (sum [macSize]byte) {
	for i := 0; ; i++ {
		m := &s.macs[i%len(s.macs)]
		if !m.busy.CompareAndSwap(false, true) {
			continue
		}
		m.hash.Reset()
		m.buf = append(m.buf[:0], b...) // what is passed to an interface is on the heap
		m.hash.Write(m.buf)
		m.buf = m.hash.Sum(m.buf[:0])
		copy(sum[:], m.buf)
		m.busy.Store(false)
		return sum
	}
}

// useKey has handles checked with the export's key, which has one of names. The number
// of the file system that clients see comes from it, too: that of its device changes.
func (s *Store) useKey(stateDir string, names keyNames) error {
	key, err := loadKey(stateDir, names, s.log)
	s.macs.init(key[:])
	sum := s.mac([]byte("fsid"))
	s.fsid = binary.BigEndian.Uint64(sum[:])
	return err
}

// keyNames are the names that a key may have, best first. They belong to the exported
// directory and its file system, not to the path it is at today. The first of them,
// lasting in number, hold on every host and device that the disk may come to; the key
// is kept under all of these, or under the best if there is none.
type keyNames struct {
	names   []string
	lasting int
}

// loadKey reads the export's key from the state directory, or makes one.
func loadKey(stateDir string, names keyNames, log *slog.Logger) (key [keySize]byte, err error) {
	for i, name := range names.names {
		b, err := os.ReadFile(filepath.Join(stateDir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return key, fmt.Errorf("cannot read the key of the file handles: %w", err)
		}
		if len(b) != keySize {
			return key, fmt.Errorf("%s holds %d bytes, want %d: restore it from a copy, or delete it, which makes every file handle of the clients stale",
				filepath.Join(stateDir, name), len(b), keySize)
		}
		if err := names.link(stateDir, i); err != nil {
			log.Warn("the key of the file handles is not kept under all its names", "error", err,
				"costs", "file handles may be stale on another host", "remedy", "make "+stateDir+" writable and start the server again")
		}
		return [keySize]byte(b), nil
	}
	if _, err := rand.Read(key[:]); err != nil {
		return key, err
	}
	if key, err = makeKey(stateDir, names.names[0], key); err != nil {
		return key, err
	}
	return key, names.link(stateDir, 0)
}

// link gives the key that was found as names[at] all lasting names.
func (n *keyNames) link(dir string, at int) error {
	made := false
	for _, name := range n.names[:n.lasting] {
		err := os.Link(filepath.Join(dir, n.names[at]), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("cannot keep the key of the file handles: %w", err)
		}
		made = made || err == nil
	}
	if !made {
		return nil
	}
	return syncDir(dir)
}

// keyNames returns the names of the key of the export whose root the kernel knows by
// root. What lies on the exported file system itself needs no name for that, which not
// all kernels tell: there the state directory stands for it.
func (s *Store) keyNames(stateDir string, root *rawHandle) (n keyNames) {
	if at, ok := s.besides(stateDir); ok {
		n.names = append(n.names, keyName(append([]byte("beside "), at...), root))
	}
	if id, ok := fsUUID(s.rootFD); ok {
		n.names = append(n.names, keyName(id, root))
	}
	n.lasting = len(n.names)
	var sf unix.Statfs_t
	if unix.Fstatfs(s.rootFD, &sf) == nil && sf.Fsid != (unix.Fsid{}) {
		n.names = append(n.names, keyName(unsafe.Slice((*byte)(unsafe.Pointer(&sf.Fsid)), unsafe.Sizeof(sf.Fsid)), root))
	}
	n.names = append(n.names, keyName(fmt.Appendf(nil, "dev %d", s.dev), root))
	return n
}

// besides returns what tells the state directory from all others of its file system, if
// that is the exported one: its handle, or inode number. A copy of it elsewhere differs.
func (s *Store) besides(stateDir string) (at []byte, ok bool) {
	fd, err := unix.Open(stateDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if fstat(fd, &st) != nil || st.Dev != s.dev {
		return nil, false
	}
	var raw rawHandle
	var mount int32
	if nameToHandle(fd, &raw, &mount) == nil {
		return append([]byte{byte(raw.typ)}, raw.data[:raw.bytes]...), true
	}
	return binary.BigEndian.AppendUint64(nil, st.Ino), true
}

// SharesDisk implements vfs.Announcer.
func (s *Store) SharesDisk(dir string) bool {
	_, ok := s.besides(dir)
	return ok
}

// SyncAll implements vfs.Announcer.
func (s *Store) SyncAll() error { return unix.Syncfs(s.rootFD) }

func keyName(fs []byte, root *rawHandle) string {
	m := sha256.New()
	m.Write(fs)
	m.Write([]byte{byte(root.typ)})
	m.Write(root.data[:root.bytes])
	return hex.EncodeToString(m.Sum(nil)[:8]) + ".key"
}

// fsUUID asks for the UUID of the file system (FS_IOC_GETFSUUID, Linux 6.9).
func fsUUID(fd int) ([]byte, bool) {
	const getFSUUID = 0x80111500
	var id [17]byte // length, UUID
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getFSUUID, uintptr(unsafe.Pointer(&id)))
	if e != 0 || id[0] == 0 || int(id[0]) >= len(id) {
		return nil, false
	}
	return id[1 : 1+id[0]], true
}

// makeKey puts key on stable storage under name. If somebody else was faster,
// theirs is returned.
func makeKey(dir, name string, key [keySize]byte) ([keySize]byte, error) {
	fail := func(err error) ([keySize]byte, error) {
		return key, fmt.Errorf("cannot keep the key of the file handles: %w", err)
	}
	f, err := os.CreateTemp(dir, name+".*") // mode 0600
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key[:])
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fail(err)
	}
	path := filepath.Join(dir, name)
	if err := os.Link(f.Name(), path); errors.Is(err, os.ErrExist) {
		b, err := os.ReadFile(path)
		if err != nil || len(b) != keySize {
			return fail(fmt.Errorf("%s: %d bytes: %w", path, len(b), err))
		}
		return [keySize]byte(b), nil
	} else if err != nil {
		return fail(err)
	}
	return key, syncDir(dir)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Handle implements vfs.FS. The file may be gone already: who has just made or found
// it is told its handle all the same.
func (s *Store) Handle(node vfs.NodeID, buf []byte) ([]byte, error) {
	in := s.nodes.get(node)
	if in == nil {
		return buf, vfs.ErrStale
	}
	return append(buf, in.key.bytes()...), nil
}

// ByHandle implements vfs.FS. A handle of an inode in memory costs a map
// look-up; any other is checked before the kernel sees it.
func (s *Store) ByHandle(op *vfs.Op, b []byte) (vfs.NodeID, error) {
	h, ok := parseHandle(b)
	if !ok {
		return 0, vfs.ErrBadHandle
	}
	if in := s.nodes.ref(&h); in != nil {
		return in.id, nil
	}
	if op.MustWait() {
		return 0, errWouldWait
	}
	s.makeRoom(op)
	return s.byNewHandle(h)
}

// byNewHandle makes the inode for a handle of a file that is not in memory.
func (s *Store) byNewHandle(h handle) (vfs.NodeID, error) {
	raw, ok := s.open(&h)
	if !ok {
		return 0, vfs.ErrBadHandle
	}
	fd, err := s.openRaw(&raw, unix.O_PATH)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	in, _, err := s.instantiate(fd, &h)
	s.evict()
	if err != nil {
		return 0, err
	}
	return in.id, nil
}

// openHandle opens a file by the kernel's handle, or by that of the table.
func (s *Store) openHandle(raw *rawHandle, flags int) (int, error) {
	if s.ids != nil {
		return s.ids.open(raw, flags)
	}
	return openByHandle(s.rootFD, raw, flags)
}

// openRaw is openHandle for the rest of the store. What is gone is ErrStale.
func (s *Store) openRaw(raw *rawHandle, flags int) (int, error) {
	fd, err := s.openHandle(raw, flags)
	if err != nil && s.spareFiles(err) {
		fd, err = s.openHandle(raw, flags)
	}
	return fd, openError(err, flags)
}

// spareFiles reports whether err is that too many files are open, and some of those
// that nobody uses were closed.
func (s *Store) spareFiles(err error) bool {
	return (err == unix.EMFILE || err == unix.ENFILE) && s.fds.closeIdle() > 0
}

// openError returns what callers get for the error of an open by handle.
func openError(err error, flags int) error {
	switch err {
	case unix.ESTALE, unix.ENOENT, unix.EINVAL:
		if err == unix.EINVAL && flags&unix.O_DIRECT != 0 {
			return err
		}
		return vfs.ErrStale
	case unix.EMFILE, unix.ENFILE:
		return vfs.ErrJukebox
	}
	return err
}
