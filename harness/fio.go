package harness

import (
	"fmt"
	"os/exec"
	"time"
)

const (
	// fioMiB is how much one fio job writes.
	fioMiB = 32
	// verifyLimit bounds a check of everything that was written.
	verifyLimit = 60 * time.Second
)

// fioArgs is the part of the command line that the load and its check share:
// one process, so that one kill ends it.
func fioArgs(name, dir string, jobs int, seed int64) []string {
	return []string{
		"fio", "--name=" + name, "--directory=" + dir, "--thread", fmt.Sprintf("--numjobs=%d", jobs),
		fmt.Sprintf("--size=%dm", fioMiB), "--bs=256k", "--rw=write", fmt.Sprintf("--randseed=%d", seed),
		"--ioengine=psync", "--fallocate=none", "--eta=never", "--group_reporting",
	}
}

// fioLoad writes every block once, with a checksum in it; fioVerify checks them.
func fioLoad(dir string, jobs int, seed int64) []string {
	return append(fioArgs("load", dir, jobs, seed), "--verify=crc32c", "--verify_state_save=0", "--do_verify=0", "--end_fsync=1")
}

func fioVerify(dir string, jobs int, seed int64) []string {
	return append(fioArgs("load", dir, jobs, seed), "--verify=crc32c", "--verify_state_save=0", "--verify_only")
}

// fioPressure overwrites its files until it is killed.
func fioPressure(dir string, jobs int, seed int64) []string {
	return append(fioArgs("pressure", dir, jobs, seed), "--time_based", fmt.Sprintf("--runtime=%d", 2*runLimit/time.Second))
}

// checkTools reports a program that a drill needs and this host lacks.
func checkTools() error {
	if _, err := exec.LookPath("fio"); err != nil {
		return fmt.Errorf("fio is not installed: on Debian or Ubuntu, apt install fio (make drill does)")
	}
	return nil
}
