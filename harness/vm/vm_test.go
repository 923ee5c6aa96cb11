package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"loopnfs/harness/vm/job"
)

func validConfig() Config {
	return Config{
		Kernel: "6.1", MemoryMiB: 64, CPUs: 1, DiskMiB: 16, Limit: time.Minute, Init: "/dev/null",
		Job: job.Job{Command: []string{"true"}}, Handle: func(job.Event) {},
	}
}

func TestValidate(t *testing.T) {
	wire := os.Stdin
	for _, good := range []func(*Config){
		func(*Config) {},
		func(c *Config) { c.MemoryMiB, c.CPUs, c.DiskMiB = 65536, 64, 1<<20 },
		func(c *Config) { c.Job.Disk = "xfs" },
		func(c *Config) { c.Job = job.Job{Serve: &job.Server{}, Address: "10.0.0.1/24"}; c.Wire = wire },
		func(c *Config) { c.Job = job.Job{Load: &job.Load{}} },
		func(c *Config) { c.Files = map[string]string{"..test.sh": "/x", "a b": "/y"} },
	} {
		c := validConfig()
		good(&c)
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for want, bad := range map[string]func(*Config){
		"give 64 to 65536":                func(c *Config) { c.MemoryMiB = 63 },
		"65537 MiB of memory":             func(c *Config) { c.MemoryMiB = 65537 },
		"give 1 to 64":                    func(c *Config) { c.CPUs = 0 },
		"65 CPUs":                         func(c *Config) { c.CPUs = 65 },
		"disk of 15 MiB":                  func(c *Config) { c.DiskMiB = 15 },
		"disk of 1048577 MiB":             func(c *Config) { c.DiskMiB = 1<<20 + 1 },
		"lives for 0s":                    func(c *Config) { c.Limit = 0 },
		"lives for -1s":                   func(c *Config) { c.Limit = -time.Second },
		"ext4 or xfs":                     func(c *Config) { c.Job.Disk = "vfat" },
		"give it a command":               func(c *Config) { c.Job.Command = nil },
		"give a wire and":                 func(c *Config) { c.Job.Address = "10.0.0.1/24" },
		"the address \"\"":                func(c *Config) { c.Wire = wire },
		"the address \"10.0.0.1\"":        func(c *Config) { c.Wire, c.Job.Address = wire, "10.0.0.1" },
		"the address \"fe80::1/64\"":      func(c *Config) { c.Wire, c.Job.Address = wire, "fe80::1/64" },
		"cannot be called \"job.json\"":   func(c *Config) { c.Files = map[string]string{"job.json": "/x"} },
		"cannot be called \"../x\"":       func(c *Config) { c.Files = map[string]string{"../x": "/x"} },
		"cannot be called \"..\"":         func(c *Config) { c.Files = map[string]string{"..": "/x"} },
		"cannot be called \"\"":           func(c *Config) { c.Files = map[string]string{"": "/x"} },
		"cannot be called \"/\"":          func(c *Config) { c.Files = map[string]string{"/": "/x"} },
		"cannot be called \"directory/\"": func(c *Config) { c.Files = map[string]string{"directory/": "/x"} },
	} {
		c := validConfig()
		bad(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestGuestsOfAWireHaveAddressesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, address := range []string{"10.0.0.1/24", "10.0.0.2/24", "10.0.0.12/24", "10.0.1.2/24"} {
		c := Config{Wire: os.Stdin, Job: job.Job{Address: address}}
		mac, err := c.mac()
		if err != nil || seen[mac] {
			t.Errorf("%s: %s, %v", address, mac, err)
		}
		seen[mac] = true
	}
}

// listenTo returns what is made of the output of a guest.
func listenTo(output io.Reader) (events []job.Event, l listened) {
	g := &guest{cfg: &Config{Handle: func(e job.Event) { events = append(events, e) }}}
	l = g.listen(output)
	return events, l
}

func TestListen(t *testing.T) {
	huge := fmt.Sprintf(`{"Say":%q}`, strings.Repeat("x", 3*maxLine))
	full := fmt.Sprintf(`{"Say":%q}`, strings.Repeat("x", maxLine-len(`{"Say":""}`)-1))
	for _, c := range []struct {
		name, output string
		events       int
		want         listened
	}{
		{"nothing", "", 0, listened{}},
		{"the firmware", "\x1bc\x1b[?7lSeaBIOS (version 1.16)\r\n\x00\xff\n\n", 0, listened{}},
		{"a command", `{"Say":"x"}` + "\n" + `{"Exit":3}` + "\n", 2, listened{end: true}},
		{"a load", `{"Result":{"Outcome":"hung"}}` + "\r\n", 1, listened{end: true}},
		{"an error", `{"Error":"no disk"}` + "\n", 1, listened{err: "no disk"}},
		{"an error, then more", `{"Error":"no disk"}` + "\n" + `{"Say":"x"}` + "\n", 2, listened{err: "no disk"}},
		{"garbage between", `{"Say":` + "\n[1,2]\n\"s\"\n" + `{"Exit":"x"}` + "\n" + `{"Exit":0}` + "\n", 1, listened{end: true}},
		{"half a line", `{"Say":"x"}` + "\n" + `{"Exit":0`, 1, listened{}},
		{"a line without its end", `{"Say":"x"}` + "\n" + `{"Exit":0}`, 1, listened{}},
		{"a huge line", huge + "\n" + `{"Exit":0}` + "\n", 1, listened{end: true}},
		{"only a huge line", huge, 0, listened{}},
		{"the longest line", full + "\n" + `{"Exit":0}` + "\n", 2, listened{end: true}},
	} {
		events, got := listenTo(strings.NewReader(c.output))
		if len(events) != c.events || got != c.want {
			t.Errorf("%s: %d events, %+v", c.name, len(events), got)
		}
	}
}

// Events are told when they come, not when a buffer is full.
func TestListenDoesNotWait(t *testing.T) {
	out, in := io.Pipe()
	heard := make(chan job.Event)
	g := &guest{cfg: &Config{Handle: func(e job.Event) { heard <- e }}}
	done := make(chan listened)
	go func() { done <- g.listen(out) }()
	for _, say := range []string{"one", "two"} {
		fmt.Fprintf(in, "{\"Say\":%q}\n", say)
		if e := <-heard; e.Say != say {
			t.Errorf("got %+v", e)
		}
	}
	in.Close()
	<-done
}

func TestJobArchive(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("n", 200)
	files := map[string]string{
		"loopnfs": write(t, filepath.Join(dir, "a"), []byte("program")), "empty": write(t, filepath.Join(dir, "b"), nil),
		long: write(t, filepath.Join(dir, "c"), []byte("x")), "zz": "/dev/null",
	}
	want := job.Job{Disk: "xfs", Command: []string{"sh", "-c", "echo \"ä\x01\n\""}, Modules: []string{"nfs"}}
	var b bytes.Buffer
	if err := writeJob(&b, want, files); err != nil {
		t.Fatal(err)
	}
	if b.Len()%512 != 0 {
		t.Errorf("%d bytes are not a disk", b.Len())
	}
	got, last := map[string]string{}, ""
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != job.Name && h.Mode != 0o755 {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
		got[h.Name], last = string(data), h.Name
	}
	if last != job.Name || len(got) != len(files)+1 || got["loopnfs"] != "program" || got[long] != "x" {
		t.Errorf("the archive has %q, %s last", got, last)
	}
	var back job.Job
	if err := json.Unmarshal([]byte(got[job.Name]), &back); err != nil || !slices.Equal(back.Command, want.Command) || back.Disk != "xfs" {
		t.Errorf("got %+v, %v", back, err)
	}
	if err := writeJob(io.Discard, want, map[string]string{"x": "/nonexistent/tool"}); err == nil || !strings.Contains(err.Error(), "tool") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// bootWith boots a guest of which QEMU is a script.
func bootWith(t *testing.T, ctx context.Context, script string, change func(*Config)) error {
	t.Helper()
	fakeQEMU(t, script)
	c := validConfig()
	change(&c)
	return boot(ctx, &c, bareKernel(t), "/a,b", "tcg")
}

func unchanged(*Config) {}

func TestHowAGuestEnds(t *testing.T) {
	for script, want := range map[string]string{
		`echo '{"Exit":3}'`:                 "",
		`echo '{"Error":"no disk"}'`:        "no disk",
		`echo '{"Say":"x"}'`:                "the guest ended before its job did",
		`echo no such machine >&2; exit 1`:  "qemu: exit status 1: no such machine",
		`echo '{"Error":"x"}'; kill -9 $$`:  "signal: killed",
		`echo Oops. >/dev/fd/6; echo "{}" `: "the end of its console:\nOops.",
	} {
		err := bootWith(t, t.Context(), script, unchanged)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", script, err)
		}
	}
}

func TestAGuestThatDoesNotEndInTime(t *testing.T) {
	err := bootWith(t, t.Context(), "exec sleep 60", func(c *Config) { c.Limit = 50 * time.Millisecond })
	if err == nil || !strings.Contains(err.Error(), "did not end within 50ms") {
		t.Errorf("got %v", err)
	}
}

func TestAGuestIsCancelled(t *testing.T) {
	why := errors.New("somebody had enough")
	for _, cause := range []error{nil, why} {
		ctx, cancel := context.WithCancelCause(t.Context())
		err := bootWith(t, ctx, `echo '{"Say":"up"}'; exec sleep 60`, func(c *Config) {
			c.Handle = func(job.Event) { cancel(cause) }
		})
		want := cause
		if want == nil {
			want = context.Canceled
		}
		if !errors.Is(err, want) {
			t.Errorf("cancelled because of %v: %v", cause, err)
		}
	}
}

// What the kernel said is there for whoever asks for it, however the guest ended.
func TestConsole(t *testing.T) {
	var console strings.Builder
	err := bootWith(t, t.Context(), `echo Linux version >/dev/fd/6; exit 1`, func(c *Config) { c.Console = &console })
	if err == nil || console.String() != "Linux version\n" {
		t.Errorf("%q, %v", console.String(), err)
	}
}

// Disks have no name already while they are filled, which takes a while: a
// process that is killed leaves nothing.
func TestDisksHaveNoName(t *testing.T) {
	g := &guest{cfg: &Config{}}
	defer g.close()
	for i := range 2 {
		name, err := g.file(func(f *os.File) error {
			if _, err := os.Stat(f.Name()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is there: %v", f.Name(), err)
			}
			_, err := f.WriteString("x")
			return err
		})
		if want := fmt.Sprintf("/dev/fd/%d", 3+i); err != nil || name != want || len(g.inherited) != i+1 {
			t.Errorf("%s, %v, want %s", name, err, want)
		}
	}
	full := errors.New("no space")
	if _, err := g.file(func(*os.File) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

func TestArguments(t *testing.T) {
	c := validConfig()
	c.Wire, c.Job.Address = os.Stdin, "10.0.0.2/24"
	g := &guest{cfg: &c}
	defer g.close()
	args, err := g.args(bareKernel(t), "/cache,readonly=on/root", "tcg")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"file=/cache,,readonly=on/root,if=virtio,format=raw,snapshot=on,cache=unsafe",
		"socket,id=wire,fd=7", "virtio-net-pci,netdev=wire,romfile=,mac=52:54:0a:00:00:02", "-no-reboot",
	} {
		if !slices.Contains(args, want) {
			t.Errorf("no %s in %q", want, args)
		}
	}
	if g.inherited[4] != c.Wire {
		t.Error("descriptor 7 of QEMU is not the wire")
	}
	c.Job.Modules = []string{"tulip"}
	if _, err := (&guest{cfg: &c}).args(bareKernel(t), "", "tcg"); err == nil || !strings.Contains(err.Error(), "tulip") {
		t.Errorf("a module that is not there: %v", err)
	}
}

func TestTheRootImageIsNotBuiltWithoutQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	cache := t.TempDir()
	t.Setenv("LOOPNFS_CACHE", cache)
	c := validConfig()
	c.Say = t.Logf
	if _, err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "apt install qemu-system-x86") {
		t.Errorf("got %v", err)
	}
	if left := names(t, cache); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
