package nfsmount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// The cap is there before the mount is.
func TestLoopBackMountIsCapped(t *testing.T) {
	f := newFake(t)
	m, err := f.mount(f.config())
	if err != nil {
		t.Fatal(err)
	}
	if want := (Cap{Percent: 10, Bytes: 1 << 30 / 10, Strict: true}); m.Cap != want || !m.LoopBack || len(m.Notes) != 0 {
		t.Errorf("%+v, want %+v", m, want)
	}
	if s := f.seen; s["max_ratio"] != "10" || s["min_ratio"] != "1" || s["strict_limit"] != "1" {
		t.Errorf("when it was attached, the bdi was %v", s)
	}
	if f.attached != "/usr" || f.closed != 1 {
		t.Errorf("attached to %q, closed %d times", f.attached, f.closed)
	}
}

func TestRemoteMountIsNotCapped(t *testing.T) {
	f := newFake(t)
	f.peer = "192.0.2.1"
	m, err := f.mount(f.config())
	if err != nil || m.LoopBack || m.Cap != (Cap{}) || f.seen["max_ratio"] != "0" || f.attached == "" {
		t.Errorf("%+v, %v; bdi %v", m, err, f.seen)
	}
	// Unless the server may come here.
	c := f.config()
	c.LoopBack = true
	if m, err = f.mount(c); err != nil || !m.LoopBack || f.seen["max_ratio"] != "10" {
		t.Errorf("%+v, %v; bdi %v", m, err, f.seen)
	}
}

