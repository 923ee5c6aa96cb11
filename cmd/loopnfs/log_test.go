package main

import (
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
)

func TestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		m := &messages{lines: make(chan message, maxMessages)}
		go m.writeTo(w)
		log, flush := slog.New(slog.NewTextHandler(m, nil)), m.flush
		log.Info("first")
		synctest.Wait() // it is being written
		for range maxMessages + 3 {
			log.Info("another")
		}
		flush() // nobody reads: it gives up
		var text strings.Builder
		go io.Copy(&text, r)
		flush()
		synctest.Wait()
		if s := text.String(); strings.Count(s, "another") != maxMessages || !strings.Contains(s, "\n3 messages were dropped") || !strings.Contains(s, "msg=first\n3 ") {
			t.Errorf("%d lines:\n%.200s", strings.Count(s, "\n"), s)
		}
		close(m.lines)
		w.Close()
		synctest.Wait()
	})
}
