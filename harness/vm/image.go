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
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed image.sh
var imageScript []byte

// buildLimit bounds the build of the image, or the fetching of a kernel.
const buildLimit = 15 * time.Minute

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
	dir string
	say func(string, ...any)
}

func openCache(say func(string, ...any)) (*cache, error) {
	dir := imageDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("no place for guest images: %w; name one with LOOPNFS_CACHE", err)
	}
	return &cache{dir: dir, say: say}, nil
}

// root returns the image of the root file system.
func (c *cache) root(ctx context.Context) (string, error) {
	path := filepath.Join(c.dir, "root.ext4")
	return path, c.make(ctx, path, "building the guest image (once, about a minute)", "root", path)
}

// kernel returns a kernel: version is exact or the beginning of one.
func (c *cache) kernel(ctx context.Context, version string) (*Kernel, error) {
	if version == "" || strings.Trim(version, "0123456789.") != "" {
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
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	c.removeOthers()
	c.say("%s", what)
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", append([]string{"-s", "--"}, args...)...)
	cmd.Stdin = bytes.NewReader(imageScript)
	// Ctrl-C reaches the script too, which then removes what it began.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s failed: %w\n%s", what, err, bytes.TrimSpace(out))
	}
	return nil
}

func (c *cache) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeOthers removes what other versions of image.sh built.
func (c *cache) removeOthers() {
	dirs, _ := filepath.Glob(filepath.Join(filepath.Dir(c.dir), "guest-*"))
	for _, dir := range dirs {
		if dir != c.dir {
			os.RemoveAll(dir)
		}
	}
}
