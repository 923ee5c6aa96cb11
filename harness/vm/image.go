package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed image.sh
var imageScript []byte

// buildLimit bounds the build of the image, or the fetching of a kernel.
const buildLimit = 15 * time.Minute

// lockEvery is how often it is tried whether another process still builds.
const lockEvery = 100 * time.Millisecond

// CacheDir returns where images and kernels are kept: $LOOPNFS_CACHE, or
// /var/cache/loopnfs.
func CacheDir() string {
	if dir := os.Getenv("LOOPNFS_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/loopnfs"
}

// Cached reports whether a guest with that kernel can be booted at once, with
// nothing to build or to fetch.
func Cached(version string) bool {
	for _, name := range []string{"root.ext4", "kernel-" + version} {
		if _, err := os.Stat(filepath.Join(imageDir(), name)); err != nil {
			return false
		}
	}
	return true
}

// imageDir is where this version of image.sh builds.
func imageDir() string {
	sum := sha256.Sum256(imageScript)
	return filepath.Join(CacheDir(), fmt.Sprintf("guest-%x", sum[:6]))
}

// cache is the directory of what image.sh of this version built. What other
// versions built is removed with the first build.
type cache struct {
	dir    string
	script []byte
	kvm    string // the device
	say    func(string, ...any)
}

func openCache(say func(string, ...any)) (*cache, error) {
	// An absolute path is nothing but a path to QEMU.
	dir, err := filepath.Abs(imageDir())
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("no place for guest images: %w; name one with LOOPNFS_CACHE", err)
	}
	return &cache{dir: dir, script: imageScript, kvm: "/dev/kvm", say: say}, nil
}

// root returns the image of the root file system.
func (c *cache) root(ctx context.Context) (string, error) {
	path := filepath.Join(c.dir, "root.ext4")
	return path, c.make(ctx, path, "building the guest image (once, about a minute)", "root", path)
}

// kernelVersion is what a version, or the beginning of one, looks like.
var kernelVersion = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,5}){0,2}$`)

// kernel returns a kernel: version is exact or the beginning of one.
func (c *cache) kernel(ctx context.Context, version string) (*Kernel, error) {
	if !kernelVersion.MatchString(version) {
		return nil, fmt.Errorf("%q is not a kernel version: write 6.12.43, or 6.1 for the newest 6.1", version)
	}
	path := filepath.Join(c.dir, "kernel-"+version)
	if err := c.make(ctx, path, "fetching kernel "+version, "kernel", version, path); err != nil {
		return nil, err
	}
	return openKernel(path)
}

// make builds path with image.sh unless it is there. Only one process builds.
func (c *cache) make(ctx context.Context, path, what string, args ...string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	c.removeOthers()
	c.say("%s", what)
	return c.build(ctx, lock, what, args)
}

// build runs the script, under the lock.
func (c *cache) build(ctx context.Context, lock *os.File, what string, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", append([]string{"-s", "--"}, args...)...)
	cmd.Stdin = bytes.NewReader(c.script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return terminate(cmd.Process.Pid) }
	cmd.WaitDelay = time.Second
	cmd.ExtraFiles = []*os.File{lock} // a script that outlives us still builds
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	c.removeHalf()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	return fmt.Errorf("%s failed: %w\n%s", what, err, bytes.TrimSpace(out))
}

// terminate ends a group of processes: more than one signal, as a shell that is
// about to start something waits for that first.
func terminate(group int) error {
	for range 50 {
		if unix.Kill(-group, unix.SIGTERM) != nil {
			return os.ErrProcessDone
		}
		time.Sleep(200 * time.Millisecond)
	}
	return unix.Kill(-group, unix.SIGKILL)
}

// lock waits until nobody else builds.
func (c *cache) lock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for said := false; ; said = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK {
			return nil, errors.Join(err, f.Close())
		}
		if !said {
			c.say("waiting for another process that builds in %s", c.dir)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(lockEvery):
		}
	}
}

// ofImages are the names of directories that imageDir returns.
var ofImages = regexp.MustCompile(`^guest-[0-9a-f]{12}$`)

// removeOthers removes what other versions of image.sh built, and half a build.
func (c *cache) removeOthers() {
	parent := filepath.Dir(c.dir)
	for _, e := range entries(parent) {
		if path := filepath.Join(parent, e.Name()); ofImages.MatchString(e.Name()) && path != c.dir {
			os.RemoveAll(path)
		}
	}
	c.removeHalf()
}

// removeHalf removes what a build that was killed left, but nothing that it had
// mounted there.
func (c *cache) removeHalf() {
	for _, e := range entries(c.dir) {
		if strings.HasPrefix(e.Name(), ".build.") {
			_ = exec.Command("rm", "-rf", "--one-file-system", "--", filepath.Join(c.dir, e.Name())).Run() // the next build tries again
		}
	}
}

// entries are those of a directory, as far as it can be read.
func entries(dir string) []os.DirEntry {
	list, _ := os.ReadDir(dir)
	return list
}
