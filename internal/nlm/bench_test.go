package nlm

import (
	"testing"

	"loopnfs/internal/nlm4"
)

// A lock and its unlock, of a client that has locked before.
func BenchmarkLockUnlock(b *testing.B) {
	m, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	lock, unlock := nlm4.LockArgs{Exclusive: true, Lock: lockOf(1, 0, 10)}, nlm4.UnlockArgs{Lock: lockOf(1, 0, 10)}
	b.ReportAllocs()
	for b.Loop() {
		if m.Lock(Peer{}, &lock) != nlm4.Granted || m.Unlock(Peer{}, &unlock) != nlm4.Granted {
			b.Fatal("no lock")
		}
	}
}
