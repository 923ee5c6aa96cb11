// The program inside a guest: its init, the runner of its job, and its monitor.
//
// As process 1 it mounts what there is, loads modules, unpacks the job that came
// on a disk, does it, tells the host about it on a serial port, and restarts the
// machine, which ends it. Whatever it starts is started through its own verb
// "exec": the monitor runs under PR_SET_IO_FLUSHER, which children would
// inherit, and the load and the servers are not to be better off than on a
// machine of their own.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"loopnfs/harness/work"
)

func main() {
	if os.Getpid() == 1 {
		boot()
		return
	}
	if err := verb(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func verb(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: %s exec|work|hold|hog|churn ARGUMENT", os.Args[0])
	}
	switch args[0] {
	case "exec":
		return execPlain(args[1:])
	case "work":
		return work.Main(context.Background(), args[1], os.Stdin, os.Stdout)
	case "hold":
		return hold(args[1])
	case "hog", "churn":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		if args[0] == "churn" {
			return churn(n)
		}
		return hog(n)
	}
	return fmt.Errorf("unknown verb %q", args[0])
}

// execPlain becomes another program, without the monitor's privileges.
func execPlain(argv []string) error {
	runtime.LockOSThread() // flags are the thread's, and exec keeps them
	if err := setScheduler(unix.SCHED_NORMAL, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_IO_FLUSHER: %w", err)
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0) // best effort: 0 is where it starts
	path, err := lookPath(argv[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("exec %s: %w", path, unix.Exec(path, argv, os.Environ()))
}
