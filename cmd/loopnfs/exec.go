package main

import (
	"os"

	"github.com/spf13/cobra"

	"loopnfs/internal/hostguard"
)

func newExecCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "exec -- PROGRAM [ARGUMENT...]",
		Short: "Run a program that never waits for the memory of a mount",
		Long: `Becomes another program which, when memory is short, waits for no file system to give
some back, and neither does what it starts (PR_SET_IO_FLUSHER).

It is for what has to work while the server of a mount of this host is away: a cluster
manager with its agents. When such a host has no memory left, and pages of the mount in
it that only the server can take, any other program that needs memory may wait for the
server, and the server for the cluster manager.

Needs CAP_SYS_RESOURCE; without it nothing is started.`,
		Example: `  loopnfs exec -- pacemakerd
  loopnfs exec -- corosync -f`,
		Args:                  cobra.MinimumNArgs(1),
		DisableFlagsInUseLine: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return hostguard.Exec(args, os.Environ())
		},
	}
}
