package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"loopnfs/harness/vm/job"
	"loopnfs/harness/work"
)

func TestField(t *testing.T) {
	const meminfo = "MemTotal:         186532 kB\nMemFree:    5 kB\nNotMemFree: 9 kB\nHuge: 99999999999999999999 kB\nNone:\nLast: 7"
	for name, want := range map[string]int64{
		"MemTotal:": 186532, "MemFree:": 5, "NotMemFree:": 9, "None:": 0, "Last:": 7, "Dirty:": 0, "Free:": 0, "Huge:": 1<<63 - 1,
	} {
		if got := field([]byte(meminfo), name); got != want {
			t.Errorf("%s %d, want %d", name, got, want)
		}
	}
	const vmstat = "pgscan_direct 12\npgscan_direct_throttle 3\noom_kill 1\n"
	for name, want := range map[string]int64{"pgscan_direct ": 12, "pgscan_direct_throttle ": 3, "oom_kill ": 1, "pgscan ": 0} {
		if got := field([]byte(vmstat), name); got != want {
			t.Errorf("%s %d, want %d", name, got, want)
		}
	}
	if got := field(nil, "x"); got != 0 {
		t.Errorf("in nothing: %d", got)
	}
}

func TestTCPLosses(t *testing.T) {
	const netstat = "TcpExt: SyncookiesSent TCPTimeouts TCPLostRetransmit PFMemallocDrop TCPHPHits Extra\n" +
		"TcpExt: 1 2 3 4 5\n" +
		"IpExt: InDropped TCPTimeouts\nIpExt: 7 8\n"
	got := tcpLosses([]byte(netstat))
	if want := (losses{"TCPTimeouts": 2, "TCPLostRetransmit": 3, "PFMemallocDrop": 4}); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	for _, damaged := range []string{
		"", "TcpExt:", "TcpExt: TCPTimeouts", "TcpExt:\nTcpExt: 1 2 3", "TcpExt: TCPTimeouts\nTcpExt: many\n", "\n\n \nIpExt: 1",
	} {
		if got := tcpLosses([]byte(damaged)); len(got) > 0 {
			t.Errorf("%q: %v", damaged, got)
		}
	}
}

func TestFrame(t *testing.T) {
	for line, want := range map[string]string{
		"[<0>] wait_on_commit+0x4a/0x80 [nfs]\n":        "wait_on_commit",
		"[<0>] __alloc_pages_slowpath.constprop.0+0x1a": "__alloc_pages_slowpath.constprop.0",
		"[<0>] 0xffffffffffffffff\n":                    "0xffffffffffffffff",
		"":                                              "",
		"[<0>]\n":                                       "",
		"garbage+0x1/0x2":                               "",
	} {
		if got := frame(line); got != want {
			t.Errorf("%q: %q", line, got)
		}
	}
}

// proc makes a /proc/PID/task/TID of a test's own.
func proc(t *testing.T, stat, stack string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"stat": stat, "stack": stack} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBlocked(t *testing.T) {
	const waits, reclaims = "[<0>] wait_on_commit+0x4a/0x80 [nfs]\n", "[<0>] shrink_lruvec+0x1/0x2\n[<0>] try_to_free_pages+0x1/0x2\n"
	for _, c := range []struct {
		stat, stack string
		want        *job.Stack
	}{
		{"7 (nfsd) D 2 0", waits, &job.Stack{PID: 7, Comm: "nfsd", State: "D", Frames: []string{"wait_on_commit"}}},
		{"8 ((sd-pam)) D 2 0", waits, &job.Stack{PID: 8, Comm: "(sd-pam)", State: "D", Frames: []string{"wait_on_commit"}}},
		{"9 (a) S 1 () D 2 0", waits, &job.Stack{PID: 9, Comm: "a) S 1 (", State: "D", Frames: []string{"wait_on_commit"}}},
		{"10 () R 2 0", reclaims, &job.Stack{PID: 10, State: "R", Frames: []string{"shrink_lruvec", "try_to_free_pages"}}},
		{"11 (runs) R 2 0", waits, nil},
		{"12 (sleeps) S 2 0", waits, nil},
		{"13 (hidden) D 2 0", "", nil},
		{"", waits, nil}, {"14", waits, nil}, {"15 (x)", waits, nil}, {"16 (x) ", waits, nil}, {")(", waits, nil},
		{"x) D (", waits, nil}, {"many (x) D 1", waits, nil},
	} {
		got, ok := blocked(proc(t, c.stat, c.stack))
		if ok != (c.want != nil) {
			t.Errorf("%q: %v, %+v", c.stat, ok, got)
		} else if ok && (got.PID != c.want.PID || got.Comm != c.want.Comm || got.State != c.want.State || !slices.Equal(got.Frames, c.want.Frames)) {
			t.Errorf("%q: %+v", c.stat, got)
		}
	}
	if s, ok := blocked(proc(t, "7 (deep) D 2", strings.Repeat(waits, 3*maxFrames))); !ok || len(s.Frames) != maxFrames {
		t.Errorf("%d frames, %v", len(s.Frames), ok)
	}
	if _, ok := blocked("/proc/self/nonexistent"); ok {
		t.Error("a task that is gone is blocked")
	}
}

