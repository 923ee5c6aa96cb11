package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"loopnfs/harness/vm"
	"loopnfs/harness/vm/job"
)

type guestOptions struct {
	kernel  string
	memory  byteSize
	disk    byteSize
	cpus    int
	fs      string
	files   []string
	limit   time.Duration
	console bool
}

func newDrillGuestCommand() *cobra.Command {
	opts := guestOptions{memory: 512 << 20, disk: 1 << 30}
	cmd := &cobra.Command{
		Use:   "guest [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a disposable guest with a stock kernel",
		Long: `Boots a guest with a stock Debian kernel, runs a command in it as root, in the
directory /job, where loopnfs and the files named by --file are, and passes on
its output and exit code. Of the guest nothing stays. An empty disk is mounted
at /srv; the modules for NFS, FUSE, nbd, XFS and veth are loaded.`,
		Example: `  loopnfs drill guest --kernel 6.12.43 --memory 192MiB -- uname -a
  loopnfs drill guest --file test.sh -- sh ./test.sh
  loopnfs drill guest -- sh -c './loopnfs serve --export /srv & sleep 2; mount -o vers=3,nolock 127.0.0.1:/srv /mnt; df /mnt'`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runGuest(cmd.Context(), &opts, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.kernel, "kernel", "6.1", "`VERSION` of the kernel; 6.1 is the newest 6.1")
	f.Var(&opts.memory, "memory", "memory of the guest")
	f.Var(&opts.disk, "disk", "size of the disk at /srv")
	f.IntVar(&opts.cpus, "cpus", 1, "CPUs of the guest")
	f.StringVar(&opts.fs, "fs", "ext4", "file system at /srv: `ext4|xfs`")
	f.StringArrayVar(&opts.files, "file", nil, "`FILE` to put into /job; may be repeated")
	f.DurationVar(&opts.limit, "limit", 10*time.Minute, "when to give up")
	f.BoolVar(&opts.console, "console", false, "what the kernel said, at the end, to standard error")
	return cmd
}

func runGuest(ctx context.Context, opts *guestOptions, argv []string, out, progress io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	tools, err := vm.FindTools()
	if err != nil {
		return err
	}
	cfg := vm.Config{
		Kernel: opts.kernel, MemoryMiB: int(opts.memory >> 20), DiskMiB: int(opts.disk >> 20), CPUs: opts.cpus,
		Job:   job.Job{Modules: append(vm.AllModules(), "veth"), Disk: opts.fs, Command: argv},
		Files: tools.Files(), Init: tools.Guest, Limit: opts.limit,
		Say: func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) },
	}
	for _, f := range opts.files {
		name := filepath.Base(f)
		if _, taken := cfg.Files[name]; taken {
			return usagef("--file %s: the guest has a %s already; give it another name", f, name)
		}
		cfg.Files[name] = f
	}
	if opts.console {
		cfg.Console = os.Stderr
	}
	exit := 0
	cfg.Handle = func(e job.Event) {
		_, _ = out.Write(e.Output)
		if e.Exit != nil {
			exit = *e.Exit
		}
	}
	if _, err := vm.Run(ctx, cfg); err != nil {
		return err
	}
	if exit != 0 {
		return codeError{exit, fmt.Errorf("the command ended with exit code %d", exit)}
	}
	return nil
}
