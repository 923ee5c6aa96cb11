package nfsserver

import (
	"sync/atomic"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
)

// Who does not have the lease any more answers nothing, wherever the call is when it is
// lost: not received, received, being carried out, or about to be answered.
func TestWithoutTheLease(t *testing.T) {
	var left atomic.Int64 // how often it is still there when asked
	left.Store(1 << 40)
	f := serve(t, func(cfg *Config) { cfg.Holds = func() bool { return left.Add(-1) >= 0 } })
	root := dial(t, f.addr).root()
	carriedOut := 0
	for n := int64(0); ; n++ {
		left.Store(1 << 40)
		f.fs.put(t, rootNode, "a", nil)
		nc := f.connect()
		defer nc.Close()
		check(t, nc.SetDeadline(time.Now().Add(5*time.Second)))
		left.Store(n)
		if _, err := nc.Write(sameCall(uint32(n), nfs3.ProcRemove, removeArgs(root, "a"), nil)); err != nil {
			t.Fatal(err)
		}
		_, err := nc.Read(make([]byte, 1))
		left.Store(1 << 40)
		_, st := f.ask(f.connect(), sameCall(uint32(1000+n), nfs3.ProcRemove, removeArgs(root, "a"), nil))
		if st == nfs3.StatusNoEnt {
			carriedOut++
		} else if err == nil || st != nfs3.StatusOK {
			t.Fatalf("asked %d times: %v, then %v", n, err, st)
		}
		if err == nil {
			if n < 3 || carriedOut != 2 {
				t.Errorf("answered when it was asked %d times; carried out %d times", n, carriedOut)
			}
			return
		}
	}
}
