// Command bench puts NFSv3 servers side by side, or FUSE mounts: one run, one machine,
// one file system, the same work.
//
//	bench [flags] [SERVER...]
//	bench -mounts [flags] [MOUNT...]
//	bench -scale [flags] [SERVER...]
//
// Servers get raw calls over TCP, with no client's cache in between. A SERVER is loopnfs,
// gonfs or ganesha, which are started; NAME=DIR, where DIR has the programs of another
// build of loopnfs; or NAME=HOST:PORT:EXPORT, which runs already and serves an empty
// directory of ours (given with -dir). Two more are loopnfs when memory is short: arena-full
// has a tenth of the memory for data that the rows want, and cgroup is in a control group
// that gives it little more than what it has locked.
//
// Mounts get system calls, those for data from fio. A MOUNT is store (that of loopnfs
// serve), client (loopnfs mount of a server on this host), libnfs (nfs-cp from the same
// server), gofuse (the loopback file system of go-fuse), passthrough (the same, but the
// kernel goes to the files by itself), bindfs, or store-NAME=DIR and client-NAME=DIR for
// another build.
//
// With -scale, the same call is made with more and more of something: of files, entries,
// bytes, connections, memory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run.
type bench struct {
	bin      string
	dir      string
	fs       string
	size     int64
	conns    int
	duration time.Duration
	only     *regexp.Regexp
	json     string
	picture  string
	commit   string
	flags    []string
	mounts   bool
	scale    bool
}

func main() {
	b := &bench{}
	flag.StringVar(&b.bin, "bin", "bin", "`directory` with the programs of loopnfs")
	flag.StringVar(&b.dir, "dir", "/var/tmp", "`directory` on a disk; everything is made in a directory of its own there")
	flag.StringVar(&b.fs, "fs", "ext4", "what to export: ext4 with a journal, on a loop device, or dir: the directory as it is")
	sizeMiB := flag.Int64("size", 0, "size of the file that is read and written, in `MiB`; default: 32 for servers, 256 for mounts")
	flag.IntVar(&b.conns, "conns", 1, "number of connections, each with as much outstanding as the row says")
	flag.DurationVar(&b.duration, "time", 3*time.Second, "how long each load takes")
	only := flag.String("run", "", "only rows whose name matches this `regexp`")
	flag.StringVar(&b.json, "json", "", "append a line for each row and server to this `file`")
	flag.StringVar(&b.picture, "svg", "", "draw the comparison into this `file`")
	flag.StringVar(&b.commit, "commit", "", "name of what is measured, for -json")
	flag.BoolVar(&b.mounts, "mounts", false, "measure FUSE mounts instead of NFS servers")
	flag.BoolVar(&b.scale, "scale", false, "measure what a call costs when there is more of everything")
	flags := flag.String("flags", "", "more `flags` for loopnfs serve")
	peer := flag.Bool("tcp-peer", false, "be the other end of the TCP limit (for internal use)")
	flag.Parse()
	if *peer {
		fail(tcpPeer())
		return
	}
	code, done, err := apart(anyOutside(flag.Args()))
	fail(err)
	if done {
		os.Exit(code)
	}
	b.only, err = regexp.Compile(*only)
	fail(err)
	if *sizeMiB == 0 {
		*sizeMiB = defaultSize(b.mounts)
	}
	b.size = *sizeMiB << 20
	b.flags = strings.Fields(*flags)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer cancel()
	names := flag.Args()
	if len(names) == 0 {
		names = b.defaultNames()
	}
	fail(b.run(ctx, names))
}

func defaultSize(mounts bool) int64 {
	if mounts {
		return 256
	}
	return 32
}

func (b *bench) defaultNames() []string {
	switch {
	case b.mounts:
		return []string{"store", "gofuse", "bindfs", "passthrough", "client", "libnfs"}
	case b.scale:
		return []string{"loopnfs", "ganesha"}
	}
	return []string{"loopnfs", "gonfs", "ganesha"}
}

