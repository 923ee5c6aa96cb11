package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestKernelMount runs testdata/guest/mount.sh in a guest: most machines that test have
// no NFS client in the kernel, or one that is not to be played with. LOOPNFS_GUEST is
// the version of its kernel, and LOOPNFS the program, as make build leaves it.
func TestKernelMount(t *testing.T) {
	kernel, exe := os.Getenv("LOOPNFS_GUEST"), os.Getenv("LOOPNFS")
	if kernel == "" || exe == "" {
		t.Skip("it boots a guest: set LOOPNFS_GUEST=6.12 and LOOPNFS=.../bin/loopnfs")
	}
	mapper := filepath.Join(t.TempDir(), "mapper")
	build := exec.Command("go", "build", "-o", mapper, "./testdata/guest/mapper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // the guest has another libc
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(exe, "drill", "guest", "--kernel", kernel, "--memory", "256MiB",
		"--file", "testdata/guest/mount.sh", "--file", mapper, "--", "sh", "./mount.sh").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// TestKernelLocks runs testdata/guest/locks.sh in a guest, like TestKernelMount: mounts
// without nolock, with the lock manager of the kernel's client on the other side.
func TestKernelLocks(t *testing.T) { testKernelLocks(t, "locks.sh") }

// TestKernelLocksHere runs testdata/guest/looplocks.sh in the same way: the client is on
// the server's own host.
func TestKernelLocksHere(t *testing.T) { testKernelLocks(t, "looplocks.sh") }

func testKernelLocks(t *testing.T, script string) {
	kernel, exe := os.Getenv("LOOPNFS_GUEST"), os.Getenv("LOOPNFS")
	if kernel == "" || exe == "" {
		t.Skip("it boots a guest: set LOOPNFS_GUEST=6.12 and LOOPNFS=.../bin/loopnfs")
	}
	out, err := exec.Command(exe, "drill", "guest", "--kernel", kernel, "--memory", "256MiB",
		"--file", "testdata/guest/"+script, "--file", "testdata/guest/locks.py", "--", "sh", "./"+script).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
