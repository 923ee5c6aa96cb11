package billyfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-billy/v5/util"
	vmnfs "github.com/vmware/go-nfs-client/nfs"
	vmrpc "github.com/vmware/go-nfs-client/nfs/rpc"
	nfs "github.com/willscott/go-nfs"
	client "github.com/willscott/go-nfs-client/nfs"
	"github.com/willscott/go-nfs-client/nfs/rpc"
	nfshelper "github.com/willscott/go-nfs/helpers"

	"loopnfs/harness/peers"
)

// mount connects to a server by one connection for MOUNT and NFS.
func mount(addr, dir string) (*client.Target, error) {
	c, err := rpc.DialTCP("tcp", addr, false)
	for errors.Is(err, syscall.EADDRINUSE) { // it takes a port at random
		c, err = rpc.DialTCP("tcp", addr, false)
	}
	if err != nil {
		return nil, err
	}
	m := client.Mount{Client: c}
	v, err := m.Mount(dir, rpc.NewAuthUnix("host", 0, 0).Auth())
	if err != nil {
		c.Close()
	}
	return v, err
}

// fetch returns what is in a file of the server.
func fetch(addr, path string) (string, error) {
	v, err := mount(addr, "/mount")
	if err != nil {
		return "", err
	}
	defer v.Close()
	f, err := v.Open(path)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(f)
	return string(b), err
}

func handlerOf(fs billy.Filesystem) nfs.Handler {
	return nfshelper.NewCachingHandler(nfshelper.NewNullAuthHandler(fs), 4096)
}

// serving is a program that serves, until stop or the end of the test.
type serving struct {
	addr, port string
	stop       func()
}

func start(t testing.TB, host string, h nfs.Handler, serve func(net.Listener, nfs.Handler) error) serving {
	t.Helper()
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serve(l, h) }()
	stop := sync.OnceFunc(func() {
		l.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return serving{l.Addr().String(), port, stop}
}

// The tools of libnfs copy a file to the server, list it, and read it back.
func TestLibnfs(t *testing.T) {
	for name, fs := range map[string]billy.Filesystem{"memfs": memfs.New(), "osfs": osfs.New(t.TempDir())} {
		t.Run(name, func(t *testing.T) {
			s := start(t, "127.0.0.1", handlerOf(fs), Serve)
			url := func(path string) string { return peers.LibnfsURL(net.JoinHostPort("127.0.0.1", s.port), path) }
			want := pattern(5<<20 + 123)
			local := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(local, want, 0o600); err != nil {
				t.Fatal(err)
			}
			peers.Libnfs(t, "nfs-cp", local, url("/mount/copy"))
			if got := peers.Libnfs(t, "nfs-ls", url("/mount")); !strings.Contains(string(got), "copy") || !strings.Contains(string(got), fmt.Sprint(len(want))) {
				t.Errorf("nfs-ls: %s", got)
			}
			if got := peers.Libnfs(t, "nfs-cat", url("/mount/copy")); !bytes.Equal(got, want) {
				t.Errorf("nfs-cat: %d bytes, not as they were written", len(got))
			}
			s.stop()
			if got, err := util.ReadFile(fs, "copy"); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the program sees %d bytes, %v", len(got), err)
			}
		})
	}
}

// portmapAddr is a loop-back address that nobody else has a portmapper on.
const portmapAddr = "127.0.0.78"

// The same program, the same client, and one line changed.
func TestOneLine(t *testing.T) {
	for name, serve := range map[string]func(net.Listener, nfs.Handler) error{
		"nfs.Serve":     nfs.Serve,
		"billyfs.Serve": Serve,
	} {
		for fsName, perm := range map[string]os.FileMode{"memfs": 0o666, "osfs-change": 0o640} {
			t.Run(name+"/"+fsName, func(t *testing.T) {
				fs := backends[fsName](t)
				s := start(t, portmapAddr, handlerOf(fs), serve)
				peers.Portmap(t, net.JoinHostPort(portmapAddr, s.port))
				clientRun(t, perm) // go-nfs has no other mode on memfs
				s.stop()
				if got, err := util.ReadFile(fs, "left"); err != nil || string(got) != "for the program" {
					t.Errorf("the program sees %q, %v", got, err)
				}
				if _, err := fs.Stat("dir"); !os.IsNotExist(err) {
					t.Errorf("the program still sees the directory: %v", err)
				}
			})
		}
	}
}

