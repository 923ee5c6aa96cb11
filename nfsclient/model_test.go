package nfsclient

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// model does random things to a file and knows what must come of them.
type model struct {
	b     *bed
	op    vfs.Op
	node  vfs.NodeID
	rng   *rand.Rand
	data  []byte
	limit int // largest size
}

func (m *model) step() error {
	switch p := m.rng.IntN(100); {
	case p < 45:
		return m.write()
	case p < 85:
		return m.read()
	case p < 90:
		return m.truncate()
	case p < 94:
		return m.b.c.Sync(&m.op, m.node)
	case p < 97:
		return m.reopen()
	default:
		return m.stat()
	}
}

func (m *model) span() (off, n int) {
	off = m.rng.IntN(m.limit)
	if m.rng.IntN(3) == 0 {
		off &^= 4095
	}
	n = 1 + m.rng.IntN(100<<10)
	if m.rng.IntN(3) == 0 {
		n = 1 + m.rng.IntN(64)
	}
	return off, min(n, m.limit-off)
}

func (m *model) write() error {
	off, n := m.span()
	chunk := make([]byte, n)
	for i := range chunk {
		chunk[i] = byte(m.rng.Uint32())
	}
	if off+n > len(m.data) {
		m.data = append(m.data, make([]byte, off+n-len(m.data))...)
	}
	copy(m.data[off:], chunk)
	return writeAt(m.b.c, &m.op, m.node, off, chunk)
}

func (m *model) read() error {
	off, n := m.span()
	if m.rng.IntN(4) == 0 {
		n = min(1<<20, m.limit-off) // long enough for read-ahead
	}
	got, err := readAt(m.b.c, &m.op, m.node, off, n)
	if err != nil {
		return err
	}
	want := m.data[min(off, len(m.data)):min(off+n, len(m.data))]
	if !bytes.Equal(got, want) {
		for i := range want {
			if i >= len(got) || got[i] != want[i] {
				return fmt.Errorf("read %d bytes at %d: got %d bytes, first difference at %d (page %d) of size %d", n, off, len(got), off+i, (off+i)/4096, len(m.data))
			}
		}
		return fmt.Errorf("read %d bytes at %d: got %d, want %d", n, off, len(got), len(want))
	}
	return nil
}

func (m *model) truncate() error {
	size := m.rng.IntN(m.limit)
	if size <= len(m.data) {
		m.data = m.data[:size:size]
	} else {
		m.data = append(m.data, make([]byte, size-len(m.data))...)
	}
	_, err := m.b.c.SetAttr(&m.op, m.node, &vfs.SetAttr{SetSize: true, Size: uint64(size)})
	return err
}

func (m *model) reopen() error {
	if err := m.b.c.Flush(&m.op, m.node); err != nil {
		return err
	}
	m.b.c.Close(m.node)
	return m.b.c.Open(&m.op, m.node, true)
}

func (m *model) stat() error {
	var a vfs.Attr
	err := m.b.c.GetAttr(&m.op, m.node, &a)
	if err == nil && a.Size != uint64(len(m.data)) {
		err = fmt.Errorf("size %d, want %d", a.Size, len(m.data))
	}
	return err
}

// runModels runs n models at once for d and compares the files on the server.
func runModels(t *testing.T, b *bed, dir string, n, limit int, d time.Duration, disturb func(stop <-chan struct{})) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	end := time.Now().Add(d)
	stop := make(chan struct{})
	var wg, dist sync.WaitGroup
	if disturb != nil {
		dist.Go(func() { disturb(stop) })
	}
	for i := range n {
		name := fmt.Sprintf("model%d", i)
		m := &model{b: b, node: b.create(name), rng: rand.New(rand.NewPCG(seed, uint64(i))), limit: limit}
		m.op = vfs.Op{Scope: gfp.For(b.mem.graph.NewTask(name))}
		must(t, b.c.Open(&m.op, m.node, true))
		wg.Go(func() {
			for k := 0; time.Now().Before(end); k++ {
				if err := m.step(); err != nil {
					t.Errorf("seed %d, %s, step %d: %v", seed, name, k, err)
					return
				}
			}
			if err := b.c.Sync(&m.op, m.node); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, m.data) {
				t.Errorf("seed %d: %s differs on the server (%d bytes, want %d): %v", seed, name, len(got), len(m.data), err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), d+60*time.Second)
	defer cancel()
	over := make(chan struct{})
	go func() { wg.Wait(); close(over) }()
	select {
	case <-over:
	case <-ctx.Done():
		for _, s := range b.mem.graph.Waits() {
			t.Log(s)
		}
		panic("hung")
	}
	close(stop)
	dist.Wait()
}

func TestModelInLittleMemory(t *testing.T) {
	s := testServer(t, 16<<20)
	b := newBed(t, 4<<20, s.addr, "/data", nil)
	runModels(t, b, s.dir, 4, 12<<20, 6*time.Second, nil)
	t.Logf("%+v, read-ahead now %d", b.c.Stats(), b.c.aheadPages.Load())
}

// Client and server share one small arena: the server needs a page to clean the
// client's pages.
func TestModelInSharedMemory(t *testing.T) {
	mem := testMemory(t, 8<<20)
	s, err := startServer(mem, tempDir(t), tempDir(t), "127.0.0.1:0")
	must(t, err)
	c := mountFor(t, mem, s.addr, "/data", nil)
	mem.rec.Start(mem.cache, mem.graph, s.store.BDI(), c.BDI())
	b := &bed{t: t, c: c, mem: mem, op: rootOp(mem)}
	runModels(t, b, s.dir, 4, 8<<20, 6*time.Second, nil)
	b.unmount()
	s.srv.Close()
	must(t, s.store.Shutdown())
	mem.stop()
}
