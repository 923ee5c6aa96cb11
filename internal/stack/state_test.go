package stack

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each start has another epoch, also after one that was cut off while it wrote.
func TestEpoch(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	start := func() *Server {
		t.Helper()
		s := &Server{cfg: ServerConfig{Exports: []ExportConfig{{Dir: dir}}, StateDir: state, Logger: slog.Default()}}
		if err := s.openState(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	for want := uint32(1); want < 6; want++ {
		s := start()
		if s.epoch != want {
			t.Errorf("start %d has epoch %d", want, s.epoch)
		}
		if err := (&Server{cfg: s.cfg}).openState(); err == nil || !strings.Contains(err.Error(), "another server") {
			t.Errorf("two at the same time: %v", err)
		}
		s.state.Close()
	}
	name := filepath.Join(state, epochName)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[epochSlot:], bytes.Repeat([]byte{0xff}, 300)) // epoch 5, half written
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s := start()
	defer s.state.Close()
	if s.epoch != 5 {
		t.Errorf("after a start that was cut off: epoch %d, want 5", s.epoch)
	}
}
