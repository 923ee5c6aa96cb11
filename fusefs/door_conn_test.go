package fusefs

import (
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

// childAsk has the kernel ask for the attributes of a file, as often as it is told.
func childAsk(args []string) error {
	n, err := strconv.Atoi(args[1])
	for range n {
		var st unix.Statx_t
		if e := unix.Statx(unix.AT_FDCWD, args[0], unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st); e != nil {
			return e
		}
	}
	return err
}

// childLargeWrite writes more than is copied out of the buffer that it was read into.
func childLargeWrite(args []string) error {
	return os.WriteFile(args[0], make([]byte, 64<<10), 0o600)
}

// stuckWriter mounts with memory for one WRITE, and returns a process whose WRITE waits
// until it is cancelled.
func stuckWriter(t *testing.T) (m *mounted, writer chan error, kill func()) {
	reached := make(chan struct{}, 8)
	m = mountTest(t, func(f *faultFS, c *DoorConfig) {
		c.MaxInflightBytes = 1
		f.before = func(op *vfs.Op, call string) error {
			if call != "write" {
				return nil
			}
			reached <- struct{}{}
			<-op.Cancel
			return syscall.EINTR
		}
	})
	cmd := childCommand("large-write", m.path("f"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer = make(chan error, 1)
	go func() { writer <- cmd.Wait() }()
	within(t, "the WRITE", reached)
	return m, writer, func() { _ = cmd.Process.Kill() }
}

func within[T any](t *testing.T, what string, c <-chan T) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatal(what, "did not come to an end")
	}
}

// Nobody can listen to the kernel while WRITEs have all buffers: that a writer was
// killed is seen all the same.
func TestDoorWriterIsKilledWithoutBuffers(t *testing.T) {
	_, writer, kill := stuckWriter(t)
	kill()
	within(t, "the killed writer", writer)
}

// Nor does anybody hear that the connection has ended.
func TestDoorEndsWithoutBuffers(t *testing.T) {
	m, writer, _ := stuckWriter(t)
	if err := m.door.Abort(); err != nil {
		t.Error(err)
	}
	within(t, "the writer", writer)
	within(t, "the door", m.door.Done())
}

// What a request that panicked was about to do is nothing to the next one.
func TestDoorNextRequestMayWait(t *testing.T) {
	f, _, _ := doorOver(t)
	s := f.newSlot()
	defer s.close()
	h := rootHeader()
	func() {
		defer func() { _ = recover() }()
		s.begin(opGetAttr, &h)
		s.soon(func() error { panic("for the test") })
	}()
	s.end()
	s.begin(opGetAttr, &h)
	defer s.end()
	if s.op.NoWait {
		t.Error("the next request may not wait")
	}
}

// While nobody leaves the listeners there is one, and a request that waits delays no
// other then, either.
func TestDoorOneListensWhileItIsCalm(t *testing.T) {
	reached := make(chan struct{}, 1)
	m := mountTest(t, func(f *faultFS, _ *DoorConfig) { f.before = stuck(reached) })
	listening := func() int {
		c := m.door.conn
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.listening
	}
	// Who has its reply is not yet back among those who listen.
	listen := func(n int, when string, ask int) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); listening() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d listen %s, want %d", listening(), when, n)
			}
			if ask > 0 {
				inChild(t, "ask", m.path(""), strconv.Itoa(ask))
			}
		}
	}
	c := startHold(t, m.path("f"))
	listen(doorListeners, "after requests that left", 0)
	listen(1, "while it is calm", 4*calmAfter)
	c.release()
	within(t, "the WRITE", reached)
	asked := make(chan error, 1)
	go func() { asked <- childCommand("ask", m.path(""), "1").Run() }()
	within(t, "another request", asked)
	_ = c.kill()
	_ = c.wait(t)
}

// Whoever copies much leaves the listeners before, or others would wait for it.
func TestDoorLargeDataIsNotForListeners(t *testing.T) {
	f, fh, _ := doorOver(t)
	f.conn = &doorConn{fs: f, inWork: map[uint64]*doorSlot{}}
	s := f.newSlot()
	defer s.close()
	for _, size := range []int{inlineData, 2 * inlineData} {
		for name, call := range map[string]func() fuse.Status{
			"WRITE": func() fuse.Status {
				_, st := f.Write(s, &fuse.WriteIn{InHeader: rootHeader(), Fh: fh}, make([]byte, size))
				return st
			},
			"READ": func() fuse.Status {
				return f.Read(s, &fuse.ReadIn{InHeader: rootHeader(), Fh: fh, Size: uint32(size)})
			},
		} {
			f.conn.listening = 2
			s.wire.listens, s.wire.large = true, true
			st := call()
			s.end()
			if left := !s.wire.listens; st != fuse.OK || left != (size > inlineData) {
				t.Errorf("%s of %d bytes: %v, has left: %v", name, size, st, left)
			}
		}
	}
}
