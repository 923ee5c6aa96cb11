package nfsmount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const device = "0:52"

// fake is a host with a kernel of its own, which mounts what mountinfo says.
type fake struct {
	*Host
	t        *testing.T
	peer     string // address of the server
	probe    error
	create   func() error
	stats    map[string]Stat // by path
	root     Stat            // of the mount
	bdi      string          // what BDIStats returns
	unmount  func(flags int) error
	params   []Param
	attrs    int
	attached string
	seen     map[string]string // the bdi when it was attached
	closed   int
	calls    []int // flags of Unmount
	sync     error
	done     []string // what was done, in order
}

// newFake returns a host where /mnt is a directory and nothing is mounted but /.
func newFake(t *testing.T) *fake {
	f := &fake{
		t: t, peer: "127.0.0.1",
		create: func() error { return nil },
		root:   Stat{Device: device, Ino: 2, IsDir: true},
	}
	dir := t.TempDir()
	f.Host = &Host{Kernel: f, Dial: f.dial, Local: func(peer, _ netip.Addr) bool { return peer.IsLoopback() }, Root: dir}
	f.stats = map[string]Stat{"/": {Ino: 10, IsDir: true}, "/usr": {Ino: 11, IsDir: true}, "/etc/passwd": {Ino: 12}}
	f.write("proc/self/mountinfo", "26 1 254:0 / / rw - ext4 /dev/vda rw\n")
	f.write("proc/vmstat", fmt.Sprintf("nr_free_pages 1\nnr_dirty_threshold %d\n", 1<<30/os.Getpagesize()))
	for _, name := range []string{"min_ratio", "max_ratio", "strict_limit"} {
		f.write("sys/class/bdi/"+device+"/"+name, "0")
	}
	return f
}

func (f *fake) write(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// config mounts on /usr, a directory that exists without symbolic links.
func (f *fake) config(options ...string) Config {
	f.t.Helper()
	o, err := ParseOptions(options)
	if err != nil {
		f.t.Fatal(err)
	}
	return Config{Host: "server", Export: "/data", Mountpoint: "/usr", Options: o}
}

func (f *fake) mount(c Config) (*Mounted, error) { return f.Mount(context.Background(), c) }

func (f *fake) dial(_ context.Context, _, address string) (net.Conn, error) {
	c, _ := net.Pipe()
	_, port, err := net.SplitHostPort(address)
	return &conn{c, "192.0.2.9:999", net.JoinHostPort(f.peer, port)}, err
}

// conn is a connection between two addresses.
type conn struct {
	net.Conn
	here, peer string
}

func (c *conn) LocalAddr() net.Addr  { return address(c.here) }
func (c *conn) RemoteAddr() net.Addr { return address(c.peer) }

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func (f *fake) Probe() error { return f.probe }

func (f *fake) Create(params []Param, attrs int) (Detached, error) {
	f.params, f.attrs = params, attrs
	if err := f.create(); err != nil {
		return nil, err
	}
	return mnt{f}, nil
}

func (f *fake) Stat(path string) (Stat, error) {
	st, ok := f.stats[path]
	if !ok {
		return st, fs.ErrNotExist
	}
	return st, nil
}

func (f *fake) Unmount(_ string, flags int) error {
	f.calls, f.done = append(f.calls, flags), append(f.done, "unmount")
	return f.unmount(flags)
}

func (f *fake) Hold(string) (Held, error) {
	f.done = append(f.done, "hold")
	return hold{f}, nil
}

type hold struct{ f *fake }

func (h hold) Sync() error  { h.f.done = append(h.f.done, "sync"); return h.f.sync }
func (h hold) Close() error { h.f.done = append(h.f.done, "close"); return nil }

func (f *fake) BDIStats(string) ([]byte, error) {
	if f.bdi == "" {
		return nil, unix.EPERM
	}
	return []byte(f.bdi), nil
}

// param returns what the kernel was told, the last if it was told twice.
func (f *fake) param(key string) (value string, ok bool) {
	for _, p := range f.params {
		if p.Key == key {
			value, ok = p.Value, true
		}
	}
	return value, ok
}

type mnt struct{ f *fake }

func (m mnt) Stat() (Stat, error) { return m.f.root, nil }

func (m mnt) Attach(path string) error {
	m.f.attached = path
	m.f.seen = map[string]string{}
	files, _ := filepath.Glob(filepath.Join(m.f.Root, "sys/class/bdi", device, "*"))
	for _, path := range files {
		b, _ := os.ReadFile(path)
		m.f.seen[filepath.Base(path)] = string(b)
	}
	return nil
}

func (m mnt) Close() error { m.f.closed++; return nil }

// wantError fails unless err is one that says text.
func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want one with %q", err, text)
	}
}

var errTest = errors.New("as the test wants")
