package hostguard

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// keepParent is where memory is kept: files there are memory.
	keepParent = "/dev/shm"
	// ballastBytes is what a server needs to start besides its data: its
	// code, its heap, its threads.
	ballastBytes = 20 << 20
	// refillStep is how much of the ballast is taken at a time, every
	// refillEvery, so that nobody runs short because of it.
	refillStep, refillEvery = 1 << 20, 50 * time.Millisecond
)

// Keep is memory that stays taken when the process dies, for its successor: a
// server that is killed leaves a host whose memory only it can clean, and others
// take what it had within a second. A file of tmpfs holds the memory for data,
// which the next process maps again, and another one is given up when that one
// starts, so that there is something free to start with.
type Keep struct {
	dir           string
	lock          *os.File // of dir, locked
	data, ballast *os.File
}

// Keep takes over what the last process with the same state directory left, or
// begins to keep; n is the size of the memory for data, in bytes. It is called
// before anything else that takes memory. On a nil Guard, and where nothing can
// be kept, it returns nil, which keeps nothing.
func (g *Guard) Keep(stateDir string, n int64) *Keep {
	if g == nil {
		return nil
	}
	k, err := openKeep(keepParent, stateDir, n)
	if err != nil {
		g.Miss(Missing{
			What:   "memory for a restart",
			Why:    err,
			Costs:  "a server that was killed may find no memory to start with, as its clients' pages fill it",
			Remedy: fmt.Sprintf("have a tmpfs at %s with room for --memory and %d MiB, and a --state for each server", keepParent, ballastBytes>>20),
		})
		return nil
	}
	return k
}

func openKeep(parent, stateDir string, n int64) (*Keep, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(parent, &fs); err != nil {
		return nil, fmt.Errorf("%s: %w", parent, err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return nil, fmt.Errorf("%s is not a tmpfs", parent)
	}
	state, err := filepath.Abs(stateDir)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(state))
	k := &Keep{dir: filepath.Join(parent, fmt.Sprintf("loopnfs-%d-%x", os.Geteuid(), sum[:8]))}
	if err := k.open(n); err != nil {
		k.close()
		return nil, fmt.Errorf("%s: %w", k.dir, err)
	}
	return k, nil
}

// open takes hold of the directory, frees the ballast, then makes sure of the
// memory for data.
func (k *Keep) open(n int64) (err error) {
	if err := unix.Mkdir(k.dir, 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	if k.lock, err = ownDir(k.dir); err != nil {
		return err
	}
	if err := unix.Flock(int(k.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another server has it: %w", err)
	}
	if k.ballast, err = k.file("ballast"); err != nil {
		return err
	}
	if err := k.ballast.Truncate(0); err != nil {
		return err
	}
	if k.data, err = k.file("data"); err != nil {
		return err
	}
	if err := k.data.Truncate(n); err != nil {
		return err
	}
	return unix.Fallocate(int(k.data.Fd()), 0, 0, n)
}

// ownDir opens a directory that belongs to nobody else, and that nobody else can
// put anything into: its parent is everybody's.
func ownDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return nil, errors.Join(errors.New("it belongs to somebody else: remove it"), f.Close())
	}
	return f, nil
}

func (k *Keep) file(name string) (*os.File, error) {
	fd, err := unix.Openat(int(k.lock.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (k *Keep) close() {
	for _, f := range []*os.File{k.data, k.ballast, k.lock} {
		if f != nil {
			f.Close()
		}
	}
}

// Data returns the file that holds the memory for data; nil if nothing is kept.
// It stays the Keep's.
func (k *Keep) Data() *os.File {
	if k == nil {
		return nil
	}
	return k.data
}

// Refill takes the memory again that the next start is to find free, step by
// step, until done is closed. It returns an error if not all of it could be had.
// Remove may be called meanwhile.
func (k *Keep) Refill(done <-chan struct{}) error {
	if k == nil {
		return nil
	}
	raw, err := k.ballast.SyscallConn()
	if err != nil {
		return err
	}
	for at := int64(0); at < ballastBytes; at += refillStep {
		// Control keeps the descriptor from being closed, and used again.
		ctlErr := raw.Control(func(fd uintptr) { err = unix.Fallocate(int(fd), 0, at, refillStep) })
		if err := errors.Join(ctlErr, err); err != nil {
			return fmt.Errorf("memory for the next start, %d of %d MiB: %w", at>>20, ballastBytes>>20, err)
		}
		select {
		case <-done:
			return nil
		case <-time.After(refillEvery):
		}
	}
	return nil
}

// Remove gives up everything that was kept, at an orderly end.
func (k *Keep) Remove() error {
	if k == nil {
		return nil
	}
	err := os.RemoveAll(k.dir)
	k.close()
	return err
}
