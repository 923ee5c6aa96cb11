// Command loopnfs is an NFS server, a client and their drills, made to be
// mounted on the machine that serves.
//
// Each subcommand is a file: newXCommand makes the command, xOptions holds its
// flags, runX does it.
package main

import (
	"context"
	"fmt"
	"os"
)

func main() {
	os.Exit(Main(context.Background(), os.Args[1:]))
}

// Main runs the command line args and returns the exit code.
func Main(ctx context.Context, args []string) int {
	root := newRootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "loopnfs:", err)
	}
	return exitCode(err)
}
