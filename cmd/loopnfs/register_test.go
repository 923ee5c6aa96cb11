package main

import (
	"log/slog"
	"net"
	"testing"

	"loopnfs/internal/nlm"
)

// A portmapper that is not there keeps a server from its first start, and not from those
// that its clients wait for.
func TestRegisterWithoutPortmapper(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	addr, log := l.Addr().String(), slog.New(slog.DiscardHandler)
	if _, err := registerAt(addr, 2049, nlm.Programs(), false, log); err == nil {
		t.Error("the first start: no error")
	}
	r, err := registerAt(addr, 2049, nlm.Programs(), true, log)
	if err != nil || r.Port() != 2049 {
		t.Errorf("a restart: %v", err)
	}
}
