package hostguard

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const execEnv = "HOSTGUARD_TEST_EXEC"

// What Exec becomes has the flags, and so has what that starts.
func TestExec(t *testing.T) {
	if os.Getenv(execEnv) != "" {
		t.Fatal(Exec([]string{"sh", "-c", "cat /proc/$$/stat; cat /proc/self/stat"}, os.Environ()))
	}
	if set, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil {
		t.Skipf("no right to set the flag: %v", err)
	} else if set != 0 {
		t.Fatal("the flag is set already: nothing can be seen")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestExec$")
	cmd.Env = append(os.Environ(), execEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 2 {
		t.Fatalf("got %q", out)
	}
	const flusher = 0x00080000 | 0x00100000 // PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE
	for _, line := range lines {
		words := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
		flags, err := strconv.ParseUint(words[6], 10, 64)
		if err != nil || flags&flusher != flusher {
			t.Errorf("flags %s (%v) of %s lack PR_SET_IO_FLUSHER", words[6], err, line)
		}
	}
}
