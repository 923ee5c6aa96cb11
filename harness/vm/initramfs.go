package vm

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// writeInitramfs makes an initramfs of init and of the modules, which init finds
// as /modules/NUMBER-NAME.ko, to be loaded in that order.
func writeInitramfs(w io.Writer, init string, modules []string) error {
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is valid
	a := cpio{w: z}
	a.dir("modules")
	a.dir("proc")
	a.dir("sys")
	a.dir("dev")
	a.dir("root")
	a.file("init", init, 0o755)
	for i, m := range modules {
		a.file(fmt.Sprintf("modules/%03d-%s", i, filepath.Base(m)), m, 0o644)
	}
	a.end()
	return errors.Join(a.err, z.Close())
}

// cpio writes an archive in the "newc" format (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	w   io.Writer
	ino int
	err error
}

func (a *cpio) dir(name string) { a.entry(name, 0o040755, nil) }

func (a *cpio) file(name, path string, mode int) {
	data, err := os.ReadFile(path)
	if err != nil {
		a.err = errors.Join(a.err, err)
		return
	}
	a.entry(name, 0o100000|mode, data)
}

func (a *cpio) end() { a.entry("TRAILER!!!", 0, nil) }

func (a *cpio) entry(name string, mode int, data []byte) {
	if a.err != nil {
		return
	}
	a.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	a.write(pad4([]byte(head)))
	a.write(pad4(data))
}

func (a *cpio) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
}

func pad4(b []byte) []byte {
	return append(b, make([]byte, -len(b)&3)...)
}
