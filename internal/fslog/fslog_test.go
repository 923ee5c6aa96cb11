package fslog

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		name string
		mkfs []string
		want Log
	}{
		{"ext4", []string{"mkfs.ext4", "-q"}, Ext4},
		{"ext4 without a journal", []string{"mkfs.ext4", "-q", "-O", "^has_journal"}, None},
		{"xfs", []string{"mkfs.xfs", "-q"}, XFS},
		{"tmpfs", nil, None},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := mounted(t, c.mkfs)
			fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if got := Of(fd); got != c.want {
				t.Errorf("log %d, want %d", got, c.want)
			}
		})
	}
	if got := Of(-1); got != None {
		t.Errorf("log %d of nothing", got)
	}
}

// mounted returns a directory with a new file system; none: a tmpfs.
func mounted(t *testing.T, mkfs []string) string {
	dir := t.TempDir()
	args := []string{"-t", "tmpfs", "none", dir}
	if mkfs != nil {
		if _, err := exec.LookPath(mkfs[0]); err != nil {
			t.Skip(err)
		}
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 512<<20); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		args = []string{"-o", "loop", image, dir}
	}
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Skipf("cannot mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
