package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"loopnfs/alloc"
	"loopnfs/fusefs"
	"loopnfs/internal/hostguard"
	"loopnfs/internal/stack"
	"loopnfs/reclaim/writeback"
)

// clientBackground is how much may be dirty, in bytes, before it goes to the server. A
// server on this host stands idle until then, and has the rest to write when somebody
// waits for it in fsync.
const clientBackground = 8 << 20

// serveMount mounts, and serves the mount until it is unmounted, or not at all if
// ready fails: a mount that was interrupted must not appear later.
func serveMount(ctx context.Context, opts *mountOptions, cfg stack.ClientConfig, guard *hostguard.Guard, ready func() error) error {
	outliveReaders()
	signals := notifyEnd(opts.foreground)
	defer signal.Stop(signals)
	log, flush := newLogger(os.Stderr, opts.verbose)
	defer flush()
	cfg.Logger = log

	st, err := listenStatus(opts.mountpoint)
	if err != nil {
		return err
	}
	defer st.close()
	spareProcessors()
	guard.Protect(guardConfig(fuseThreads))
	memory := stack.DefaultMemory(int64(opts.memory))
	memory.Background = clientBackground
	mem, err := newMemory(memory, guard, fusefs.DefaultMaxNodes*clientInode)
	if err != nil {
		return err
	}
	defer mem.Stop()
	client, err := startClient(ctx, opts, mem, cfg, signals)
	if err != nil {
		return err
	}
	go st.serve(func() int64 { return unwritten(client.BDI()) })
	guard.Check()
	guard.Log(cfg.Logger)
	if err := ready(); err != nil {
		cfg.Logger.Warn("nobody waits for the mount any more: unmounting", "error", err)
		return finish(client, st, signals, cfg.Logger)
	}
	select {
	case <-client.Door.Done():
	case <-client.Door.Dead():
	case <-st.giveUp:
	case s := <-signals:
		cfg.Logger.Info("stopping", "signal", s)
	}
	return finish(client, st, signals, cfg.Logger)
}

// notifyEnd returns a channel of the signals that end a mount: the end of the terminal, too,
// unless the process has none or is to outlive it (nohup).
func notifyEnd(foreground bool) chan os.Signal {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if foreground && !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	} else {
		signal.Ignore(syscall.SIGHUP)
	}
	return signals
}

// startClient connects and mounts, for as long as the options allow and no
// signal comes.
func startClient(ctx context.Context, opts *mountOptions, mem *stack.Memory, cfg stack.ClientConfig, signals <-chan os.Signal) (*stack.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	started := make(chan struct{})
	defer close(started)
	go func() {
		select {
		case <-signals:
			cancel()
		case <-started:
		}
	}()
	c, err := stack.StartClient(ctx, mem, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot mount %s on %s: %w", opts.source, opts.mountpoint, err)
	}
	return c, nil
}

// finish writes everything back, for as long as it takes, unless somebody says
// to give up: a second signal, or umount --force. Then whoever is stuck stays
// behind, and ends with the process.
func finish(client *stack.Client, st *status, signals <-chan os.Signal, log *slog.Logger) error {
	stopped := make(chan error, 1)
	go func() { stopped <- client.Stop(context.Background()) }()
	var err error
	select {
	case err = <-stopped:
	case <-signals:
		err = giveUp(client, "a second signal came")
	case <-st.giveUp:
		err = giveUp(client, "it was told to give up")
	}
	st.finish(err)
	if err == nil {
		return nil
	}
	log.Error("data is lost", "error", err)
	return codeError{exitLost, fmt.Errorf("data is lost: %w", err)}
}

// giveUp returns the error for what is not written; nil if there is nothing.
func giveUp(client *stack.Client, why string) error {
	n := unwritten(client.BDI())
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s were not written to the server", why, formatSize(n))
}

// unwritten returns how many bytes the server does not have on stable storage.
func unwritten(b *writeback.BDI) int64 { return int64(b.Pages()) << alloc.PageShift }
