package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"loopnfs/fusefs"
	"loopnfs/internal/pressure"
)

// dropCommand is a hidden one: see fusefs.DoorConfig.Dropper.
const dropCommand = "drop-unused"

func newDropUnusedCommand() *cobra.Command {
	var id int
	cmd := &cobra.Command{
		Use: dropCommand, Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			// When memory runs out, nobody needs this process: then the kernel drops
			// what it does not use without it.
			_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
			return fusefs.ServeDrops(args[0], id, os.Stdin, os.Stdout)
		},
	}
	cmd.Flags().IntVar(&id, "id", 0, "number of the connection")
	return cmd
}

// dropper returns the command that has the kernel drop what it does not use of a mount. It
// is not to be started while memory is short: the runtime waits for it until it runs.
func dropper(mountpoint string, id int) (*exec.Cmd, error) {
	if pressure.ShortNow() {
		return nil, errors.New("the host is short of memory")
	}
	cmd := selfCommand(context.Background(), dropCommand, "--id="+strconv.Itoa(id), "--", mountpoint)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}