// clientRun does what clients do, from MNT to UMNT, with a client that others
// wrote.
func clientRun(t *testing.T, perm os.FileMode) {
	m, err := vmnfs.DialMount(portmapAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	v, err := m.Mount("/mount", vmrpc.NewAuthUnix("host", 0, 0).Auth())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.FSInfo(); err != nil {
		t.Error("FSINFO:", err)
	}
	if _, err := v.Mkdir("/dir", 0o755); err != nil {
		t.Fatal("MKDIR:", err)
	}
	data := pattern(300_000)
	f, err := v.OpenFile("/dir/file", perm)
	if err != nil {
		t.Fatal("CREATE:", err)
	}
	if n, err := f.Write(data); n != len(data) || err != nil {
		t.Errorf("WRITE: %d bytes, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Error("COMMIT:", err)
	}
	f, err = v.Open("/dir/file")
	if err != nil {
		t.Fatal("LOOKUP:", err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
		t.Errorf("READ: %d bytes, %v", len(got), err)
	}
	if info, _, err := v.Lookup("/dir/file"); err != nil || info.Mode().Perm() != perm || info.Size() != int64(len(data)) {
		t.Errorf("LOOKUP: %+v, %v", info, err)
	}
	for i := range 100 {
		if _, err := v.Create(fmt.Sprintf("/dir/%s%d", strings.Repeat("n", i), i), perm); err != nil {
			t.Fatal("CREATE:", err)
		}
	}
	list, err := v.ReadDirPlus("/dir")
	names := map[string]bool{}
	for _, e := range list {
		names[e.FileName] = true
	}
	if err != nil || len(list) != 103 || len(names) != 103 {
		t.Errorf("READDIRPLUS: %d entries, %d names, %v", len(list), len(names), err)
	}
	if _, _, err := v.Lookup("/dir/none"); !os.IsNotExist(err) {
		t.Errorf("LOOKUP of nothing: %v", err)
	}
	if err := v.RemoveAll("/dir"); err != nil {
		t.Errorf("REMOVE and RMDIR of all: %v", err)
	}
	if f, err = v.OpenFile("/left", perm); err != nil {
		t.Fatal("CREATE:", err)
	}
	if _, err := f.Write([]byte("for the program")); err != nil {
		t.Error("WRITE:", err)
	}
	if err := f.Close(); err != nil {
		t.Error("COMMIT:", err)
	}
}

// Clients that work at the same time on a file system which is not made for it.
func TestManyClients(t *testing.T) {
	for name, fs := range map[string]billy.Filesystem{"memfs": memfs.New(), "osfs": osfs.New(t.TempDir())} {
		t.Run(name, func(t *testing.T) {
			srv, err := New(Config{
				Handler: handlerOf(fs), Concurrent: name == "osfs", Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, "127.0.0.1", nil, func(l net.Listener, _ nfs.Handler) error {
				err := srv.Serve(l)
				return errors.Join(err, srv.Close())
			})
			var all sync.WaitGroup
			for i := range 6 {
				all.Go(func() {
					if err := work(s.addr, i); err != nil {
						t.Errorf("client %d: %v", i, err)
					}
				})
			}
			all.Wait()
		})
	}
}

// work makes, writes, renames, reads and removes files, some of them those of
// other clients too.
func work(addr string, i int) error {
	v, err := mount(addr, "/")
	if err != nil {
		return err
	}
	defer v.Close()
	dir := fmt.Sprintf("/c%d", i)
	if _, err := v.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("MKDIR: %w", err)
	}
	want := bytes.Repeat([]byte{byte(i + 1)}, 50_000)
	for n := range 10 {
		tmp, path := fmt.Sprintf("%s/tmp%d", dir, n), fmt.Sprintf("%s/file%d", dir, n)
		f, err := v.OpenFile(tmp, 0o644)
		if err != nil {
			return fmt.Errorf("CREATE: %w", err)
		}
		if _, err := f.Write(want); err != nil {
			return fmt.Errorf("WRITE: %w", err)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("COMMIT: %w", err)
		}
		if err := v.Rename(tmp, path); err != nil {
			return fmt.Errorf("RENAME: %w", err)
		}
		if f, err = v.Open(path); err != nil {
			return fmt.Errorf("LOOKUP: %w", err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("READ: %d bytes, %w", len(got), err)
		}
		shared, err := v.OpenFile("/shared", 0o666)
		if err != nil {
			return fmt.Errorf("CREATE of what all write: %w", err)
		}
		if _, err := shared.Write(want[:10_000]); err != nil {
			return fmt.Errorf("WRITE of what all write: %w", err)
		}
		if _, err := v.ReadDirPlus("/"); err != nil {
			return fmt.Errorf("READDIRPLUS: %w", err)
		}
	}
	return v.RemoveAll(dir)
}

// policy is a handler that lets clients mount one path.
type policy struct {
	nfs.Handler
	path string
}

func (p policy) Mount(ctx context.Context, nc net.Conn, req nfs.MountRequest) (nfs.MountStatus, billy.Filesystem, []nfs.AuthFlavor) {
	if string(req.Dirpath) != p.path || nc.RemoteAddr().(*net.TCPAddr).IP == nil {
		return nfs.MountStatusErrAcces, nil, nil
	}
	return p.Handler.Mount(ctx, nc, req)
}

// The handler decides who may mount what.
func TestHandlerDecides(t *testing.T) {
	s := start(t, "127.0.0.1", policy{handlerOf(memfs.New()), "/mine"}, Serve)
	if v, err := mount(s.addr, "/other"); err == nil {
		v.Close()
		t.Error("a path that the handler refuses can be mounted")
	}
	v, err := mount(s.addr, "/mine")
	if err != nil {
		t.Fatal(err)
	}
	v.Close()
}

func TestConfig(t *testing.T) {
	for _, cfg := range []Config{
		{}, {Handler: handlerOf(memfs.New()), MemoryBytes: 1}, {Handler: handlerOf(memfs.New()), MaxFileBytes: -1},
		{Handler: handlerOf(memfs.New()), MaxObjects: 1},
	} {
		if s, err := New(cfg); err == nil {
			s.Close()
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

// The program in docs/billy.md serves what it says.
func TestDocs(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	doc, err := os.ReadFile("../docs/billy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "```go\n")
	program, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("docs/billy.md has no program")
	}
	src, bin := filepath.Join(t.TempDir(), "main.go"), filepath.Join(t.TempDir(), "main")
	if err := os.WriteFile(src, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", bin, src).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var addr string
	if _, err := fmt.Fscanf(out, "serving on %s\n", &addr); err != nil {
		t.Fatal(err)
	}
	if got, err := fetch(addr, "hello.txt"); got != "hello\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
