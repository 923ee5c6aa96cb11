package failover

import (
	"net"
	"path/filepath"
	"testing"
)

// A node that was switched off is not taken for one that still asks: the other node would be
// switched off, too.
func TestEnded(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ours, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if ended(ours) {
		t.Error("who waits for an answer is taken for gone")
	}
	theirs.Write([]byte("x"))
	for range 2 {
		if ended(ours) {
			t.Error("who has said more is taken for gone")
		}
	}
	theirs.Close()
	if ended(ours) {
		t.Error("what was said last is not looked at")
	}
	ours.Read(make([]byte, 1))
	if !ended(ours) {
		t.Error("who is gone is taken for there")
	}
}
