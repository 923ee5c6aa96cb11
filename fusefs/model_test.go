package fusefs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// seed returns the seed of a random test, to be replayed with STORE_SEED.
func seed(t testing.TB) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("STORE_SEED"); s != "" {
		_, _ = fmt.Sscan(s, &n)
	}
	t.Logf("STORE_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 1))
}

// model is what a file must contain.
type model struct {
	f    *fixture
	node vfs.NodeID
	name string
	rnd  *rand.Rand
	want []byte
	most int
}

func (m *model) write() {
	off := m.rnd.IntN(m.most)
	n := 1 + m.rnd.IntN(1<<uint(m.rnd.IntN(18)))
	if m.rnd.IntN(3) == 0 { // at the end
		off = len(m.want)
	}
	give := m.rnd.IntN(2) == 0
	if give && m.rnd.IntN(4) > 0 {
		off &^= alloc.PageSize - 1
	}
	n = min(n, m.most-off, int(m.f.maxIO))
	if n <= 0 {
		return
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(m.rnd.Uint32())
	}
	write := func(node vfs.NodeID, off uint64, p []byte, how vfs.Stable) { m.f.write(node, off, p, how) }
	if give {
		write = m.f.give
	}
	write(m.node, uint64(off), p, vfs.Stable(m.rnd.IntN(30)/28))
	if end := off + n; end > len(m.want) {
		m.want = append(m.want, make([]byte, end-len(m.want))...)
	}
	copy(m.want[off:], p)
}

func (m *model) truncate() {
	size := m.rnd.IntN(m.most)
	if m.rnd.IntN(4) > 0 {
		size = max(0, len(m.want)-m.rnd.IntN(20_000))
	}
	_, err := m.f.SetAttr(m.f.op, m.node, &vfs.SetAttr{SetSize: true, Size: uint64(size)})
	m.f.ok(err)
	if size <= len(m.want) {
		m.want = m.want[:size:size]
	} else {
		m.want = append(m.want, make([]byte, size-len(m.want))...)
	}
}

func (m *model) read() {
	off := m.rnd.IntN(m.most)
	count := m.rnd.IntN(1 << uint(m.rnd.IntN(20)))
	p, eof := m.f.read(m.node, uint64(off), uint32(count))
	var want []byte
	if off < len(m.want) {
		want = m.want[off:min(len(m.want), off+min(count, int(m.f.maxIO)))]
	}
	if !bytes.Equal(p, want) {
		m.f.t.Fatalf("read %d at %d of %d: differs at byte %d (got %d bytes, want %d)", count, off, len(m.want), diff(p, want), len(p), len(want))
	}
	if eof != (off+len(want) >= len(m.want)) {
		m.f.t.Fatalf("read %d at %d of %d: eof is %v", count, off, len(m.want), eof)
	}
}

