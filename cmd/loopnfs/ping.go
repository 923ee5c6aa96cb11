package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/nfs3"
)

type pingOptions struct {
	addr, export string
	file         string
	timeout      time.Duration
}

func newPingCommand() *cobra.Command {
	var opts pingOptions
	cmd := &cobra.Command{
		Use:   "ping HOST[:PORT]:/NAME",
		Short: "Ask an NFS server whether it serves",
		Long: `Mounts an export for a moment, as far as the server is concerned, asks for the
attributes of its root and lists it: MNT, GETATTR and READDIR. With --file the
beginning of a file is read, too. Nothing is mounted on this host, and no mount of it
is looked at, so this ends in time whatever has happened to them.

It is what a cluster asks a server (monitor of ocf:loopnfs:server).`,
		Example: `  loopnfs ping 127.0.0.1:/data
  loopnfs ping cluster-address:2049:/data --timeout 3s --file alive`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			host, port, name, err := parseSource(args[0])
			if err != nil {
				return err
			}
			opts.addr, opts.export = net.JoinHostPort(host, orDefault(port, "2049")), name
			return runPing(cmd.Context(), &opts, cmd.OutOrStdout())
		},
	}
	cmd.Flags().DurationVar(&opts.timeout, "timeout", 5*time.Second, "how long all of it may take")
	cmd.Flags().StringVar(&opts.file, "file", "", "also read this `file`, which is in the root of the export")
	return cmd
}

// runPing asks once. All calls together have the time of one.
func runPing(ctx context.Context, opts *pingOptions, out io.Writer) error {
	if opts.timeout <= 0 {
		return usagef("--timeout %v: give a time, like 5s", opts.timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	start := time.Now()
	asked := make(chan error, 1)
	go func() { asked <- opts.ask() }()
	select {
	case err := <-asked:
		if err != nil {
			return fmt.Errorf("%s does not serve %s: %w", opts.addr, opts.export, err)
		}
	case <-ctx.Done():
		return fmt.Errorf("%s did not answer for %s within %v", opts.addr, opts.export, opts.timeout)
	}
	_, err := fmt.Fprintf(out, "%s serves %s, asked in %v\n", opts.addr, opts.export, time.Since(start).Round(time.Millisecond))
	return err
}

func (o *pingOptions) ask() error {
	c, err := rawnfs.DialTimeout(o.addr, o.timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	root, err := c.Mount(o.export)
	if err != nil {
		return err
	}
	attr, err := c.GetAttr(root)
	if err == nil && attr.Status != nfs3.StatusOK {
		err = fmt.Errorf("GETATTR: %v", attr.Status)
	}
	return errors.Join(err, list(c, root), o.read(c, root))
}

// list reads the first entries of a directory.
func list(c *rawnfs.Client, dir nfs3.FileHandle) error {
	var res nfs3.ReaddirResult
	_, err := c.Call(nfs3.ProcReaddir, &nfs3.ReaddirArgs{Handle: dir, Count: 1024}, nil, &res)
	if err == nil && res.Status != nfs3.StatusOK {
		err = fmt.Errorf("READDIR: %v", res.Status)
	}
	return err
}

func (o *pingOptions) read(c *rawnfs.Client, root nfs3.FileHandle) error {
	if o.file == "" {
		return nil
	}
	found, err := c.Lookup(root, o.file)
	if err == nil && found.Status != nfs3.StatusOK {
		err = fmt.Errorf("LOOKUP %s: %v", o.file, found.Status)
	}
	if err != nil {
		return err
	}
	_, err = c.Read(found.Handle, 0, 4096)
	return err
}
