package harness

import (
	"fmt"
	"os/exec"
	"time"
)

// fioMiB is how much one fio job writes.
const fioMiB = 24

// fioArgs returns the command line of the load or, with verify, of the check
// that it is all there. One process, so that one kill ends it.
func fioArgs(dir string, jobs int, seed int64, verify bool) []string {
	args := []string{
		"fio", "--name=fio", "--directory=" + dir, "--thread", fmt.Sprintf("--numjobs=%d", jobs),
		fmt.Sprintf("--size=%dm", fioMiB), "--bs=16k", "--rw=randwrite", fmt.Sprintf("--randseed=%d", seed),
		"--ioengine=psync", "--fallocate=none", "--verify=crc32c", "--verify_state_save=0", "--eta=never", "--group_reporting",
	}
	if verify {
		return append(args, "--verify_only")
	}
	return append(args, "--do_verify=0", "--fsync=64", "--end_fsync=1")
}

// checkTools reports a program that a drill needs and this host lacks.
func checkTools() error {
	if _, err := exec.LookPath("fio"); err != nil {
		return fmt.Errorf("fio is not installed: on Debian or Ubuntu, apt install fio (make drill does)")
	}
	return nil
}

// verifyLimit bounds a check of everything that was written.
const verifyLimit = 60 * time.Second
