package nfsclient

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	gonfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"

	"loopnfs/internal/vfs"
)

// changeable adds to osfs what go-nfs needs to change attributes.
type changeable struct{ billy.Filesystem }

func (c changeable) path(name string) string { return c.Join(c.Root(), name) }

func (c changeable) Chmod(name string, mode os.FileMode) error { return os.Chmod(c.path(name), mode) }
func (c changeable) Lchown(name string, uid, gid int) error {
	return os.Lchown(c.path(name), uid, gid)
}
func (c changeable) Chown(name string, uid, gid int) error { return os.Chown(c.path(name), uid, gid) }
func (c changeable) Chtimes(name string, atime, mtime time.Time) error {
	return os.Chtimes(c.path(name), atime, mtime)
}

// The server of somebody else: it answers WRITE with FILE_SYNC, sends no
// attributes here and there, and serves one call at a time.
func TestAgainstGoNFS(t *testing.T) {
	dir := tempDir(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	handler := helpers.NewCachingHandler(helpers.NewNullAuthHandler(changeable{osfs.New(dir)}), 1024)
	go gonfs.Serve(l, handler)
	b := newBed(t, 8<<20, l.Addr().String(), "/", nil)
	c, op := b.c, &b.op
	d, _, err := c.Mkdir(op, vfs.RootID, "d", &vfs.SetAttr{SetMode: true, Mode: 0o755})
	must(t, err)
	e, _, err := c.Create(op, d.Node, "f", vfs.Unchecked, &vfs.SetAttr{SetMode: true, Mode: 0o644}, vfs.Verifier{})
	must(t, err)
	data := pattern(1, 3<<20)
	must(t, c.Open(op, e.Node, true))
	b.write(e.Node, 0, data)
	b.write(e.Node, 1234567, []byte("in the middle"))
	copy(data[1234567:], "in the middle")
	must(t, c.Flush(op, e.Node))
	c.Close(e.Node)
	onDisk, err := os.ReadFile(filepath.Join(dir, "d", "f"))
	must(t, err)
	if !bytes.Equal(onDisk, data) {
		t.Fatalf("the server has %d bytes, first difference at %d", len(onDisk), firstDiff(onDisk, data))
	}
	ino, _ := c.tab.get(e.Node)
	ino.m.InvalidateClean()
	if got := b.read(e.Node, 0, len(data)+1); !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes, first difference at %d", len(got), firstDiff(got, data))
	}
	again, err := c.Lookup(op, d.Node, "f")
	must(t, err)
	if again.Attr.Size != uint64(len(data)) {
		t.Fatalf("size %d", again.Attr.Size)
	}
	ls := listing{names: map[string]vfs.FileType{}, room: 100}
	_, eof, err := c.ReadDir(op, d.Node, 0, vfs.Verifier{}, &ls)
	must(t, err)
	if _, ok := ls.names["f"]; !ok || !eof {
		t.Fatalf("listing %v, eof %v", ls.names, eof)
	}
	_, _, err = c.Rename(op, d.Node, "f", vfs.RootID, "g")
	must(t, err)
	_, err = c.Lookup(op, d.Node, "f")
	wantErrno(t, err, syscall.ENOENT)
	_, err = c.Remove(op, vfs.RootID, "g")
	must(t, err)
	_, err = c.Rmdir(op, vfs.RootID, "d")
	must(t, err)
}
