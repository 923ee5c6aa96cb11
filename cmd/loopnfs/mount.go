package main

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"loopnfs/fusefs"
	"loopnfs/internal/hostguard"
	"loopnfs/internal/nfsmount"
	"loopnfs/internal/stack"
	"loopnfs/nfsclient"
)

type mountOptions struct {
	source     string // HOST[:PORT]:/NAME
	mountpoint string
	via        string
	options    []string
	loopBack   bool
	memory     byteSize
	foreground bool
	timeout    time.Duration
	log        string
	verbose    bool
	given      func(flag string) bool
}

// The ways to mount.
const (
	viaAuto   = "auto"
	viaKernel = "kernel"
	viaFuse   = "fuse"
)

func newMountCommand() *cobra.Command {
	opts := mountOptions{memory: defaultMemory}
	cmd := &cobra.Command{
		Use:   "mount HOST[:PORT]:/NAME MOUNTPOINT",
		Short: "Mount what an NFS server exports",
		Long: `Mounts an export of an NFSv3 server. There are two ways:

--via kernel uses the NFS client of the kernel. The mount is all there is; no process
stays. If the server is on this host, the mount's dirty pages are capped, so that
memory cannot fill with pages that only the server can clean. Root only.

--via fuse uses the client of loopnfs, which has a page cache of its own and is a
FUSE file system to the kernel. The command returns when the mount can be used; a
process in the background serves it until it is unmounted.

--via auto is the kernel's client if there is one and the caller may use it, else
FUSE, and says which. A flag that only FUSE has decides for FUSE.

Either way, what closing a file, fsync or unmounting has returned from is with the
server, and while the server is away, everybody who needs it waits.

Options of -o, separated by commas:
  rsize=SIZE, wsize=SIZE  largest READ and WRITE
  port=N, mountport=N     ports of NFS and MOUNT (default 2049, and that of NFS)
  actimeo=SECONDS         how long attributes are believed
With --via kernel also the other options of NFSv3 in nfs(5), and ro, noatime, nodev,
nosuid, noexec and the like. soft is refused if the server is on this host.`,
		Example: `  loopnfs mount 127.0.0.1:/data /mnt
  loopnfs mount server:/data /mnt --via kernel -o ro,noatime
  loopnfs mount cluster-address:/data /mnt --via kernel --loop-back
  loopnfs mount server:20490:/data /mnt -o rsize=256KiB,wsize=256KiB --memory 256MiB
  loopnfs mount '[::1]:/data' /mnt --via fuse --foreground`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.source, opts.mountpoint = args[0], args[1]
			opts.given = func(flag string) bool { return cmd.Flags().Changed(flag) }
			return runMount(cmd.Context(), &opts)
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.via, "via", viaAuto, "how to mount: `kernel|fuse|auto`")
	f.StringSliceVarP(&opts.options, "options", "o", nil, "mount `options`")
	f.BoolVar(&opts.loopBack, "loop-back", false, "kernel: the server is on this host, or may come here, whatever its address says")
	f.Var(&opts.memory, "memory", "FUSE: memory for the cache; all of it is taken at the start")
	f.BoolVar(&opts.foreground, "foreground", false, "FUSE: stay in the foreground, messages to standard error, and print \"ready\" when the mount can be used")
	f.DurationVar(&opts.timeout, "timeout", 30*time.Second, "how long to try to reach the server")
	f.StringVar(&opts.log, "log", defaultLog(), "FUSE: `file` for messages of the process in the background")
	f.BoolVar(&opts.verbose, "verbose", false, "more messages")
	return cmd
}

// defaultLog is where a process in the background writes its messages.
func defaultLog() string {
	if os.Geteuid() == 0 {
		return "/var/log/loopnfs-mount.log"
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return dir + "/loopnfs-mount.log"
	}
	return os.DevNull
}

// runMount mounts by the way that was chosen.
func runMount(ctx context.Context, opts *mountOptions) error {
	if opts.timeout <= 0 {
		return usagef("--timeout %v: give a time, like 30s", opts.timeout)
	}
	host := nfsmount.ThisHost()
	if err := opts.choose(host.Kernel.Probe); err != nil {
		return err
	}
	if opts.via == viaKernel {
		return mountKernel(ctx, opts, host)
	}
	return mountFuse(ctx, opts)
}

