package hostguard

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// keepParent is where memory is kept: files there are memory.
	keepParent = "/dev/shm"
	// ballastBytes is what a server needs to start besides its data and its
	// program: its heap, its threads, its connections.
	ballastBytes = 8 << 20
	// refillStep is how much of the ballast is taken at a time, every
	// refillEvery at most.
	refillStep, refillEvery = 1 << 20, 100 * time.Millisecond
	// refillSpare is how much must be left to others.
	refillSpare = 2 << 20

	programName = "loopnfs"
)

// Keep is memory that stays taken when the process dies, for its successor: a
// server that is killed leaves a host whose memory only it can clean, and others
// take what it had within a second. So the memory for data lies in a file of
// tmpfs, which the next process maps again, and the program runs from there; and
// the next process begins by giving up a third file, the ballast, so that there
// is something free to start with.
type Keep struct {
	found         []mapping // where the program's code is that has to be in memory
	dir           string
	lock          *os.File // of dir, locked
	data, ballast *os.File
	given         chan struct{}
	ready         *os.File // to the keeper, if there is one
	socket        *os.File // on which the server listens, or the last one did
}

// openKeep takes over what the last process with the same state directory left,
// or begins to keep; n is the size of the memory for data, in bytes. The first
// thing that it does is to free the ballast.
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
	k := &Keep{given: make(chan struct{}, 1), dir: filepath.Join(parent, fmt.Sprintf("%s%x", keepPrefix(), sum[:8]))}
	if err := k.open(state, n); err != nil {
		k.close()
		return nil, fmt.Errorf("%s: %w", k.dir, err)
	}
	sweep(parent)
	return k, nil
}

// keepPrefix begins the names of this user's directories.
func keepPrefix() string { return fmt.Sprintf("loopnfs-%d-", os.Geteuid()) }

func (k *Keep) open(state string, n int64) (err error) {
	if err := unix.Mkdir(k.dir, 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	if k.lock, err = ownDir(k.dir); err != nil {
		return err
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
	if err := unix.Fallocate(int(k.data.Fd()), 0, 0, n); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(k.dir, "state"), []byte(state), 0o600)
}

// ownDir opens and locks a directory of ours.
func ownDir(name string) (*os.File, error) {
	dir, err := openOwn(name)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another server has it: %w", err), dir.Close())
	}
	return dir, nil
}

// openOwn opens a directory that belongs to nobody else, and that nobody else can
// put anything into: its parent is everybody's.
func openOwn(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return nil, errors.Join(errors.New("it belongs to somebody else: remove it"), f.Close())
	}
	return f, nil
}

// sweep removes what was left by servers that will not come back: their state
// directories are gone.
func sweep(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, keepPrefix()+"*"))
	for _, dir := range dirs {
		lock, err := ownDir(dir)
		if err != nil {
			continue // it is in use, or not ours
		}
		state, err := os.ReadFile(filepath.Join(dir, "state"))
		if err == nil {
			_, err = os.Stat(string(state))
		}
		if errors.Is(err, os.ErrNotExist) {
			os.RemoveAll(dir)
		}
		lock.Close()
	}
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

// program returns the path of a copy of the program file at path, which it makes
// unless it is there: servers of one user share it, as it is 15 MiB of memory.
func (k *Keep) program(path string) (string, error) {
	src, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return "", err
	}
	name := filepath.Join(k.dir, programName)
	if old, err := os.Lstat(name); err == nil && old.Size() == st.Size() && old.ModTime().Equal(st.ModTime()) {
		return name, nil
	}
	fresh := name + ".new"
	if err := os.RemoveAll(fresh); err != nil { // what shares it must not change
		return "", err
	}
	if !k.share(st, fresh) {
		if err := copyProgram(fresh, src, st.ModTime()); err != nil {
			return "", err
		}
	}
	return name, os.Rename(fresh, name)
}

// share makes fresh a link to the copy that another server of this user runs, if there
// is one of this program.
func (k *Keep) share(program os.FileInfo, fresh string) bool {
	dirs, _ := filepath.Glob(filepath.Join(filepath.Dir(k.dir), keepPrefix()+"*"))
	for _, name := range dirs {
		if name != k.dir && linkProgram(name, program, fresh) {
			return true
		}
	}
	return false
}

func linkProgram(name string, program os.FileInfo, fresh string) bool {
	dir, err := openOwn(name)
	if err != nil {
		return false // not ours
	}
	defer dir.Close()
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), programName, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || st.Size != program.Size() || !time.Unix(st.Mtim.Unix()).Equal(program.ModTime()) {
		return false
	}
	return unix.Linkat(int(dir.Fd()), programName, unix.AT_FDCWD, fresh, 0) == nil
}

func copyProgram(name string, src io.Reader, mtime time.Time) error {
	dst, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close(), os.Chtimes(name, time.Time{}, mtime))
}

// Data returns the file that holds the memory for data; nil if nothing is kept.
// It stays the Keep's.
func (k *Keep) Data() *os.File {
	if k == nil {
		return nil
	}
	return k.data
}

// Refill takes the ballast again, step by step, whenever spare, which returns how
// many bytes can be taken before memory is short, says that there is enough;
// until it has all, or done is closed. Remove may be called meanwhile.
func (k *Keep) Refill(done <-chan struct{}, spare func() int64) error {
	if k == nil {
		return nil
	}
	raw, err := k.ballast.SyscallConn()
	if err != nil {
		return err
	}
	tick := time.NewTicker(refillEvery)
	defer tick.Stop()
	for at := int64(0); at < ballastBytes; {
		select {
		case <-done:
			return nil
		case <-tick.C:
		}
		if spare() < refillStep+refillSpare {
			continue
		}
		// Control keeps the descriptor from being closed, and used again.
		ctlErr := raw.Control(func(fd uintptr) { err = unix.Fallocate(int(fd), 0, at, refillStep) })
		if err := errors.Join(ctlErr, err); err != nil {
			return fmt.Errorf("memory for the next start, %d of %d MiB: %w", at>>20, ballastBytes>>20, err)
		}
		at += refillStep
	}
	return nil
}

// GiveWay gives up the ballast: the process that serves needs memory more than the next
// one will. It does not wait, and may be called at any time; Given tells of it.
func (k *Keep) GiveWay() {
	if k == nil {
		return
	}
	_ = k.ballast.Truncate(0) // it may be gone already, or the file closed
	select {
	case k.given <- struct{}{}:
	default:
	}
}

// Given has a value after GiveWay: Refill may take the ballast again.
func (k *Keep) Given() <-chan struct{} {
	if k == nil {
		return nil
	}
	return k.given
}

// Remove gives up everything that was kept, at an orderly end.
func (k *Keep) Remove() error {
	if k == nil || k.dir == "" { // the keeper does it
		return nil
	}
	err := os.RemoveAll(k.dir)
	k.close()
	return err
}