// anyOutside reports whether one of the servers runs already.
func anyOutside(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, ":") })
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run makes a file system, starts the servers and goes through the rows.
func (b *bench) run(ctx context.Context, names []string) (err error) {
	top, err := os.MkdirTemp(b.dir, "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(top)
	data := filepath.Join(top, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	if b.fs == "ext4" {
		umount, err := b.mountExt4(top, data)
		if err != nil {
			return err
		}
		defer umount()
	}
	servers, err := b.servers(names, top, data)
	if err != nil {
		return err
	}
	rep := newReport(b, servers)
	for _, r := range b.rows() {
		if !b.only.MatchString(r.name) {
			continue
		}
		if err := b.with(&r).row(ctx, &r, servers, rep); err != nil {
			return err
		}
	}
	return rep.finish()
}

func (b *bench) rows() []row {
	switch {
	case b.mounts:
		return mountRows
	case b.scale:
		return scaleRows()
	}
	return serverRows
}

// with is the run as a row wants it.
func (b *bench) with(r *row) *bench {
	one := *b
	if r.size != 0 {
		one.size = r.size
	}
	if r.conns != 0 {
		one.conns = r.conns
	}
	one.flags = append(slices.Clip(b.flags), r.flags...)
	if r.memory != 0 {
		one.flags = append(one.flags, "--memory", strconv.FormatInt(r.memory, 10))
	}
	return &one
}

// mountExt4 makes a file system of its own, so that no other work is in its journal.
func (b *bench) mountExt4(top, dir string) (umount func(), err error) {
	image, size, files := filepath.Join(top, "image"), "4G", "1000000"
	if b.scale {
		size, files = "8G", "3000000"
	}
	// All of the image is written first: what is written twice costs half of what is written
	// once, and who comes later would be ahead.
	script := `set -e; dd if=/dev/zero of="$1" bs=4M count="$3" iflag=count_bytes oflag=direct conv=fsync status=none
mkfs.ext4 -q -F -N "$4" -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 "$1"
dev=$(losetup -f --show --direct-io=on "$1"); mount -o noinit_itable "$dev" "$2"; losetup -d "$dev"`
	if out, err := exec.Command("sh", "-c", script, "sh", image, dir, size, files).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cannot make an ext4 to serve (-fs dir does without): %w\n%s", err, out)
	}
	return func() {
		for range 50 {
			if err = unix.Unmount(dir, 0); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		fmt.Fprintln(os.Stderr, "bench: cannot unmount", dir+":", err)
	}, nil
}

// servers makes the directories of the servers that can be had.
func (b *bench) servers(names []string, top, data string) ([]*server, error) {
	var all []*server
	for _, name := range names {
		name, where, other := strings.Cut(name, "=")
		dir, state := filepath.Join(data, name), filepath.Join(top, "state-"+name)
		bin := b.bin
		if other && strings.Contains(where, ":") {
			part := strings.SplitN(where, ":", 3)
			if len(part) != 3 {
				return nil, fmt.Errorf("%s=%s: want NAME=HOST:PORT:EXPORT", name, where)
			}
			addr := part[0] + ":" + part[1]
			all = append(all, &server{name: name, dir: b.dir, addr: addr, mountAddr: addr, export: part[2]})
			continue
		}
		if other {
			bin = where
		}
		if err := errors.Join(os.Mkdir(dir, 0o777), os.Mkdir(state, 0o700)); err != nil {
			return nil, err
		}
		describe := newServer
		if b.mounts {
			describe = newMount
		}
		s, err := describe(name, bin, dir, state)
		if err != nil {
			return nil, err
		}
		if err := s.there(); err != nil {
			fmt.Printf("skipped: %s: %v\n", name, err)
			continue
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, errors.New("no server to measure")
	}
	return all, nil
}

// row measures one row, one server after the other, each started for it: a server that
// has done much work before does not get an advantage, or the opposite, from it.
func (b *bench) row(ctx context.Context, r *row, servers []*server, rep *report) error {
	lim, err := measureLimits(b.duration / 6)
	if err != nil {
		return err
	}
	rep.begin(r, lim)
	for _, s := range servers {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !r.has(s) {
			rep.add(s, nil, 0, nil)
			continue
		}
		res, peak, err := b.measure(ctx, r, s)
		rep.add(s, res, peak, err)
	}
	rep.end()
	return nil
}

func (b *bench) measure(ctx context.Context, r *row, s *server) (res *result, peak int64, err error) {
	if r.prepare != nil {
		if err := r.prepare(b, s.dir); err != nil {
			return nil, 0, err
		}
	}
	unix.Sync()
	if r.cold {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			return nil, 0, err
		}
	}
	if err := s.start(ctx, b.flags); err != nil {
		return nil, 0, err
	}
	defer s.stop()
	t, err := newTarget(b, s)
	if err != nil {
		return nil, 0, err
	}
	defer t.close()
	if r.warm {
		if _, err := r.measure(b, t); err != nil {
			return nil, 0, err
		}
	}
	res, err = r.measure(b, t)
	return res, s.usage().peak, err
}