func TestTaskFlags(t *testing.T) {
	for stat, want := range map[string]uint64{
		"7 (loopnfs) S 1 7 7 0 -1 1573120 0 0":            1573120,
		"7 (a) S 1 2 3 4 5 6) S 1 7 7 0 -1 4194560 0 0\n": 4194560,
		"7 () R 1 7 7 0 -1 0":                             0,
	} {
		if got, err := taskFlags([]byte(stat)); err != nil || got != want {
			t.Errorf("%q: %d, %v", stat, got, err)
		}
	}
	for _, bad := range []string{"", "7 (x) S 1 7 7 0 -1", "7 (x) S 1 7 7 0 -1 many", "7 x S 1 7 7 0 -1 5"} {
		if got, err := taskFlags([]byte(bad)); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
}

func TestCountThreads(t *testing.T) {
	all, without, err := countThreads(os.Getpid())
	if err != nil || all < 1 || without != all {
		t.Errorf("%d threads, %d without, %v", all, without, err)
	}
	if _, _, err := countThreads(1 << 30); err == nil {
		t.Error("a process that is not there has threads")
	}
}

func TestKilledByTheOOMKiller(t *testing.T) {
	const log = "<6>[ 9.1] oom-kill:constraint=CONSTRAINT_NONE,task=hog,pid=243,uid=0\n" +
		"<3>[ 9.1] Out of memory: Killed process 243 (hog) total-vm:9kB, anon-rss:1kB, UID:0 pgtables:60kB oom_score_adj:0\n" +
		"<6>[ 9.2] oom_reaper: reaped process 243 (hog), now anon-rss:0kB\n" +
		"<3>[ 9.3] Memory cgroup out of memory: Killed process 7 ((sd-pam)) total-vm:9kB, anon-rss:1kB\n" +
		"<3>[ 9.4] Out of memory: Killed process 8 (a) total) total-vm:9kB\n" +
		"<3>[ 9.5] Out of memory: Killed process 9 (cut of"
	if got, want := killedIn([]byte(log)), []string{"hog", "(sd-pam)", "a) total"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := killedIn(nil); len(got) > 0 {
		t.Errorf("in nothing: %q", got)
	}
}

// disk makes a job disk of pairs of names and texts.
func disk(t *testing.T, files ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o755, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	j, err := unpack(disk(t, "tool", "program", job.Name, `{"Disk":"xfs","Command":["true"]}`), dir)
	if err != nil || j.Disk != "xfs" || !slices.Equal(j.Command, []string{"true"}) {
		t.Errorf("got %+v, %v", j, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "tool"))
	if st, _ := os.Stat(filepath.Join(dir, "tool")); err != nil || string(text) != "program" || st.Mode().Perm()&0o111 == 0 {
		t.Errorf("the tool is %q, %v", text, err)
	}
	damaged := filepath.Join(dir, "damaged")
	if err := os.WriteFile(damaged, bytes.Repeat([]byte("x"), 1024), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"no disk": filepath.Join(dir, "none"), "garbage": damaged, "no job": disk(t, "tool", "x"),
		"half a job": disk(t, job.Name, `{"Disk":`), "a directory that is not there": disk(t, "a/b", "x", job.Name, "{}"),
	} {
		if _, err := unpack(path, dir); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// hearHost returns what is said during the test.
func hearHost(t *testing.T) func() []job.Event {
	t.Helper()
	var b bytes.Buffer
	host.enc = json.NewEncoder(&b)
	t.Cleanup(func() { host.enc = nil })
	return func() (events []job.Event) {
		host.mu.Lock()
		defer host.mu.Unlock()
		for dec := json.NewDecoder(&b); dec.More(); {
			var e job.Event
			if err := dec.Decode(&e); err != nil {
				t.Fatal(err)
			}
			events = append(events, e)
		}
		return events
	}
}

// Commands may write anything, and writes end anywhere, also within a letter.
func TestOutputIsPassedOnByteForByte(t *testing.T) {
	heard := hearHost(t)
	want := []byte("\xc3\x28\x00\xff\r\n\xe2\x82<&>")
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		passOn(out, nil)
		close(done)
	}()
	for _, b := range want {
		if _, err := in.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	in.Close()
	<-done
	var got []byte
	for _, e := range heard() {
		got = append(got, e.Output...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// slowHost takes its time, twice as long as is waited for silence.
type slowHost struct{ to *bytes.Buffer }

func (h slowHost) Write(b []byte) (int, error) {
	if h.to.Len() == 0 {
		time.Sleep(2 * quiet)
	}
	return h.to.Write(b)
}

// Who is left behind by a command holds its output open, and a slow host is no
// reason to lose what the command said before.
func TestOutputOfACommandThatLeftSomebody(t *testing.T) {
	var b bytes.Buffer
	host.enc = json.NewEncoder(slowHost{&b})
	defer func() { host.enc = nil }()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.Write(bytes.Repeat([]byte("x"), 60000)); err != nil { // fits into the pipe
		t.Fatal(err)
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		passOn(out, ended)
		close(done)
	}()
	close(ended)
	_ = out.SetReadDeadline(time.Now().Add(quiet))
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it waits for who was left behind")
	}
	total := 0
	for dec := json.NewDecoder(&b); dec.More(); {
		var e job.Event
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		total += len(e.Output)
	}
	if total != 60000 {
		t.Errorf("%d bytes arrived", total)
	}
}

func TestExitCode(t *testing.T) {
	for script, want := range map[string]int{"true": 0, "exit 7": 7, "kill -9 $$": 137, "kill -TERM $$": 143} {
		cmd := exec.Command("sh", "-c", script)
		_ = cmd.Run()
		if got := exitCode(cmd.ProcessState); got != want {
			t.Errorf("%s: %d", script, got)
		}
	}
}

func testRun() *run {
	r := &run{
		cfg: &job.Load{}, mem: newMeminfo(), stat: newVmstat(), net: openProc("/proc/net/netstat"),
		worker: &worker{done: make(chan struct{})}, start: time.Now().Add(-time.Second), moved: time.Now(),
	}
	r.worker.progress.Store(&work.Progress{Bytes: 100, Written: 200, MaxLatencyMs: 300})
	return r
}

func TestSample(t *testing.T) {
	heard := hearHost(t)
	r := testRun()
	r.sample()
	rate := r.res.Rate
	if r.res.Bytes != 100 || rate < 50 || rate > 200 || r.res.Latency < 0.3 || r.res.Seconds < 1 {
		t.Errorf("got %+v", r.res)
	}
	seconds := r.res.Seconds
	r.worker.progress.Store(&work.Progress{Bytes: 200, Written: 200, MaxLatencyMs: 9000})
	close(r.worker.done)
	time.Sleep(5 * time.Millisecond)
	r.sample()
	if r.res.Seconds != seconds || r.res.Bytes != 200 || r.res.Latency != 9 {
		t.Errorf("after its end: %+v", r.res)
	}
	if events := heard(); len(events) != 2 || events[0].Sample == nil || events[0].Sample.Bytes != 200 || events[0].Sample.AvailableKB == 0 {
		t.Errorf("heard %+v", events)
	}
}

// A load that is over before the first sample has a rate, and a result that can
// be told: JSON has no infinity.
func TestSampleOfALoadThatIsOver(t *testing.T) {
	heard := hearHost(t)
	r := testRun()
	close(r.worker.done)
	r.sample()
	say(job.Event{Result: r.result()})
	events := heard()
	if len(events) != 2 || events[1].Result == nil || events[1].Result.Rate <= 0 || events[1].Result.Latency != 0.3 {
		t.Errorf("heard %+v", events)
	}
}

// The script goes on while the result is told.
func TestNotesDuringTheResult(t *testing.T) {
	r := testRun()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			r.note("%d", 1)
		}
	}()
	for range 100 {
		if _, err := json.Marshal(r.result()); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	if n := len(r.result().Notes); n != 100 {
		t.Errorf("%d notes", n)
	}
}

func TestScripts(t *testing.T) {
	for name := range scripts {
		s, err := findScript(name)
		if err != nil || s.prepare == nil || s.finish == nil || s.reopen == nil || s.close == nil || s.during == nil {
			t.Errorf("%q: %+v, %v", name, s, err)
		}
	}
	if _, err := findScript("nonexistent"); err == nil {
		t.Error("a script that is not there was found")
	}
}

func TestServers(t *testing.T) {
	for _, c := range []struct {
		cfg             job.Server
		source, options string
	}{
		{job.Server{Name: "knfsd"}, "127.0.0.1:/srv/export", "vers=3,nolock,proto=tcp,hard,port=2049"},
		{job.Server{Name: "ganesha"}, "127.0.0.1:/srv/export", "vers=3,nolock,proto=tcp,hard,port=2049,mountproto=tcp,mountport=20048"},
		{job.Server{Name: "gonfs", Host: "10.0.0.2"}, "10.0.0.2:/", "vers=3,nolock,proto=tcp,hard,port=2049,mountproto=tcp,mountport=2049"},
	} {
		s := &server{cfg: c.cfg}
		if s.source() != c.source || s.mountOptions() != c.options || s.remote() != (c.cfg.Host != "") {
			t.Errorf("%+v: %s, %s", c.cfg, s.source(), s.mountOptions())
		}
	}
	with := (&server{cfg: job.Server{Name: "loopnfs", Without: []string{"a", "b"}}}).loopnfsArgs()
	if with := with[len(with)-2:]; !slices.Equal(with, []string{"--without", "a,b"}) {
		t.Errorf("got %q", with)
	}
}

func TestVerbs(t *testing.T) {
	for _, args := range [][]string{nil, {"hog"}, {"sing", "loud"}, {"hog", "much"}, {"churn", ""}} {
		if err := verb(args); err == nil {
			t.Errorf("%q is no error", args)
		}
	}
}
