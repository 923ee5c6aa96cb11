package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"loopnfs/internal/nfsmount"
)

// Flags that only one of the ways to mount has.
var (
	fuseFlags   = []string{"memory", "foreground", "log"}
	kernelFlags = []string{"loop-back"}
)

// choose decides between the ways to mount. probe reports why the kernel's client
// cannot be used.
func (o *mountOptions) choose(probe func() error) error {
	switch o.via {
	case viaKernel:
		return o.refuse(fuseFlags)
	case viaFuse:
		return o.refuse(kernelFlags)
	case viaAuto:
		return o.chooseAuto(probe)
	}
	return usagef("--via %s: give kernel, fuse or auto", o.via)
}

// refuse reports a flag that the chosen way does not have.
func (o *mountOptions) refuse(flags []string) error {
	if f := o.anyOf(flags); f != "" {
		return usagef("--%s: --via %s has no such flag", f, o.via)
	}
	return nil
}

func (o *mountOptions) anyOf(flags []string) string {
	for _, f := range flags {
		if o.given(f) {
			return f
		}
	}
	return ""
}

func (o *mountOptions) chooseAuto(probe func() error) error {
	if f := o.anyOf(fuseFlags); f != "" {
		o.via = viaFuse
		return o.refuse(kernelFlags)
	}
	var not *nfsmount.Unavailable
	switch err := probe(); {
	case err == nil:
		o.via = viaKernel
		return nil
	case !errors.As(err, &not):
		return err
	}
	o.via = viaFuse
	fmt.Fprintf(os.Stderr, "mounting with FUSE: %s\n", not.Why)
	return o.refuse(kernelFlags)
}

// kernelConfig turns flags into a configuration of the mount by the kernel.
func (o *mountOptions) kernelConfig() (cfg nfsmount.Config, err error) {
	if cfg.Mountpoint, err = absolute(o.mountpoint); err != nil {
		return cfg, err
	}
	if cfg.Host, cfg.Port, cfg.Export, err = parseSource(o.source); err != nil {
		return cfg, err
	}
	list := make([]string, len(o.options))
	for i, opt := range o.options {
		if list[i], err = kernelOption(opt, cfg.Port); err != nil {
			return cfg, usagef("-o %s: %w", opt, err)
		}
	}
	if cfg.Options, err = nfsmount.ParseOptions(list); err != nil {
		return cfg, usageError{err}
	}
	cfg.LoopBack = o.loopBack
	return cfg, nil
}

// kernelOption returns an option as the kernel takes it: sizes in bytes.
func kernelOption(opt, port string) (string, error) {
	key, value, _ := strings.Cut(opt, "=")
	switch key {
	case "rsize", "wsize":
		n, err := transferSize(value)
		return fmt.Sprintf("%s=%d", key, n), err
	case "port", "mountport":
		if key == "port" && port != "" && port != value {
			return "", fmt.Errorf("the port is given as %s too", port)
		}
		return opt, checkPort(value)
	}
	return opt, nil
}

// mountKernel mounts with the kernel's client, and leaves no process.
func mountKernel(ctx context.Context, opts *mountOptions, host *nfsmount.Host) error {
	cfg, err := opts.kernelConfig()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	m, err := host.Mount(ctx, cfg)
	if err != nil {
		return fmt.Errorf("cannot mount %s on %s: %w", opts.source, opts.mountpoint, err)
	}
	fmt.Fprintf(os.Stderr, "mounted with the kernel's client%s\n", capWords(m))
	for _, n := range m.Notes {
		fmt.Fprintf(os.Stderr, "note: %s\n", n)
	}
	return nil
}

// capWords says how the dirty pages of a mount are capped.
func capWords(m *nfsmount.Mounted) string {
	if m.Cap.Percent == 0 {
		return ""
	}
	return fmt.Sprintf("; the server is on this host, so dirty pages are capped at %d %% of the dirty limit, %s now", m.Cap.Percent, formatSize(m.Cap.Bytes))
}
