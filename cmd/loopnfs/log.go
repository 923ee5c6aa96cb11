package main

import (
	"io"
	"log/slog"
	"os/signal"
	"syscall"
)

func newLogger(w io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// outliveReaders lets the process go on when nobody reads its messages any more. A
// write to standard output or standard error would otherwise end it (SIGPIPE), and
// what it had still to write would be lost.
func outliveReaders() { signal.Ignore(syscall.SIGPIPE) }
