package nfsserver

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
)

// Many clients at once, with data verified, while others connect and are gone in
// the middle of something. Whatever happens, nothing is kept: serve checks.
func TestStress(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	f := serve(t, func(c *Config) { c.Workers, c.Slots = 4, 16 })
	h0 := dial(t, f.addr).root()
	var wg sync.WaitGroup
	for i := range uint64(6) {
		f.fs.put(t, rootNode, fmt.Sprint("file", i), nil)
		wg.Go(func() { writeAndRead(t, f, rand.New(rand.NewPCG(seed, i)), fmt.Sprint("file", i)) })
	}
	for i := range uint64(3) {
		wg.Go(func() { vanish(t, f, rand.New(rand.NewPCG(seed, 100+i)), h0) })
	}
	wg.Wait()
}

// writeAndRead writes random parts of a file, several at once, and compares.
func writeAndRead(t *testing.T, f *fixture, rnd *rand.Rand, name string) {
	const size = 300 << 10
	want := make([]byte, size)
	c := dial(t, f.addr)
	h := c.file(name)
	c.write(nfs3.WriteArgs{Handle: h}, want)
	for range 20 {
		var replies []chan []byte
		pos := 0
		for pos < size {
			n := min(rnd.IntN(70<<10)+1, size-pos)
			part := want[pos : pos+n]
			for i := range part {
				part[i] = byte(rnd.Uint32())
			}
			replies = append(replies, c.start(nfs3.Program, nfs3.ProcWrite,
				&nfs3.WriteArgs{Handle: h, Offset: uint64(pos), Count: uint32(n)}, part))
			pos += n
		}
		for _, ch := range replies {
			if _, err := c.wait(ch); err != nil {
				t.Error(err)
				return
			}
		}
		off := rnd.IntN(size)
		if _, got := c.read(h, uint64(off), size); !bytes.Equal(got, want[off:]) {
			t.Errorf("%s differs from offset %d on", name, off)
			return
		}
	}
}

// vanish sends calls, or parts of them, and closes the connection.
func vanish(t *testing.T, f *fixture, rnd *rand.Rand, h nfs3.FileHandle) {
	data := pattern(200 << 10)
	for range 60 {
		nc := dialFrom(t, "127.0.0.1", f.addr)
		for range rnd.IntN(10) {
			head := sunrpc.Call{XID: rnd.Uint32(), Prog: nfs3.Program, Vers: 3, Cred: rootCred()}
			var rec []byte
			switch rnd.IntN(4) {
			case 0:
				head.Proc = nfs3.ProcWrite
				rec = callRecord(&head, &nfs3.WriteArgs{Handle: h, Count: uint32(len(data))}, data)
			case 1:
				head.Proc = nfs3.ProcReaddirplus
				rec = callRecord(&head, &nfs3.ReaddirplusArgs{Handle: h, DirCount: 8192, MaxCount: 65536}, nil)
			case 2:
				head.Proc = nfs3.ProcLookup
				rec = callRecord(&head, &nfs3.LookupArgs{Dir: h, Name: []byte("file1")}, nil)
			default:
				head.Proc = nfs3.ProcGetAttr
				rec = callRecord(&head, &nfs3.GetAttrArgs{Handle: h}, nil)
			}
			if rnd.IntN(5) == 0 {
				rec = rec[:rnd.IntN(len(rec))]
			}
			nc.Write(rec)
		}
		nc.Close()
	}
}