// What cannot be set is told, and the mount is there.
func TestNoCap(t *testing.T) {
	f := newFake(t)
	bdi := filepath.Join(f.Root, "sys/class/bdi", device)
	if err := os.Rename(filepath.Join(bdi, "strict_limit"), filepath.Join(bdi, "other")); err != nil {
		t.Fatal(err)
	}
	m, err := f.mount(f.config())
	if err != nil || m.Cap.Strict || len(m.Notes) != 1 || !strings.Contains(m.Notes[0], "no strict_limit") || f.attached == "" {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := os.Stat(filepath.Join(bdi, "strict_limit")); err == nil {
		t.Fatal("the test has lost its point: the file was made")
	}
	if err := os.RemoveAll(bdi); err != nil {
		t.Fatal(err)
	}
	m, err = f.mount(f.config())
	if err != nil || len(m.Notes) != 1 || !strings.Contains(m.Notes[0], "not capped") {
		t.Fatalf("%+v, %v", m, err)
	}
}

func TestCapPercent(t *testing.T) {
	for limit, want := range map[int64]int{
		0: 10, 14 << 20: 25, 24 << 20: 17, 100 << 20: 10, 2 << 30: 10, 5 << 30: 5, 18 << 30: 1, 1 << 40: 1,
	} {
		if got := capPercent(limit); got != want {
			t.Errorf("%d MiB: %d %%, want %d", limit>>20, got, want)
		}
	}
}

func TestParams(t *testing.T) {
	f := newFake(t)
	for _, x := range []struct {
		peer    string
		options string
		want    string // "-key" is not there
	}{
		{"127.0.0.1", "", "source=server:/data addr=127.0.0.1 vers=3 proto=tcp port=2049 mountport=2049 hard nolock timeo=1800 nconnect=1 wsize=1048576"},
		{"192.0.2.1", "", "addr=192.0.2.1 -timeo -nconnect hard nolock"},
		{"2001:db8::1", "", "addr=2001:db8::1 proto=tcp6 mountproto=tcp6"},
		{"192.0.2.1", "soft,timeo=50,lock", "soft timeo=50 lock -hard -nolock"},
		{"127.0.0.1", "timeo=600,wsize=65536,port=20,nconnect=2", "timeo=600 wsize=65536 port=20 mountport=20 nconnect=2"},
		{"127.0.0.1", "port=20,mountport=30", "port=20 mountport=30"},
		{"127.0.0.1", "vers=3,proto=tcp,defaults,x-systemd.automount,_netdev", "vers=3 proto=tcp -defaults -_netdev"},
		{"127.0.0.1", "timeo=5,timeo=7", "timeo=7"},
	} {
		f.peer = x.peer
		var options []string
		if x.options != "" {
			options = strings.Split(x.options, ",")
		}
		if _, err := f.mount(f.config(options...)); err != nil {
			t.Errorf("%s: %v", x.options, err)
			continue
		}
		for _, w := range strings.Fields(x.want) {
			key, want, _ := strings.Cut(strings.TrimPrefix(w, "-"), "=")
			if got, ok := f.param(key); ok == strings.HasPrefix(w, "-") || got != want {
				t.Errorf("%s, %s: %s: %q, %t", x.peer, x.options, w, got, ok)
			}
		}
	}
}

// An address in the name of the server is one that the kernel can read.
func TestSource(t *testing.T) {
	f := newFake(t)
	for host, want := range map[string]string{"::1": "[::1]:/data", "server": "server:/data"} {
		f.peer = "::1"
		c := f.config()
		c.Host = host
		if _, err := f.mount(c); err != nil {
			t.Fatal(err)
		}
		if got, _ := f.param("source"); got != want {
			t.Errorf("%s: %s", host, got)
		}
	}
	c := f.config()
	c.Export = "/" + strings.Repeat("x", 250)
	_, err := f.mount(c)
	wantError(t, err, "longer than")
}

func TestOptions(t *testing.T) {
	for opts, want := range map[string]int{
		"":                             0,
		"noatime":                      unix.MOUNT_ATTR_NOATIME,
		"noatime,relatime":             0,
		"nosuid,nodev,noexec,suid":     unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		"ro":                           unix.MOUNT_ATTR_RDONLY,
		"ro,rw":                        0,
		"strictatime,nodiratime,nodev": unix.MOUNT_ATTR_STRICTATIME | unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NODEV,
	} {
		o, err := ParseOptions(strings.FieldsFunc(opts, func(r rune) bool { return r == ',' }))
		if err != nil || o.attrs != want || len(o.params) != 0 {
			t.Errorf("%s: %#x, %v, %v", opts, o.attrs, o.params, err)
		}
	}
	for opt, text := range map[string]string{
		"vers=4": "only NFSv3", "nfsvers=4.2": "only NFSv3", "proto=udp": "only TCP", "udp": "only TCP",
		"bg": "background", "remount": "unmount it", "swap": "no such option", "hard=1": "no such option",
		"rsize": "give a value", "timeo=x": "not a number", "timeo=-1": "not a number",
		"sec=" + strings.Repeat("s", 256): "give a value", "": "no such option",
	} {
		_, err := ParseOptions([]string{opt})
		wantError(t, err, text)
	}
	_, err := ParseOptions(make([]string, maxOptions+1))
	wantError(t, err, "more than")
}

func TestRefusals(t *testing.T) {
	for _, x := range []struct {
		name string
		make func(f *fake) Config
		want string
	}{
		{"soft", func(f *fake) Config { return f.config("soft") }, "throws away"},
		{"softerr", func(f *fake) Config { return f.config("softerr") }, "throws away"},
		{"not there", func(f *fake) Config { c := f.config(); c.Mountpoint = "/none"; return c }, "mkdir -p /none"},
		{"a file", func(f *fake) Config { c := f.config(); c.Mountpoint = "/etc/passwd"; return c }, "not a directory"},
		{"mounted", func(f *fake) Config { c := f.config(); c.Mountpoint = "/"; return c }, "is in use"},
		{"swap", func(f *fake) Config {
			f.write("etc/fstab", "# /usr/x none swap sw\nUUID=1 none swap sw\n/usr/a\\040b none swap sw 0 0\n")
			return f.config()
		}, "/etc/fstab puts swap on /usr/a b"},
		{"no rights", func(f *fake) Config { f.probe = &Unavailable{"why", "remedy"}; return f.config() }, "why: remedy"},
		{"the kernel says no", func(f *fake) Config { f.create = func() error { return errTest }; return f.config() }, errTest.Error()},
		{"on the export", func(f *fake) Config { f.root.Ino = 11; return f.config() }, "/usr is the directory that the server exports"},
		{"below the export", func(f *fake) Config { f.root.Ino = 10; return f.config() }, "/ is the directory that the server exports"},
		{"above the export", func(f *fake) Config {
			f.stats["/usr/data"] = Stat{Ino: 2, IsDir: true}
			c := f.config()
			c.Export = "/usr/data"
			return c
		}, "/usr/data is the directory that the server exports"},
	} {
		t.Run(x.name, func(t *testing.T) {
			f := newFake(t)
			_, err := f.mount(x.make(f))
			wantError(t, err, x.want)
			if f.attached != "" {
				t.Error("it is mounted all the same")
			}
		})
	}
}

// Swap is no reason where the watermarks are high, or the server elsewhere.
func TestSwapThatWorks(t *testing.T) {
	for name, prepare := range map[string]func(f *fake){
		"watermarks": func(f *fake) {
			f.write("proc/sys/vm/min_free_kbytes", "24576\n")
			f.write("proc/sys/vm/watermark_scale_factor", "1000\n")
		},
		"remote": func(f *fake) { f.peer = "192.0.2.7" },
	} {
		f := newFake(t)
		f.write("etc/fstab", "/usr/swap none swap sw\n")
		prepare(f)
		if _, err := f.mount(f.config()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The number of an inode alone does not make a directory the same.
func TestAnotherDirectory(t *testing.T) {
	f := newFake(t)
	f.root.Ino = 11
	f.root.Changed.Nsec = 1
	if _, err := f.mount(f.config()); err != nil {
		t.Error(err)
	}
}

// A server that is not on this host may export a directory that looks the same.
func TestRemoteDirectory(t *testing.T) {
	f := newFake(t)
	f.root.Ino, f.peer = 11, "192.0.2.1"
	if _, err := f.mount(f.config("soft")); err != nil {
		t.Error(err)
	}
}

// A server that does not answer is given up in time, and the mount does not appear
// later.
func TestTimeout(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		f.create = func() error { <-answer; return nil }
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := f.Mount(ctx, cfg)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		close(answer)
		synctest.Wait()
		if f.attached != "" || f.closed != 1 {
			t.Errorf("attached to %q, closed %d times", f.attached, f.closed)
		}
	})
}

func TestUnmount(t *testing.T) {
	f := newFake(t)
	mounted := "26 1 254:0 / / rw - ext4 /dev/vda rw\n33 26 " + device + " / /mnt rw - nfs server:/data rw\n"
	f.write("proc/self/mountinfo", mounted)
	e, err := f.Find("/mnt")
	if err != nil || e == nil || *e != (Entry{33, "/mnt", "server:/data", "nfs", device}) || !e.IsNFS() {
		t.Fatalf("%+v, %v", e, err)
	}
	answer := func(errs ...error) {
		f.calls = nil
		f.unmount = func(int) error { err := errs[0]; errs = errs[1:]; return err }
	}
	answer(nil)
	if err := f.Host.Unmount(e); err != nil || fmt.Sprint(f.done) != "[hold unmount sync close]" {
		t.Errorf("%v, %v", f.done, err)
	}
	f.sync = errTest
	answer(nil)
	wantError(t, f.Host.Unmount(e), "cannot tell whether everything is written")
	answer(unix.EBUSY)
	if err := f.Host.Unmount(e); !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
	answer(unix.EPERM)
	wantError(t, f.Host.Unmount(e), "sudo")
	answer(unix.EINVAL)
	if err := f.Host.Unmount(e); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
	answer(unix.EBUSY, nil)
	if err := f.Abort(e); err != nil || fmt.Sprint(f.calls) != fmt.Sprint([]int{unix.MNT_FORCE | unix.UMOUNT_NOFOLLOW, unix.MNT_DETACH | unix.UMOUNT_NOFOLLOW}) {
		t.Errorf("%v, %v", f.calls, err)
	}
	// Somebody else was faster.
	f.write("proc/self/mountinfo", strings.ReplaceAll(mounted, device, "0:99"))
	answer(unix.EINVAL)
	if err := f.Host.Unmount(e); err != nil {
		t.Error(err)
	}
	answer(unix.EINVAL)
	if err := f.Abort(e); err != nil {
		t.Error(err)
	}
}

func TestGiveUp(t *testing.T) {
	f := newFake(t)
	e := &Entry{ID: 33, Path: "/mnt", Device: device}
	if err := f.GiveUp(e); !errors.Is(err, ErrNoGiveUp) {
		t.Error(err)
	}
	f.write("sys/fs/nfs/"+device+"/shutdown", "0")
	if err := f.GiveUp(e); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(f.Root, "sys/fs/nfs", device, "shutdown")); string(b) != "1" {
		t.Errorf("%q", b)
	}
}

// Who gives up one mount must not take away those of others, which share its
// requests and its pages.
func TestMountedElsewhere(t *testing.T) {
	f := newFake(t)
	f.write("proc/self/mountinfo", "33 26 "+device+" / /mnt rw - nfs server:/data rw\n34 26 "+device+" /sub /container rw - nfs server:/data rw\n")
	f.write("sys/fs/nfs/"+device+"/shutdown", "0")
	e, err := f.Find("/mnt")
	if err != nil || e == nil {
		t.Fatal(err)
	}
	err = f.GiveUp(e)
	wantError(t, err, "mounted on /container")
	if b, _ := os.ReadFile(filepath.Join(f.Root, "sys/fs/nfs", device, "shutdown")); string(b) != "0" || !errors.Is(err, ErrShared) {
		t.Errorf("%q, %v", b, err)
	}
	f.unmount = func(int) error { return nil }
	if err := f.Abort(e); err != nil || fmt.Sprint(f.calls) != fmt.Sprint([]int{unix.MNT_DETACH | unix.UMOUNT_NOFOLLOW}) {
		t.Errorf("%v, %v", f.calls, err)
	}
}

func TestUnwritten(t *testing.T) {
	f := newFake(t)
	for text, want := range map[string]int64{
		"":                            -1,
		"BdiWriteback:        4 kB\n": -1,
		"BdiWriteback: x kB\nBdiReclaimable: 1 kB":                                     -1,
		"BdiWriteback:       12 kB\nBdiReclaimable:     30 kB\nBdiDirtyThresh: 7 kB\n": 42 << 10,
	} {
		f.bdi = text
		if got := f.Unwritten(device); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}
