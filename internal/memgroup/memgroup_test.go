package memgroup

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"
)

const (
	v1Mount   = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
	v2Mount   = "41 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	otherV1   = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu\n"
	ordinary  = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw,memory\n"
	noneV1    = "9223372036854771712\n" // pages of 4 KiB
	noneV1Big = "9223372036854710272\n" // of 64 KiB
)

func TestFind(t *testing.T) {
	for _, x := range []struct {
		name, cgroup, mountinfo string
		files                   map[string]string
		dir                     string
		limit                   int64
		levels                  int
		hidden                  bool
	}{
		{name: "version 1", cgroup: "9:name=systemd:/\n4:memory:/a/b\n0::/x\n", mountinfo: ordinary + otherV1 + v1Mount,
			files: map[string]string{"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "117440512\n"},
			dir:   "/sys/fs/cgroup/memory/a/b", limit: 112 << 20, levels: 3},
		{name: "several controllers of version 1", cgroup: "4:cpuset,memory,pids:/a\n",
			mountinfo: "35 31 0:32 / /c rw - cgroup cgroup rw,cpuset,memory,pids\n",
			files:     map[string]string{"c/a/memory.limit_in_bytes": "5"}, dir: "/c/a", limit: 5, levels: 2},
		{name: "no limit in version 1", cgroup: "4:memory:/a\n", mountinfo: v1Mount,
			files: map[string]string{"sys/fs/cgroup/memory/a/memory.limit_in_bytes": noneV1, "sys/fs/cgroup/memory/memory.limit_in_bytes": noneV1Big},
			dir:   "/sys/fs/cgroup/memory/a", limit: Unlimited, levels: 2},
		{name: "version 2", cgroup: "0::/a.slice/b.service\n", mountinfo: v2Mount,
			files: map[string]string{"sys/fs/cgroup/a.slice/b.service/memory.max": "4096\n", "sys/fs/cgroup/a.slice/b.service/memory.high": "max\n"},
			dir:   "/sys/fs/cgroup/a.slice/b.service", limit: 4096, levels: 3},
		{name: "memory.high of version 2", cgroup: "0::/a\n", mountinfo: v2Mount,
			files: map[string]string{"sys/fs/cgroup/a/memory.max": "max\n", "sys/fs/cgroup/a/memory.high": "8192\n"},
			dir:   "/sys/fs/cgroup/a", limit: 8192, levels: 2},
		{name: "a limit above", cgroup: "0::/pod/c/leaf\n", mountinfo: v2Mount,
			files: map[string]string{"sys/fs/cgroup/pod/c/leaf/memory.max": "max\n", "sys/fs/cgroup/pod/memory.max": "12288\n", "sys/fs/cgroup/pod/c/memory.max": "16384\n"},
			dir:   "/sys/fs/cgroup/pod/c/leaf", limit: 12288, levels: 4},
		{name: "a namespace", cgroup: "0::/\n", mountinfo: v2Mount,
			files: map[string]string{"sys/fs/cgroup/memory.max": "4096\n"}, dir: "/sys/fs/cgroup", limit: 4096, levels: 1},
		{name: "a container without a namespace", cgroup: "4:memory:/docker/1f\n",
			mountinfo: "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			files:     map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "7"}, dir: "/sys/fs/cgroup/memory", limit: 7, levels: 1},
		{name: "a group that begins like the mount", cgroup: "4:memory:/docker/1fe\n",
			mountinfo: "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", hidden: true},
		{name: "two mounts: that which shows more", cgroup: "4:memory:/d/1\n",
			mountinfo: v1Mount + "36 31 0:32 /d/1 /mnt rw - cgroup cgroup rw,memory\n",
			files:     map[string]string{"sys/fs/cgroup/memory/d/1/memory.limit_in_bytes": "7", "mnt/memory.limit_in_bytes": "7"},
			dir:       "/sys/fs/cgroup/memory/d/1", limit: 7, levels: 3},
		{name: "outside of the namespace", cgroup: "0::/../other\n", mountinfo: v2Mount, hidden: true},
		{name: "a mount from outside of the namespace", cgroup: "0::/\n",
			mountinfo: "41 31 0:38 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", hidden: true},
		{name: "both versions, no memory in 2", cgroup: "4:memory:/a\n0::/b\n", mountinfo: v2Mount + v1Mount,
			files: map[string]string{"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9"}, dir: "/sys/fs/cgroup/memory/a", limit: 9, levels: 2},
		{name: "version 2 without the controller", cgroup: "0::/a\n", mountinfo: v2Mount,
			files: map[string]string{"sys/fs/cgroup/a/cgroup.procs": ""}, dir: "/sys/fs/cgroup/a", limit: Unlimited, levels: 2},
		{name: "white space in the name", cgroup: "0::/a b\n", mountinfo: "41 31 0:38 / /c\\040d rw - cgroup2 cgroup2 rw\n",
			files: map[string]string{"c d/a b/memory.max": "1"}, dir: "/c d/a b", limit: 1, levels: 2},
		{name: "a colon in the name", cgroup: "0::/a:b\n", mountinfo: v2Mount,
			files: map[string]string{"sys/fs/cgroup/a:b/memory.max": "1"}, dir: "/sys/fs/cgroup/a:b", limit: 1, levels: 2},
		{name: "nothing mounted", cgroup: "0::/a\n", mountinfo: ordinary, hidden: true},
		{name: "a group that was removed", cgroup: "0::/a (deleted)\n", mountinfo: v2Mount, hidden: true},
		{name: "no control groups", cgroup: "", limit: Unlimited},
		{name: "weird lines", cgroup: "\n:\nx\n0::\n4:memory\n", mountinfo: " - \n- cgroup\n41 31 - cgroup2 x rw\n", limit: Unlimited},
	} {
		t.Run(x.name, func(t *testing.T) {
			root := fstest.MapFS{"proc/7/cgroup": {Data: []byte(x.cgroup)}, "proc/self/mountinfo": {Data: []byte(x.mountinfo)}}
			for name, text := range x.files {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
			info, err := Find(root, "7")
			if x.hidden {
				if !errors.Is(err, errHidden) {
					t.Errorf("%+v, %v: want %v", info, err, errHidden)
				}
				return
			}
			if err != nil || info.Dir != x.dir || info.Limit != x.limit || len(info.Dirs) != x.levels {
				t.Errorf("%+v, %v; want %s, %d bytes, %d levels", info, err, x.dir, x.limit, x.levels)
			}
		})
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"0\n": 0, "42": 42, "max\n": Unlimited, "max": Unlimited, noneV1: Unlimited, noneV1Big: Unlimited,
		"18446744073709551615\n": Unlimited, "99999999999999999999999\n": Unlimited,
		"": -1, "\n": -1, "-1\n": -1, "1 2\n": -1, "maximum": -1, "0x10": -1,
	} {
		n, ok := parseBytes([]byte(text))
		if !ok {
			n = -1
		}
		if n != want {
			t.Errorf("%q: %d, want %d", text, n, want)
		}
	}
}

func TestParseStat(t *testing.T) {
	v1, v2 := versions[1], versions[2]
	one := "cache 99\ninactive_file 1\ndirty 5\ntotal_dirty 30\ntotal_writeback 20\ntotal_inactive_file 100\ntotal_active_file 200\n"
	two := "anon 7\nfile 500\ninactive_file 100\nactive_file 200\nfile_dirty 30\nfile_writeback 20\nworkingset_x\n\n"
	if a, b := v1.parseStat([]byte(one)), v2.parseStat([]byte(two)); a != 250 || b != 250 {
		t.Errorf("version 1: %d, version 2: %d; want 250", a, b)
	}
	if n := v2.parseStat([]byte("file_dirty 9\n")); n != 0 {
		t.Errorf("more is dirty than there is: %d", n)
	}
}

// fakeGroup writes what a group of a version shows, and returns it opened.
func fakeGroup(t *testing.T, version int, reclaimable bool, files map[string]string) (*Group, string) {
	t.Helper()
	dir := t.TempDir()
	names := versions[version]
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	if reclaimable {
		write(t, filepath.Join(dir, names.reclaim), "")
	}
	g, err := open(Info{Version: version, Dir: dir, Dirs: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	return g, dir
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFree(t *testing.T) {
	g, dir := fakeGroup(t, 2, true, map[string]string{"memory.max": "1000\n", "memory.high": "900\n", "memory.current": "600\n",
		"memory.stat": "inactive_file 50\n"})
	defer g.Close()
	check := func(want, is int64) {
		t.Helper()
		if n, err := g.Free(want); n != is || err != nil {
			t.Errorf("%d, %v; want %d", n, err, is)
		}
	}
	check(300, 300) // enough is free: nothing else is counted
	check(301, 350)
	write(t, path.Join(dir, "memory.high"), "max\n") // a limit may change
	check(400, 400)
	write(t, path.Join(dir, "memory.max"), "max\n")
	check(400, Unlimited-600)
	write(t, path.Join(dir, "memory.max"), "500\n") // below what is used
	check(0, -50)
	if n := testing.AllocsPerRun(100, func() { g.Free(Unlimited) }); n != 0 {
		t.Errorf("Free allocates %v times", n)
	}
	if err := g.reclaim(12345); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(g.ReclaimFile()); string(b) != "12345" {
		t.Errorf("%q was written", b)
	}
}

func TestVersion1IsTold0(t *testing.T) {
	g, _ := fakeGroup(t, 1, true, map[string]string{"memory.limit_in_bytes": "1000\n", "memory.usage_in_bytes": "600\n", "memory.stat": ""})
	defer g.Close()
	if err := g.reclaim(12345); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(g.ReclaimFile()); string(b) != "0" {
		t.Errorf("%q was written", b)
	}
}

func TestGroupThatCannotBeReclaimed(t *testing.T) {
	g, _ := fakeGroup(t, 2, false, map[string]string{"memory.max": "1000\n", "memory.current": "600\n", "memory.stat": ""})
	defer g.Close()
	if !errors.Is(g.CannotReclaim(), os.ErrNotExist) {
		t.Errorf("it says %v", g.CannotReclaim())
	}
	if _, err := Start(g, 1, func() error { t.Error("a thread was started"); return nil }); err == nil {
		t.Error("it was started")
	}
}

// memory is a group with so much free; a reclaim makes that so much more.
type memory struct {
	mu       sync.Mutex
	free     int64
	gain     int64
	reclaims int
	block    chan struct{} // if not nil, a reclaim waits for it
}

func (m *memory) Free(int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.free, nil
}

func (m *memory) reclaim(int64) error {
	if m.block != nil {
		<-m.block
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reclaims++
	m.free += m.gain
	return nil
}

// seen returns how often it was reclaimed.
func (m *memory) seen() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reclaims
}

func (m *memory) Close() error { return nil }

func (m *memory) take(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free -= n
}

func startRoom(t *testing.T, m *memory) *Room {
	t.Helper()
	r, err := start(m, 16, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	return r
}

// Who brings in files is never let below nothing, and those who wait get on.
func TestRoomIsMade(t *testing.T) {
	m := &memory{free: 64 << 20, gain: 32 << 20}
	r := startRoom(t, m)
	var wg sync.WaitGroup
	var late atomic.Int64 // a busy machine has the reclaimer wait, too
	for range 16 {
		wg.Go(func() {
			for range 2000 {
				if !r.Enough() && !r.Wait() {
					late.Add(1)
				}
				m.take(10 << 10)
				for began := time.Now(); time.Since(began) < 5*time.Microsecond; {
				}
				if free, _ := m.Free(0); free < 0 {
					t.Error("the limit was met")
				}
			}
		})
	}
	wg.Wait()
	if n := late.Load(); n > 320 {
		t.Errorf("no room was made for %d of 32000", n)
	}
	reclaims := m.seen()
	if s := r.Stats(); s.Reclaims < 5 || reclaims == 0 {
		t.Errorf("%+v, %d reclaims", s, reclaims)
	}
}

// Where nothing can be reclaimed, calls wait a little each, and get on; who can give up
// memory is told.
func TestReclaimInVain(t *testing.T) {
	m := &memory{free: 1 << 10}
	r := startRoom(t, m)
	told := make(chan struct{}, 1)
	r.WhenExhausted(func() {
		select {
		case told <- struct{}{}:
		default:
		}
	})
	for range lookEvery {
		r.Enough()
	}
	if r.Enough() {
		t.Fatal("there is room")
	}
	if r.Wait() {
		t.Error("there is room after the wait")
	}
	<-told
	began := time.Now()
	r.Wait()
	if d := time.Since(began); d > patience/2 {
		t.Errorf("a call waited %v", d)
	}
	if s := r.Stats(); s.InVain == 0 || s.Waits != 2 || s.Waited == 0 {
		t.Errorf("%+v", s)
	}
	m.take(-64 << 20) // somebody else has freed it
	if !r.Wait() || !r.Enough() {
		t.Error("no room")
	}
}

// A reclaim that hangs holds nobody up for good.
func TestReclaimThatHangs(t *testing.T) {
	m := &memory{free: 1 << 10, block: make(chan struct{})}
	r := startRoom(t, m)
	began := time.Now()
	if r.Wait() {
		t.Error("there is room")
	}
	if d := time.Since(began); d < patience || d > 3*patience {
		t.Errorf("it waited %v", d)
	}
	close(m.block)
	if err := r.Stop(); err != nil || !r.Enough() {
		t.Error("there is no room at the end", err)
	}
}

// Version 1 frees all that it can, if it is not told when it is enough.
func TestReclaimIsInterrupted(t *testing.T) {
	r := startRoom(t, &memory{free: 64 << 20})
	r.tid.Store(1 << 30) // there is no such thread, so the signal does no harm
	r.look()
	if r.short.Load() {
		t.Error("there is no room")
	}
	r.tid.Store(0)
}

func TestRoomDoesNotAllocate(t *testing.T) {
	m := &memory{free: 1 << 10}
	r := startRoom(t, m)
	if n := testing.AllocsPerRun(1000, func() { r.Enough() }); n != 0 {
		t.Errorf("Enough allocates %v times", n)
	}
	r.Wait()
	if n := testing.AllocsPerRun(3, func() { r.Wait() }); n >= 1 {
		t.Errorf("Wait allocates %v times", n)
	}
}

func TestPrepareFails(t *testing.T) {
	no := errors.New("no")
	if _, err := start(&memory{}, 1, func() error { return no }); !errors.Is(err, no) {
		t.Error(err)
	}
}

func TestNilRoom(t *testing.T) {
	var r *Room
	if r.Stop() != nil || r.Stats() != (Stats{}) || r.Spare() != Unlimited {
		t.Error("a nil Room is none")
	}
}

// This process's own group can be found and read, whatever it is.
func TestOwnGroup(t *testing.T) {
	info, err := Find(os.DirFS("/"), strconv.Itoa(os.Getpid()))
	t.Logf("%+v, %v", info, err)
	if g, err := Open(); err == nil && g != nil {
		t.Log(g.Free(Unlimited))
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}
