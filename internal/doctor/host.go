package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Limits of what is read: files are written by others, and some grow with the host.
const (
	maxFile    = 64 << 10  // bytes of a file that is read whole
	maxStream  = 256 << 20 // bytes of one that is read line by line
	maxLine    = 64 << 10
	maxEntries = 1 << 18 // of a directory
)

// Host is a machine to look at.
type Host struct {
	// Root is its root directory, with /proc and /sys. It implements
	// fs.ReadLinkFS.
	Root fs.FS
	// Write sets a value: the content of the file at an absolute path.
	Write func(path, value string) error
}

// ThisHost returns the machine that the process runs on.
func ThisHost() *Host {
	return &Host{
		Root:  os.DirFS("/"),
		Write: func(path, value string) error { return os.WriteFile(path, []byte(value), 0) },
	}
}

// read returns the content of a short file without space around it.
func (h *Host) read(name string) (string, error) {
	f, err := h.Root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return strings.TrimSpace(string(b)), err
}

// number returns the number in a file; -1 if it cannot be read.
func (h *Host) number(name string) int64 {
	s, err := h.read(name)
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// lines calls f for each line of a file until it returns false.
func (h *Host) lines(name string, f func(line string) bool) error {
	file, err := h.Root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return scan(file, f)
}

func scan(r io.Reader, f func(line string) bool) error {
	in := bufio.NewScanner(io.LimitReader(r, maxStream))
	in.Buffer(nil, maxLine)
	for in.Scan() {
		if !f(in.Text()) {
			return nil
		}
	}
	return in.Err()
}

// link returns where a symbolic link leads; "" if it cannot be read.
func (h *Host) link(name string) string {
	s, err := fs.ReadLink(h.Root, name)
	if err != nil {
		return ""
	}
	return s
}

// names returns the sorted names in a directory.
func (h *Host) names(dir string) ([]string, error) {
	f, err := h.Root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, ok := f.(fs.ReadDirFile)
	if !ok {
		return nil, fmt.Errorf("%s is not a directory", dir)
	}
	entries, err := d.ReadDir(maxEntries)
	if err != nil && err != io.EOF {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	slices.Sort(names)
	return names, nil
}

// gone reports whether err is that of looking at a process that has ended.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) }

// proc returns the path of a file of a process.
func proc(pid int, name string) string { return path.Join("proc", strconv.Itoa(pid), name) }
