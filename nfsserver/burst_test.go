package nfsserver

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// burst is what one connection sends, in pieces of all sizes, and what it expects.
type burst struct {
	buf    []byte
	expect map[uint32]bool // XIDs without a reply
}

func (b *burst) add(xid, proc uint32, args encoder, payload []byte) {
	b.buf = append(b.buf, nfsCall(xid, proc, args, payload)...)
	b.expect[xid] = true
}

// mixedBurst is n calls of all kinds, most of which need no waiting.
func mixedBurst(rnd *rand.Rand, n int, root nfs3.FileHandle, files []nfs3.FileHandle) *burst {
	b := &burst{expect: map[uint32]bool{}}
	base := rnd.Uint32()
	for i := range n {
		h, xid := files[rnd.IntN(len(files))], base+uint32(i)
		off, size := uint64(rnd.IntN(1<<20)), 1+rnd.IntN(9000)
		switch rnd.IntN(20) {
		case 0:
			b.add(xid, nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, nil)
		case 1:
			set := nfs3.SetAttrArgs{Handle: h}
			set.Set.SetSize, set.Set.Size = true, uint64(rnd.IntN(1<<20))
			b.add(xid, nfs3.ProcSetAttr, &set, nil)
		case 2:
			b.add(xid, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Offset: off, Count: uint32(size), Stable: vfs.FileSync}, pattern(size))
		case 3, 4, 5, 6:
			b.add(xid, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Offset: off &^ 4095, Count: 4096}, pattern(4096))
		case 7:
			b.add(xid, nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Offset: off, Count: uint32(size)}, pattern(size))
		case 8, 9, 10, 11:
			b.add(xid, nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Offset: off, Count: uint32(size)}, nil)
		case 12:
			b.add(xid, nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Count: 1 << 20}, nil)
		case 13:
			b.add(xid, nfs3.ProcLookup, &nfs3.LookupArgs{Dir: root, Name: []byte(fmt.Sprint("file", rnd.IntN(12)))}, nil)
		case 14:
			b.add(xid, nfs3.ProcAccess, &nfs3.AccessArgs{Handle: h, Access: accessAll}, nil)
		case 15:
			b.add(xid, nfs3.ProcReaddir, &nfs3.ReaddirArgs{Handle: root, Count: 4096}, nil)
		case 16:
			b.add(xid, nfs3.ProcNull, nil, nil)
		case 17:
			where := nfs3.DirOpArgs{Dir: root, Name: []byte(fmt.Sprint("new", rnd.IntN(8)))}
			b.add(xid, nfs3.ProcCreate, &nfs3.CreateArgs{Where: where}, nil)
		case 18:
			b.add(xid, nfs3.ProcRemove, &nfs3.RemoveArgs{Dir: root, Name: []byte(fmt.Sprint("new", rnd.IntN(8)))}, nil)
		default:
			b.add(xid, nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, nil)
		}
	}
	return b
}

// send writes the burst in pieces, then closes this half of the connection.
func (b *burst) send(rnd *rand.Rand, nc *net.TCPConn) {
	for rest := b.buf; len(rest) > 0; {
		n := min(len(rest), 1+rnd.IntN(1<<uint(rnd.IntN(18))))
		if _, err := nc.Write(rest[:n]); err != nil {
			return
		}
		if rest = rest[n:]; rnd.IntN(50) == 0 {
			time.Sleep(time.Duration(rnd.IntN(2000)) * time.Microsecond)
		}
	}
	nc.CloseWrite()
}

// Bursts of calls of all kinds, of which the reader carries out some and workers the rest,
// from connections of which some close their half and some just go away: every call has
// one reply, and nothing is kept.
func TestBursts(t *testing.T) {
	dir, state := diskDirs(t)
	for i := range 8 {
		check(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), pattern(1<<20), 0o666))
	}
	s := serveStore(t, dir, state, 24<<20, "127.0.0.1:0", func(c *Config) { c.Slots, c.Workers = 40, 3 })
	c := dial(t, s.addr)
	root := c.root()
	var files []nfs3.FileHandle
	for i := range 8 {
		files = append(files, c.file(fmt.Sprint("file", i)))
	}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range 3 {
				oneBurst(t, s.addr, rnd, mixedBurst(rnd, 300, root, files), i%5 == 4)
			}
		})
	}
	wg.Wait()
	eventually(t, "no request is in flight", func() bool {
		st := s.srv.Stats()
		return st.InFlight == 0 && st.PayloadBytes == 0
	})
	if n := len(s.srv.bursts); n != bursts {
		eventually(t, "the large buffers are back", func() bool { return len(s.srv.bursts) == bursts })
	}
}

func oneBurst(t *testing.T, addr string, rnd *rand.Rand, b *burst, leaves bool) {
	conn, err := net.Dial("tcp", addr)
	check(t, err)
	nc := conn.(*net.TCPConn)
	defer nc.Close()
	sent := make(chan struct{})
	sending := rand.New(rand.NewPCG(rnd.Uint64(), 2))
	go func() { defer close(sent); b.send(sending, nc) }()
	defer func() { <-sent }()
	nc.SetReadDeadline(time.Now().Add(60 * time.Second))
	for {
		rec, err := readRecord(nc)
		if err == io.EOF && len(b.expect) == 0 {
			return
		}
		if err != nil {
			t.Errorf("%d calls have no reply: %v", len(b.expect), err)
			nc.Close()
			return
		}
		xid := binary.BigEndian.Uint32(rec)
		if !b.expect[xid] {
			t.Errorf("a reply too many to %#x", xid)
		}
		delete(b.expect, xid)
		if rnd.IntN(100) == 0 {
			time.Sleep(time.Duration(rnd.IntN(5000)) * time.Microsecond)
		}
		if leaves && len(b.expect) < 150 {
			nc.SetLinger(0)
			nc.Close()
			return
		}
	}
}
