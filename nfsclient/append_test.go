package nfsclient

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"loopnfs/fusefs"
	"loopnfs/internal/vfs"
)

// What another client has appended stays, whether the file is open here all the time or not.
func TestAppendAfterAppendElsewhere(t *testing.T) {
	for name, script := range map[string]string{
		"held":     `exec 3>>"$1"; echo one >&3; echo ok; read x; echo three >&3; exec 3>&-; echo ok; read x`,
		"reopened": `echo one >>"$1"; echo ok; read x; echo three >>"$1"; echo ok; read x`,
	} {
		t.Run(name, func(t *testing.T) {
			s := testServer(t, 16<<20)
			b := newBed(t, 16<<20, s.addr, "/data", nil)
			other := newBed(t, 8<<20, s.addr, "/data", nil)
			dir := tempDir(t)
			door, err := fusefs.MountFS(fusefs.DoorConfig{FS: b.c, Mountpoint: dir, FsName: "test"})
			must(t, err)
			t.Cleanup(func() {
				if err := door.Unmount(); err != nil {
					t.Error(err)
					door.Abort()
				}
				door.Wait()
			})
			cmd := exec.Command("/bin/sh", "-c", script, "sh", filepath.Join(dir, "log"))
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			cmd.Stderr = os.Stderr
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			must(t, cmd.Start())
			defer func() { in.Close(); cmd.Wait() }()
			lines := bufio.NewScanner(out)
			lines.Scan()
			e, err := b.c.Lookup(&b.op, vfs.RootID, "log")
			must(t, err)
			b.sync(e.Node) // "one" is on the server
			b.c.Forget(e.Node, 1)
			o, err := other.c.Lookup(&other.op, vfs.RootID, "log")
			must(t, err)
			must(t, other.c.Open(&other.op, o.Node, true))
			other.write(o.Node, int(other.attr(o.Node).Size), []byte("two\n"))
			must(t, other.c.Flush(&other.op, o.Node))
			other.c.Close(o.Node)
			if name == "held" {
				time.Sleep(3 * time.Second) // all attributes are too old
			}
			fmt.Fprintln(in, "go")
			lines.Scan()
			e, err = b.c.Lookup(&b.op, vfs.RootID, "log")
			must(t, err)
			b.sync(e.Node)
			b.c.Forget(e.Node, 1)
			s.store.Sync(&b.op, 0)
			other.c.Open(&other.op, o.Node, false)
			got := other.read(o.Node, 0, 100)
			other.c.Close(o.Node)
			if string(got) != "one\ntwo\nthree\n" {
				t.Errorf("the log is %q", got)
			}
			fmt.Fprintln(in, "end")
		})
	}
}

// Each of those who append here at the same time gets a place of its own.
func TestAppend(t *testing.T) {
	f, b := fakeBed(t, nil)
	n := b.create("f")
	const writers, each, size = 4, 100, 3000
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			op := rootOp(b.mem)
			for range each {
				var res vfs.WriteResult
				v := vfs.Vec{Bufs: [][]byte{bytes.Repeat([]byte{byte('a' + w)}, size)}}
				if err := b.c.Write(&op, n, vfs.AtEnd, &v, vfs.Unstable, &res); err != nil || res.Count != size {
					t.Error(res.Count, err)
				}
			}
		})
	}
	all.Wait()
	b.sync(n)
	got := f.content("f")
	if len(got) != writers*each*size {
		t.Fatalf("%d bytes, want %d", len(got), writers*each*size)
	}
	for w := range writers {
		if n := bytes.Count(got, []byte{byte('a' + w)}); n != each*size {
			t.Errorf("%d bytes of writer %d, want %d", n, w, each*size)
		}
	}
}

// Who may write a file but not read it can change parts of pages.
func TestWriteWithoutReading(t *testing.T) {
	s := testServer(t, 16<<20)
	b := newBed(t, 16<<20, s.addr, "/data", nil)
	other := newBed(t, 8<<20, s.addr, "/data", nil)
	n := b.create("log")
	must(t, b.c.Open(&b.op, n, true))
	want := bytes.Repeat([]byte("before\n"), 2000)
	b.write(n, 0, want)
	_, err := b.c.SetAttr(&b.op, n, &vfs.SetAttr{SetMode: true, Mode: 0o622})
	must(t, err)
	b.sync(n)
	b.c.Close(n)
	o, err := other.c.Lookup(&other.op, vfs.RootID, "log")
	must(t, err)
	other.op.Cred = vfs.Cred{UID: 1000, GID: 1000}
	put := func(off int, data []byte) {
		t.Helper()
		other.write(o.Node, off, data)
		want = append(want, make([]byte, max(0, off+len(data)-len(want)))...)
		copy(want[off:], data)
	}
	must(t, other.c.Open(&other.op, o.Node, true))
	put(len(want), []byte("at the end\n"))
	put(len(want), []byte("and again\n"))
	put(100, bytes.Repeat([]byte("across pages\n"), 700))
	put(20000, bytes.Repeat([]byte("behind the end\n"), 700))
	put(40000, []byte("far behind the end\n"))
	if _, err := readAt(other.c, &other.op, o.Node, 0, 10); err != syscall.EACCES {
		t.Errorf("reading: %v", err)
	}
	must(t, other.c.Flush(&other.op, o.Node))
	other.c.Close(o.Node)
	must(t, b.c.Open(&b.op, n, false))
	if got := b.read(n, 0, len(want)+10); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d; they differ at %d", len(got), len(want), firstDiff(got, want))
	}
	b.c.Close(n)
}