func diff(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func (m *model) sync() {
	if m.rnd.IntN(2) == 0 {
		m.f.ok(m.f.Sync(m.f.op, m.node))
	} else {
		_, _, err := m.f.Commit(m.f.op, m.node, 0, 0)
		m.f.ok(err)
	}
	if got := m.f.backing(m.name); !bytes.Equal(got, m.want) {
		m.f.t.Fatalf("the backing file differs at byte %d: %d bytes, want %d", diff(got, m.want), len(got), len(m.want))
	}
}

func (m *model) step() {
	switch k := m.rnd.IntN(100); {
	case k < 50:
		m.write()
	case k < 55:
		m.truncate()
	case k < 98:
		m.read()
	default:
		m.sync()
	}
	if a := m.f.getattr(m.node); a.Size != uint64(len(m.want)) {
		m.f.t.Fatalf("size %d, want %d", a.Size, len(m.want))
	}
}

func TestAgainstModel(t *testing.T) {
	onBoth(t, options{bytes: 4 << 20}, func(f *fixture) {
		rnd := seed(f.t)
		steps := 3000
		if testing.Short() {
			steps = 300
		}
		var ms []*model
		for _, name := range []string{"large", "small"} {
			ms = append(ms, &model{f: f, node: f.create(vfs.RootID, name, 0o600), name: name, rnd: rnd, most: 20 << 20})
		}
		ms[1].most = 30_000
		for range steps {
			ms[rnd.IntN(2)].step()
		}
		for _, m := range ms {
			m.sync()
		}
	})
}

// TestConcurrentWriters has writers of disjoint parts of one file, readers that
// know what may be there, and one who syncs. The arena is a fraction of it.
func TestConcurrentWriters(t *testing.T) {
	onBoth(t, options{bytes: 4 << 20}, func(f *fixture) {
		const writers, part = 4, 4 << 20
		node := f.create(vfs.RootID, "f", 0o600)
		rnd := seed(f.t)
		var wg sync.WaitGroup
		for w := range writers {
			rnd := rand.New(rand.NewPCG(rnd.Uint64(), 2))
			wg.Go(func() { f.fillPart(node, w, part, rnd) })
		}
		stop := make(chan bool)
		var side sync.WaitGroup
		side.Go(func() { f.keepReading(node, writers*part, stop) })
		side.Go(func() {
			op := f.mem.newOp("syncer")
			for !closed(stop) {
				if err := f.Sync(op, node); err != nil {
					f.t.Error(err)
				}
			}
		})
		wg.Wait()
		close(stop)
		side.Wait()
		f.ok(f.Sync(f.op, node))
		got := f.backing("f")
		for i := range got {
			if got[i] != mark(i) {
				f.t.Fatalf("byte %d is %d, want %d", i, got[i], mark(i))
			}
		}
	})
}

// mark is what byte i of the file ends up as; before it is 0.
func mark(i int) byte { return byte(i*7+i>>12) | 1 }

// fillPart writes its part in pieces that do not meet page boundaries, in a
// random order, and reads each one back.
func (f *fixture) fillPart(node vfs.NodeID, w, part int, rnd *rand.Rand) {
	op := f.mem.newOp("writer")
	const piece = 50_001
	pieces := rnd.Perm((part + piece - 1) / piece)
	for _, k := range pieces {
		from := w*part + k*piece
		p := make([]byte, min(piece, (w+1)*part-from))
		for i := range p {
			p[i] = mark(from + i)
		}
		if _, err := writeAs(f.Store, op, node, uint64(from), p, vfs.Unstable); err != nil {
			f.t.Error(err)
			return
		}
		got, _, err := readAs(f.Store, op, node, uint64(from), uint32(len(p)))
		if err != nil || !bytes.Equal(got, p) {
			f.t.Errorf("writer %d: what it wrote is not there: %v", w, err)
			return
		}
	}
}

func closed(c chan bool) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (f *fixture) keepReading(node vfs.NodeID, size int, stop chan bool) {
	op := f.mem.newOp("reader")
	rnd := rand.New(rand.NewPCG(1, 1))
	for !closed(stop) {
		off := rnd.IntN(size)
		p, _, err := readAs(f.Store, op, node, uint64(off), 100_000)
		if err != nil {
			f.t.Error(err)
			return
		}
		for i, c := range p {
			if c != 0 && c != mark(off+i) {
				f.t.Errorf("byte %d is %d", off+i, c)
				return
			}
		}
	}
}

// TestMoreRequestsThanMemory has readers that each find some pages of what they
// want in memory, all of memory together, and need more. If they kept what they
// found while they wait, nobody could go on.
func TestMoreRequestsThanMemory(t *testing.T) {
	f := newFixture(t, options{bytes: 4 << 20})
	const readers, found, wanted = 28, 33 << 12, 112 << 12
	var nodes [readers]vfs.NodeID
	for i := range nodes {
		f.ok(os.WriteFile(fmt.Sprintf("%s/%d", f.dir, i), marks(0, wanted), 0o600))
		nodes[i] = f.lookup(vfs.RootID, fmt.Sprint(i)).Node
	}
	for range 5 {
		for _, n := range nodes {
			f.read(n, 0, found)
		}
		var wg sync.WaitGroup
		start := make(chan bool)
		for i, n := range nodes {
			op := f.mem.newOp("reader")
			wg.Go(func() {
				<-start
				if i%4 == 0 {
					if _, err := writeAs(f.Store, op, n, 100, marks(100, wanted-200), vfs.Unstable); err != nil {
						t.Error(err)
					}
				}
				p, _, err := readAs(f.Store, op, n, 0, wanted)
				if err != nil || !bytes.Equal(p, marks(0, wanted)) {
					t.Errorf("reader %d: %d bytes, %v", i, len(p), err)
				}
			})
		}
		close(start)
		wg.Wait()
	}
}

// TestWaitsWithNothingInHand has one such reader, and nothing else that could be
// freed than the pages that it found.
func TestWaitsWithNothingInHand(t *testing.T) {
	f := newFixture(t, options{bytes: 4 << 20})
	f.ok(os.WriteFile(f.dir+"/f", marks(0, 400_000), 0o600))
	node := f.lookup(vfs.RootID, "f").Node
	in, _ := f.inode(node)
	for _, call := range []func(op *vfs.Op) error{
		func(op *vfs.Op) error { _, _, err := readAs(f.Store, op, node, 0, 400_000); return err },
		func(op *vfs.Op) error {
			_, err := writeAs(f.Store, op, node, 100, marks(100, 399_000), vfs.FileSync)
			return err
		},
	} {
		in.m.InvalidateClean()
		f.read(node, 0, 100_000)
		found := in.m.Get(0) // kept from kswapd until the reader waits
		var hog []*alloc.Folio
		for {
			fo, err := f.mem.arena.Alloc(gfp.For(nil), gfp.NoWait)
			if err != nil {
				break
			}
			hog = append(hog, fo)
		}
		done := make(chan error)
		go func() { done <- call(f.mem.newOp("reader")) }()
		for f.mem.arena.Stats().Waiting == 0 {
			time.Sleep(time.Millisecond)
		}
		f.mem.arena.Put(found)
		for in.m.Len() > 0 {
			time.Sleep(time.Millisecond)
		}
		f.mem.arena.PutAll(hog)
		f.ok(<-done)
	}
}

func marks(off, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = mark(off + i)
	}
	return p
}

