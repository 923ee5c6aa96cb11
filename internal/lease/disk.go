package lease

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	blockLen = 4096 // at least the sector of any disk
	// Events is how many takings and releases are remembered.
	Events   = 64
	diskLen  = (1 + Events) * blockLen
	eventsAt = 1 // the first block of the ring
)

// errForeign is returned for a disk that has something else on it.
var errForeign = errors.New("there is something else on it")

// disk is where the lease is. Its buffers are locked, and there is one I/O at a time.
type disk struct {
	path string
	fd   int
	mem  []byte
	in   []byte // a block
	out  []byte // likewise; zeros but for the record
	// late, if not nil, is called before each I/O and after it: a slow disk, in tests.
	late func()
}

// openDisk opens a lease; flags are O_RDWR or O_RDONLY. A file that is not there is made.
func openDisk(path string, flags int) (*disk, error) {
	fd, err := openDirect(path, flags)
	if err == unix.ENOENT && flags == unix.O_RDWR && !strings.HasPrefix(path, "/dev/") {
		if err := makeFile(path); err != nil {
			return nil, fmt.Errorf("cannot make the lease %s: %w", path, err)
		}
		fd, err = openDirect(path, flags)
	}
	if err == unix.EINVAL && isFile(path) {
		err = fmt.Errorf("%w: its file system has no O_DIRECT: put it on ext4 or XFS, or use a partition", err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open the lease %s: %w", path, err)
	}
	d := &disk{path: path, fd: fd}
	if err := d.prepare(); err != nil {
		d.close()
		return nil, fmt.Errorf("lease %s: %w", path, err)
	}
	return d, nil
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

func openDirect(path string, flags int) (int, error) {
	return unix.Open(path, flags|unix.O_DIRECT|unix.O_DSYNC|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
}

// prepare checks that there is room, and maps the buffers.
func (d *disk) prepare() error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	size := st.Size
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		var err error
		if size, err = unix.Seek(d.fd, 0, io.SeekEnd); err != nil {
			return err
		}
	default:
		return errors.New("it is neither a file nor a block device: name one of these")
	}
	if size < diskLen {
		return fmt.Errorf("it has %d bytes: a lease needs a partition of %d, or a file that loopnfs makes itself: remove this one", size, diskLen)
	}
	mem, err := directBuffer(2)
	if err != nil {
		return err
	}
	d.mem, d.in, d.out = mem, mem[:blockLen], mem[blockLen:]
	_ = unix.Mlock(mem) // the guard says so if nothing can be locked
	return nil
}

// directBuffer maps room for n blocks, which the caller unmaps.
func directBuffer(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n*blockLen, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
}

func (d *disk) close() {
	unix.Close(d.fd)
	if d.mem != nil {
		_ = unix.Munmap(d.mem)
	}
}

// makeFile makes a file with all its blocks, full of zeros. Nobody sees less of it.
func makeFile(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, diskLen))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// read fills b with what is at a block and after it, past all caches of this host.
func (d *disk) read(b []byte, block int) error {
	n, err := d.retry(func() (int, error) { return unix.Pread(d.fd, b, int64(block)*blockLen) })
	if err == nil && n != len(b) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// write puts a record on stable storage. An error says nothing of what is on the disk.
func (d *disk) write(block int, r *Record) error {
	r.encode(d.out)
	n, err := d.retry(func() (int, error) { return unix.Pwrite(d.fd, d.out, int64(block)*blockLen) })
	if err == nil && n != blockLen {
		err = io.ErrShortWrite
	}
	return err
}

func (d *disk) retry(f func() (int, error)) (n int, err error) {
	if d.late != nil {
		d.late()
		defer d.late()
	}
	for {
		if n, err = f(); err != unix.EINTR {
			return n, err
		}
	}
}

// isZero reports whether a block was never written.
func isZero(block []byte) bool {
	for _, b := range block {
		if b != 0 {
			return false
		}
	}
	return true
}

// readRecord reads the record; one that is free has State Free.
func (d *disk) readRecord() (Record, error) {
	if err := d.read(d.in, 0); err != nil {
		return Record{}, err
	}
	r, err := d.numbers()
	if err == nil && r.State != Free {
		r, _ = decode(d.in)
	}
	return r, err
}

// numbers returns the record in d.in without names. It does not allocate.
func (d *disk) numbers() (Record, error) {
	r, ok := decodeNumbers(d.in)
	switch {
	case ok:
		return r, nil
	case isZero(d.in):
		return Record{}, nil
	case isRecord(d.in):
		return r, errDamaged
	}
	return r, errForeign
}

// errDamaged is returned for a record that somebody else has written to, or that the disk
// has lost.
var errDamaged = errors.New("the record is damaged")

// readEvents returns the ring, in no order. A damaged event is none. It is one read: who is
// about to take the lease must not be slow.
func (d *disk) readEvents() (all []Record, err error) {
	ring, err := directBuffer(Events)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(ring)
	if err := d.read(ring, eventsAt); err != nil {
		return nil, err
	}
	for b := range slices.Chunk(ring, blockLen) {
		r, ok := decode(b)
		switch {
		case ok:
			all = append(all, r)
		case !isZero(b) && !isRecord(b):
			return nil, errForeign
		}
	}
	return all, nil
}

// writeEvent writes r, its Seq being its number.
func (d *disk) writeEvent(r *Record) error { return d.write(eventsAt+int(r.Seq%Events), r) }