// mountFuse mounts in this process, or in one that it leaves behind.
func mountFuse(ctx context.Context, opts *mountOptions) error {
	cfg, err := opts.config()
	if err != nil {
		return err
	}
	if !isDetached() && !opts.foreground {
		return startDetached(ctx, opts)
	}
	guard := hostguard.Enter()
	if isDetached() {
		return reportStart(func(ready func() error) error { return serveMount(ctx, opts, cfg, guard, ready) })
	}
	return serveMount(ctx, opts, cfg, guard, func() error {
		os.Stdout.WriteString("ready " + opts.mountpoint + "\n") // who does not read it needs it not
		return nil
	})
}

// config turns flags into a configuration of the mount by FUSE.
func (o *mountOptions) config() (cfg stack.ClientConfig, err error) {
	if o.mountpoint, err = realMountpoint(o.mountpoint); err != nil {
		return cfg, err
	}
	host, port, name, err := parseSource(o.source)
	if err != nil {
		return cfg, err
	}
	nfs := nfsclient.Config{Export: name}
	mo := mountO{port: port}
	for _, s := range o.options {
		if err := mo.set(s, &nfs); err != nil {
			return cfg, err
		}
	}
	nfs.Addr = net.JoinHostPort(host, orDefault(mo.port, "2049"))
	nfs.MountAddr = net.JoinHostPort(host, orDefault(mo.mountPort, orDefault(mo.port, "2049")))
	return stack.ClientConfig{
		NFS: nfs,
		Door: fusefs.DoorConfig{
			Mountpoint: o.mountpoint, FsName: host + ":" + name,
			AttrTimeout: nfs.AttrTimeout, EntryTimeout: nfs.AttrTimeout,
			Dropper: dropper,
		},
	}, nil
}

// parseSource splits HOST[:PORT]:/NAME; an IPv6 address is in brackets.
func parseSource(s string) (host, port, name string, err error) {
	addr, name, ok := strings.Cut(s, ":/")
	if !ok || addr == "" {
		return "", "", "", usagef("%q is not something to mount: write HOST:/NAME or HOST:PORT:/NAME, like 127.0.0.1:/data", s)
	}
	name = "/" + name
	if h, p, err := net.SplitHostPort(addr); err == nil {
		host, port = h, p
		if err := checkPort(port); err != nil {
			return "", "", "", usagef("%q: %w", s, err)
		}
	} else {
		host = strings.Trim(addr, "[]")
	}
	if strings.Contains(host, ":") && addr[0] != '[' {
		return "", "", "", usagef("%q: put an IPv6 address in brackets, like [::1]:/data", s)
	}
	return host, port, name, nil
}

func checkPort(s string) error {
	if n, err := strconv.ParseUint(s, 10, 16); err != nil || n == 0 {
		return usagef("%q is not a port: give 1 to 65535", s)
	}
	return nil
}

// mountO holds what -o says besides the client's own configuration.
type mountO struct{ port, mountPort string }

// set takes one option.
func (m *mountO) set(opt string, nfs *nfsclient.Config) (err error) {
	key, value, _ := strings.Cut(opt, "=")
	switch key {
	case "rsize":
		nfs.RSize, err = transferSize(value)
	case "wsize":
		nfs.WSize, err = transferSize(value)
	case "port":
		if m.port != "" && m.port != value {
			return usagef("-o %s: the port is given as %s too", opt, m.port)
		}
		m.port, err = value, checkPort(value)
	case "mountport":
		m.mountPort, err = value, checkPort(value)
	case "actimeo":
		nfs.AttrTimeout, err = seconds(value)
	default:
		return usagef("-o %s: no such option with --via fuse; there are rsize, wsize, port, mountport, actimeo", opt)
	}
	if err != nil {
		return usagef("-o %s: %w", opt, err)
	}
	return nil
}

func transferSize(s string) (uint32, error) {
	n, err := parseSize(s)
	if err != nil {
		return 0, err
	}
	if n < 4096 || n > nfsclient.MaxIOBytes {
		return 0, usagef("give 4KiB to %s", formatSize(nfsclient.MaxIOBytes))
	}
	return uint32(n), nil
}

// seconds returns a time; 0 is "not at all", which the parts write as negative.
func seconds(s string) (time.Duration, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, usagef("%q is not a number of seconds", s)
	}
	if n == 0 {
		return -1, nil
	}
	return time.Duration(n) * time.Second, nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
