package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// newLogger returns the logger of a process that others depend on. flush waits until
// everything is written, but not for long.
func newLogger(w io.Writer, verbose bool) (log *slog.Logger, flush func()) {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	m := &messages{lines: make(chan message, maxMessages)}
	go m.writeTo(w)
	return slog.New(slog.NewTextHandler(m, &slog.HandlerOptions{Level: level})), m.flush
}

// outliveReaders lets the process go on when nobody reads its messages any more. A
// write to standard output or standard error would otherwise end it (SIGPIPE), and
// what it had still to write would be lost.
func outliveReaders() { signal.Ignore(syscall.SIGPIPE) }

const (
	// maxMessages wait to be written, the others are dropped.
	maxMessages = 256
	flushTime   = time.Second
)

// messages are written by a goroutine of their own: whoever reads them may wait for
// memory that this process is to clean, as the system's journal does.
type messages struct {
	lines   chan message
	dropped atomic.Int64
}

// message is a line, or a request to say when those before it are written.
type message struct {
	line    []byte
	written chan<- struct{}
}

// Write implements io.Writer. It does not wait.
func (m *messages) Write(p []byte) (int, error) {
	select {
	case m.lines <- message{line: bytes.Clone(p)}:
	default:
		m.dropped.Add(1)
	}
	return len(p), nil
}

// writeTo writes to w until the process ends. What cannot be written is lost.
func (m *messages) writeTo(w io.Writer) {
	for msg := range m.lines {
		if msg.written != nil {
			close(msg.written)
			continue
		}
		_, _ = w.Write(msg.line)
		if n := m.dropped.Swap(0); n > 0 {
			fmt.Fprintf(w, "%d messages were dropped, since nobody read them in time\n", n)
		}
	}
}

func (m *messages) flush() {
	late := time.After(flushTime)
	written := make(chan struct{})
	select {
	case m.lines <- message{written: written}:
	case <-late:
		return
	}
	select {
	case <-written:
	case <-late:
	}
}
