package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process must not use a mount that it serves, so everything that happens in
// a mount happens in a child: this binary again, with childEnv naming what to
// do. It prints nothing if all went well.
const childEnv = "FUSEFS_DOOR_CHILD"

func init() {
	name := os.Getenv(childEnv)
	if name == "" {
		return
	}
	err := errors.New("no such child")
	if f := childActs[name]; f != nil {
		err = f(os.Args[1:])
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// childCommand returns the command that does act in a child.
func childCommand(act string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	// The race detector would let each child sleep for a second at its end.
	cmd.Env = append(os.Environ(), childEnv+"="+act, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// inChild does act in a child and reports what it says as an error of the test.
func inChild(t *testing.T, act string, args ...string) {
	t.Helper()
	out, err := childCommand(act, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", act, err, out)
	}
}

// childActs is filled in by init of the variable, before init runs.
var childActs = map[string]func(args []string) error{
	"files": childFiles, "dir": childDir, "append": childAppend, "write1000": childWrite1000,
	"read-is": childReadIs, "stat": childStat, "open-as": childOpenAs, "create-as": childCreateAs,
	"signals": childSignals, "hold": childHold, "mmap": childMmap, "sync": childSync,
	"bigfile": childBigFile, "large": childLarge, "errno": childErrno, "large-write": childLargeWrite,
	"drops": childDrops, "hang": childHang, "tree": childTree, "walk": childWalk, "use": childUse, "hold-all": childHoldAll,
	"write-at-random": childWriteAtRandom, "ask": childAsk, "getdents": childGetdents,
}

func check(errs ...error) error { return errors.Join(errs...) }

// childGetdents fills a directory and lists it again and again, with a buffer for the kernel
// of one size and then of the others.
func childGetdents(args []string) error {
	const files = 500
	for i := range files {
		if err := os.WriteFile(filepath.Join(args[0], strings.Repeat("name", 20)+strconv.Itoa(i)), nil, 0o600); err != nil {
			return err
		}
	}
	for i, size := range args[1:] {
		n, err := strconv.Atoi(size)
		if err != nil {
			return err
		}
		d, err := os.Open(args[0])
		if err != nil {
			return err
		}
		names := 0
		for buf := make([]byte, n); err == nil; {
			if n, err = unix.Getdents(int(d.Fd()), buf); n <= 0 {
				break
			}
			_, k, _ := unix.ParseDirent(buf[:n], -1, nil)
			names += k
		}
		d.Close()
		if err != nil || names != files {
			return fmt.Errorf("list %d, with %s bytes: %d names, %w", i, size, names, err)
		}
	}
	return nil
}

// childFiles does what people do with files.
func childFiles(args []string) error {
	dir := args[0]
	p := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(p("a"), []byte("hello"), 0o640); err != nil {
		return err
	}
	if b, err := os.ReadFile(p("a")); err != nil || string(b) != "hello" {
		return fmt.Errorf("read %q, %w", b, err)
	}
	if _, err := os.OpenFile(p("a"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("O_EXCL on a file that exists: %v", err)
	}
	// The mode is that of the new file, not a limit for whoever made it.
	f, err := os.OpenFile(p("readonly"), os.O_CREATE|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("x"); err != nil {
		return fmt.Errorf("write to a file created read-only: %w", err)
	}
	f.Close()
	// O_TRUNC, ftruncate beyond the end, and holes.
	f, err = os.OpenFile(p("a"), os.O_TRUNC|os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if st, _ := f.Stat(); st.Size() != 0 {
		return fmt.Errorf("size after O_TRUNC: %d", st.Size())
	}
	if err := check(f.Truncate(10000), second(f.WriteAt([]byte("end"), 20000))); err != nil {
		return err
	}
	b := make([]byte, 20003)
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	if !bytes.Equal(b, append(make([]byte, 20000), "end"...)) {
		return errors.New("the hole is not empty")
	}
	// Unlinked, but open.
	if err := check(os.Remove(p("a")), second(f.WriteAt([]byte("still"), 0)), second(f.ReadAt(b[:5], 0))); err != nil {
		return fmt.Errorf("unlinked file: %w", err)
	}
	if string(b[:5]) != "still" {
		return fmt.Errorf("unlinked file: read %q", b[:5])
	}
	if _, err := os.Stat(p("a")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("stat of an unlinked file: %v", err)
	}
	f.Close()
	// Names.
	if err := check(os.WriteFile(p("b"), []byte("b"), 0o600), os.Link(p("b"), p("c")), os.Symlink("b", p("l")),
		os.Mkdir(p("d"), 0o755), os.Rename(p("b"), p("d/b2")), unix.Mknod(p("fifo"), unix.S_IFIFO|0o600, 0)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(p("c"), &st); err != nil || st.Nlink != 2 || st.Mode != unix.S_IFREG|0o600 {
		return fmt.Errorf("hard link: %d links, mode %o, %v", st.Nlink, st.Mode, err)
	}
	if err := unix.Lstat(p("fifo"), &st); err != nil || st.Mode != unix.S_IFIFO|0o600 {
		return fmt.Errorf("fifo: mode %o, %v", st.Mode, err)
	}
	if target, err := os.Readlink(p("l")); err != nil || target != "b" {
		return fmt.Errorf("readlink: %q, %v", target, err)
	}
	if err := os.Remove(p("d")); !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("rmdir of a full directory: %v", err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, p("c"), unix.AT_FDCWD, p("readonly"), unix.RENAME_EXCHANGE); !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("RENAME_EXCHANGE: %v", err)
	}
	// Attributes.
	when := time.Unix(1e9, 5000)
	if err := check(os.Chmod(p("c"), 0o711), os.Chown(p("c"), 12, 34), os.Chtimes(p("c"), when, when)); err != nil {
		return err
	}
	if err := unix.Stat(p("c"), &st); err != nil || st.Mode&0o7777 != 0o711 || st.Uid != 12 || st.Gid != 34 || st.Mtim != unix.NsecToTimespec(when.UnixNano()) {
		return fmt.Errorf("attributes: %+v, %v", st, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Blocks == 0 || fs.Type != unix.FUSE_SUPER_MAGIC {
		return fmt.Errorf("statfs: %+v, %v", fs, err)
	}
	return check(os.Remove(p("d/b2")), os.Remove(p("d")), os.Remove(p("c")), os.Remove(p("l")), os.Remove(p("fifo")))
}

func second[T any](_ T, err error) error { return err }

// childDir makes many names, and reads them back with and without attributes,
// while some are removed.
func childDir(args []string) error {
	dir, n := args[0], 3000
	var want []string
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range n {
		name := fmt.Sprintf("%s-%d", strings.Repeat("n", i%200), i)
		want = append(want, name)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			return err
		}
	}
	slices.Sort(want)
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 2 { // the second time from the start, by seeking there
		names, err := f.Readdirnames(-1)
		if err != nil {
			return err
		}
		slices.Sort(names)
		if !slices.Equal(names, want) {
			return fmt.Errorf("%d names, want %d", len(names), len(want))
		}
		if _, err := f.Seek(0, 0); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || !info.Mode().IsRegular() {
			return fmt.Errorf("%s: %v, %v", e.Name(), info, err)
		}
	}
	return os.RemoveAll(dir)
}

// childAppend appends from two descriptors in turn.
func childAppend(args []string) error {
	a, err := os.OpenFile(args[0], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	b, err := os.OpenFile(args[0], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	var want []byte
	for i := range 500 {
		line := fmt.Appendf(nil, "line %d\n", i)
		want = append(want, line...)
		f := a
		if i%2 == 1 {
			f = b
		}
		if _, err := f.Write(line); err != nil {
			return err
		}
	}
	if err := check(a.Close(), b.Close()); err != nil {
		return err
	}
	got, err := os.ReadFile(args[0])
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%d bytes differ from the %d appended", len(got), len(want))
	}
	return err
}

func childWrite1000(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	b := make([]byte, 512)
	for range 1000 {
		if n, err := unix.Write(int(f.Fd()), b); n != len(b) || err != nil {
			return fmt.Errorf("wrote %d: %w", n, err)
		}
	}
	return f.Close()
}

func childReadIs(args []string) error {
	b, err := os.ReadFile(args[0])
	if err == nil && string(b) != args[1] {
		err = fmt.Errorf("read %q, want %q", b, args[1])
	}
	return err
}

func childStat(args []string) error {
	for _, p := range args {
		if _, err := os.Stat(p); err != nil {
			return err
		}
	}
	return nil
}

// become takes user, group and supplementary groups "uid,gid,group,…".
func become(who string) error {
	var ids []int
	for _, s := range strings.Split(who, ",") {
		n, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		ids = append(ids, n)
	}
	return check(syscall.Setgroups(ids[2:]), syscall.Setgid(ids[1]), syscall.Setuid(ids[0]))
}

// expect compares an error with the number of the one wanted, 0 for none.
func expect(what string, err error, errno string) error {
	n, _ := strconv.Atoi(errno)
	if n == 0 && err == nil || n != 0 && errors.Is(err, syscall.Errno(n)) {
		return nil
	}
	return fmt.Errorf("%s: %v, want %v", what, err, syscall.Errno(n))
}

func childOpenAs(args []string) error {
	if err := become(args[0]); err != nil {
		return err
	}
	f, err := os.Open(args[1])
	if err == nil {
		_, err = f.Read(make([]byte, 1))
	}
	return expect("open and read", err, args[2])
}

func childCreateAs(args []string) error {
	if err := become(args[0]); err != nil {
		return err
	}
	return expect("create", os.WriteFile(args[1], nil, 0o600), args[2])
}

const signalRounds = 5

// childSignals makes directories, writes and truncates while it gets signals all the time.
func childSignals(args []string) error {
	runtime.LockOSThread()
	tid := unix.Gettid()
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // Go handles it
			time.Sleep(time.Millisecond)
		}
	}()
	fd, err := unix.Open(filepath.Join(args[0], "f"), unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	for i := range signalRounds {
		if err := unix.Mkdir(filepath.Join(args[0], fmt.Sprint("d", i)), 0o700); err != nil {
			return fmt.Errorf("mkdir: %w", err)
		}
		if n, err := unix.Pwrite(fd, make([]byte, 8192), int64(i)*8192); n != 8192 || err != nil {
			return fmt.Errorf("write: %d, %w", n, err)
		}
		if n, err := unix.Pread(fd, make([]byte, 4096), int64(i)*8192); n != 4096 || err != nil {
			return fmt.Errorf("read: %d, %w", n, err)
		}
		if err := unix.Ftruncate(fd, int64(i)); err != nil {
			return fmt.Errorf("ftruncate: %w", err)
		}
	}
	err = unix.Close(fd)
	stop.Store(true)
	<-done
	return err
}

// childHold opens a file, says so, writes when it is told to, and ends when its
// input does.
func childHold(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	fmt.Println("open")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	_, err = f.WriteString("data")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return check(err, f.Close())
}

// childMmap writes through a shared mapping.
func childMmap(args []string) error {
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	size := 64 << 10
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	rand.New(rand.NewSource(1)).Read(m)
	want := bytes.Clone(m)
	if err := check(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m), f.Close()); err != nil {
		return err
	}
	got, err := os.ReadFile(args[0])
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("the file is not what was mapped")
	}
	return err
}

func childSync(args []string) error {
	fd, err := unix.Open(args[0], unix.O_CREAT|unix.O_WRONLY|unix.O_SYNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("sync")); err != nil {
		return err
	}
	unix.Close(fd)
	fd, err = unix.Open(args[0], unix.O_WRONLY|unix.O_DSYNC, 0)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("dsync")); err != nil {
		return err
	}
	return unix.Fsync(fd)
}

// childBigFile writes several MiB in odd pieces and reads them in others.
func childBigFile(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	want := make([]byte, 5<<20+123)
	rand.New(rand.NewSource(2)).Read(want)
	for off, n := 0, 1; off < len(want); off, n = off+n, n*3+1 {
		n = min(n, len(want)-off)
		if _, err := f.WriteAt(want[off:off+n], int64(off)); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	got, err := os.ReadFile(args[0])
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("read %d bytes, wrote %d, they differ", len(got), len(want))
	}
	return err
}

// childLarge writes 8 MiB at once and reads them.
func childLarge(args []string) error {
	want := make([]byte, 8<<20)
	rand.New(rand.NewSource(3)).Read(want)
	if err := os.WriteFile(args[0], want, 0o600); err != nil {
		return err
	}
	got, err := os.ReadFile(args[0])
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("what was read is not what was written")
	}
	return err
}

// childErrno does one thing that must fail in a given way.
func childErrno(args []string) error {
	what, path, errno := args[0], args[1], args[2]
	var err error
	switch what {
	case "stat":
		err = second(os.Stat(path))
	case "mkdir":
		err = unix.Mkdir(path, 0o700) // package os would try again after EINTR
	case "getxattr":
		err = second(unix.Getxattr(path, "user.x", nil))
	case "fallocate":
		f, err2 := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err2 != nil {
			return err2
		}
		err = unix.Fallocate(int(f.Fd()), 0, 0, 1<<20)
	case "ioctl":
		f, err2 := os.Open(path)
		if err2 != nil {
			return err2
		}
		err = second(unix.IoctlGetInt(int(f.Fd()), 0x1234))
	default:
		return fmt.Errorf("no such test: %s", what)
	}
	return expect(what, err, errno)
}
