package fusefs

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// posixEnv tells a child of TestDoorPosix where its mount is.
const posixEnv = "FUSEFS_POSIX_DIR"

// notOurs are the tests of go-fuse's suite for what the door does not do.
var notOurs = []string{
	"Fallocate", "FallocateKeepSize", "Tmpfile", "XAttr", "XAttrLarge", // there are none
	"FcntlFlockLocksFile", // wants a process to be locked out by its own lock
	"RenameOpenDir",       // wants fstat(2) of a directory that is no more
	// A file that is replaced between look-up and open is stale. The kernel
	// then looks it up again, but only once.
	"OpenSymlinkRace",
}

// TestDoorPosix runs go-fuse's suite on a mount: once more this binary, which
// runs TestDoorPosixChild.
func TestDoorPosix(t *testing.T) {
	m := mountTest(t, nil)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDoorPosixChild$", "-test.v")
	cmd.Env = append(os.Environ(), posixEnv+"="+m.dir, "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "--- PASS: TestDoorPosixChild/"); n < len(posixtest.All)-len(notOurs) {
		t.Errorf("only %d tests passed:\n%s", n, out)
	}
}

func TestDoorPosixChild(t *testing.T) {
	dir := os.Getenv(posixEnv)
	if dir == "" {
		t.Skip("it is run by TestDoorPosix")
	}
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		if slices.Contains(notOurs, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			sub := dir + "/" + name
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			posixtest.All[name](t, sub)
		})
	}
}