// TestConcurrentTruncation has writers, readers and truncators on one file: a
// byte that is read is what was written there or 0, and afterwards memory and
// backing file agree.
func TestConcurrentTruncation(t *testing.T) {
	onBoth(t, options{bytes: 4 << 20}, func(f *fixture) {
		const size = 8 << 20
		node := f.create(vfs.RootID, "f", 0o600)
		rnd := seed(f.t)
		stop := make(chan bool)
		var wg, side sync.WaitGroup
		side.Go(func() { f.keepReading(node, size, stop) })
		for range 3 {
			rnd := rand.New(rand.NewPCG(rnd.Uint64(), 2))
			wg.Go(func() {
				op := f.mem.newOp("writer")
				for range 300 {
					from := rnd.IntN(size - 70_000)
					p := make([]byte, 1+rnd.IntN(70_000))
					for i := range p {
						p[i] = mark(from + i)
					}
					if _, err := writeAs(f.Store, op, node, uint64(from), p, vfs.Unstable); err != nil {
						f.t.Error(err)
					}
					if rnd.IntN(4) == 0 {
						set := &vfs.SetAttr{SetSize: true, Size: uint64(rnd.IntN(size))}
						if _, err := f.SetAttr(op, node, set); err != nil {
							f.t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		side.Wait()
		f.ok(f.Sync(f.op, node))
		disk := f.backing("f")
		if n := f.getattr(node).Size; n != uint64(len(disk)) {
			f.t.Fatalf("size %d, on disk %d", n, len(disk))
		}
		for off := 0; off < len(disk); off += alloc.PageSize * 16 {
			p, _ := f.read(node, uint64(off), alloc.PageSize*16)
			if !bytes.Equal(p, disk[off:min(len(disk), off+len(p))]) {
				f.t.Fatalf("memory and disk differ near %d", off)
			}
		}
	})
}
