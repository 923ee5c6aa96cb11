package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mountMemory is what loopnfs gets for data, as the rows of mounts want the file in its
// memory; the others have the page cache of the host.
const mountMemory = "512MiB"

// newMount describes a mount of dir; the arguments are those of newServer.
func newMount(name, bin, dir, state string) (*server, error) {
	point := filepath.Join(state, "mnt")
	if err := os.Mkdir(point, 0o755); err != nil {
		return nil, err
	}
	s := &server{name: name, dir: dir, point: point}
	switch kind, _, _ := strings.Cut(name, "-"); kind {
	case "store":
		nfs, err := newServer(name, bin, dir, filepath.Join(state, "store"))
		if err != nil {
			return nil, err
		}
		s.ours = true
		s.argv = append(nfs.argv, "--memory", mountMemory, "--fuse", point)
	case "client", "libnfs":
		nfs, err := newServer(name, bin, dir, filepath.Join(state, "store"))
		if err != nil {
			return nil, err
		}
		nfs.argv = append(nfs.argv, "--memory", mountMemory)
		s.below = nfs
		if kind == "libnfs" {
			s.point = "" // it is none
			break
		}
		s.argv = []string{filepath.Join(bin, "loopnfs"), "mount", nfs.addr + ":" + nfs.export, point, "--via", "fuse", "--foreground", "--memory", mountMemory}
	case "gofuse":
		s.argv = []string{filepath.Join(bin, "gofuse"), point, dir}
	case "passthrough":
		s.argv = []string{filepath.Join(bin, "gofuse"), "-passthrough", point, dir}
	case "bindfs":
		s.argv = []string{"bindfs", "-f", "-o", "big_writes", dir, point}
	default:
		return nil, fmt.Errorf("there is no mount called %s: there are %s", name, strings.Join((&bench{mounts: true}).defaultNames(), ", "))
	}
	return s, nil
}

// mountedFUSE reports whether a FUSE file system is mounted on dir and answers.
func mountedFUSE(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	const fuseSuperMagic = 0x65735546
	if st.Type != fuseSuperMagic {
		return errors.New("nothing is mounted")
	}
	return nil
}

// unmount takes a mount away; its process ends then, or when it is told to.
func unmount(dir string) {
	for range 50 {
		err := unix.Unmount(dir, 0)
		if !errors.Is(err, unix.EBUSY) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = unix.Unmount(dir, unix.MNT_DETACH)
}

// has reports whether a server can do a row at all: libnfs has no file system, it copies.
func (r *row) has(s *server) bool {
	return (r.flags == nil || s.ours) && (s.name != "libnfs" || slices.Contains(libnfsRows, r.name))
}
