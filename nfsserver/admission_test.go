package nfsserver

import (
	"net/netip"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
)

// shareOut has n connections take what they get of limit, one at a time, until none gets
// more, and returns what they have.
func shareOut(limit int64, n int, local func(i int) bool) (have []int64, used, remote int64) {
	have = make([]int64, n)
	for i := 0; i < n; {
		l := ReceiveLoad{Limit: limit, Used: used, Remote: remote, ConnUsed: have[i], Need: 1}
		if !(FairShare{}).Admit(l, local(i)) {
			i++
			continue
		}
		have[i]++
		used++
		if !local(i) {
			remote++
		}
	}
	return have, used, remote
}

// Whoever comes next finds something, though those before give nothing back.
func TestFairShareLeavesSome(t *testing.T) {
	const limit = 64
	nobody, everybody := func(int) bool { return false }, func(int) bool { return true }
	for n := range 5 {
		for name, local := range map[string]func(int) bool{"here": everybody, "elsewhere": nobody} {
			have, used, remote := shareOut(limit, n, local)
			for _, next := range []bool{true, false} {
				if !(FairShare{}).Admit(ReceiveLoad{Limit: limit, Used: used, Remote: remote, Need: 1}, next) {
					t.Errorf("%d connections from %s have %v of %d: nothing is left for the next (local: %t)", n, name, have, limit, next)
				}
			}
		}
	}
}

func TestFairShareKeepsAQuarterForThisHost(t *testing.T) {
	_, used, _ := shareOut(64, 1000, func(int) bool { return false })
	if used != 48 {
		t.Errorf("1000 connections from elsewhere have %d of 64, want 48", used)
	}
}

// onlyHere takes clients of one address for local ones.
type onlyHere netip.Addr

func (a onlyHere) IsLocal(peer, _ netip.Addr) bool { return peer == netip.Addr(a) }

// silent opens a connection that asks for far more than it reads.
func (f *fixture) silent(t *testing.T, from string, h nfs3.FileHandle) {
	nc := dialFrom(t, from, f.addr)
	t.Cleanup(func() { nc.Close() })
	go func() {
		for i := range 4000 {
			call := sunrpc.Call{XID: uint32(i + 1), Prog: nfs3.Program, Vers: nfs3.Version, Proc: nfs3.ProcRead, Cred: rootCred()}
			if _, err := nc.Write(callRecord(&call, &nfs3.ReadArgs{Handle: h, Count: 16 << 10}, nil)); err != nil {
				return
			}
		}
	}()
}

func TestSilentPeersLeaveSlots(t *testing.T) {
	for name, from := range map[string]string{"here": "127.0.0.2", "elsewhere": "127.0.0.3"} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, func(c *Config) {
				c.Locality, c.Slots, c.SendTimeout = onlyHere(netip.MustParseAddr("127.0.0.2")), 64, 20*time.Second
			})
			f.fs.put(t, rootNode, "file", pattern(16<<10))
			other := dial(t, f.addr)
			h := other.file("file")
			for range 3 {
				f.silent(t, from, h)
			}
			eventually(t, "they have their shares", func() bool { return f.srv.Stats().InFlight >= 40 })
			began := time.Now()
			other.getattr(h)
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("GETATTR of a fourth client took %v", d)
			}
		})
	}
}
