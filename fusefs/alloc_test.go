package fusefs

import (
	"os"
	"path/filepath"
	"testing"

	"loopnfs/internal/vfs"
)

// TestNoGarbage counts heap allocations of what happens all the time.
func TestNoGarbage(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(1<<20, 1), vfs.FileSync)
	h, err := f.Handle(node, nil)
	f.ok(err)
	in, _ := f.inode(node)
	var v vfs.Vec
	var a vfs.Attr
	var res vfs.WriteResult
	w := vfs.Vec{Bufs: [][]byte{pattern(65536, 2)}}
	user := f.as(1000, 1000, 1, 2, 3)
	atOnce, userAtOnce := now(f.op), now(user)
	f.ok(os.WriteFile(filepath.Join(f.dir, "other"), nil, 0o644))
	buf := make([]byte, 0, 64)
	for name, call := range map[string]func() error{
		"GetAttr": func() error { return f.GetAttr(f.op, node, &a) },
		"Read": func() error {
			_, err := f.Read(f.op, node, 4000, 65536, &v, &a)
			v.Release()
			return err
		},
		"Read by a user": func() error {
			_, err := f.Read(user, node, 4000, 65536, &v, nil)
			v.Release()
			return err
		},
		"Read from the backing file": func() error {
			in.m.InvalidateClean()
			_, err := f.Read(f.op, node, 0, 1<<20, &v, &a)
			v.Release()
			return err
		},
		"Write":        func() error { return f.Write(f.op, node, 0, &w, vfs.Unstable, &res) },
		"Write stable": func() error { return f.Write(f.op, node, 8192, &w, vfs.FileSync, &res) },
		"Commit":       func() error { _, _, err := f.Commit(f.op, node, 0, 0); return err },
		"Lookup": func() error {
			_, err := f.Lookup(f.op, vfs.RootID, "f")
			f.Forget(node, 1)
			return err
		},
		"Lookup by a user": func() error {
			_, err := f.Lookup(user, vfs.RootID, "f")
			f.Forget(node, 1)
			return err
		},
		"GetAttr at once": func() error { return f.GetAttr(atOnce, node, &a) },
		"Read by a user at once": func() error {
			_, err := f.Read(userAtOnce, node, 4000, 65536, &v, nil)
			v.Release()
			return err
		},
		"Write at once": func() error { return f.Write(atOnce, node, 0, &w, vfs.Unstable, &res) },
		"Lookup by a user at once": func() error {
			_, err := f.Lookup(userAtOnce, vfs.RootID, "f")
			if err == nil {
				f.Forget(node, 1)
			}
			return err
		},
		"Access at once": func() error { _, err := f.Access(userAtOnce, node, all); return err },
		"Handle":         func() error { buf, err = f.Handle(node, buf[:0]); return err },
		"ByHandle":       func() error { _, err := f.ByHandle(f.op, h); f.Forget(node, 1); return err },
		"Stat":           func() error { return f.Stat(f.op, h, &a) },
		"Stat at once":   func() error { return f.Stat(atOnce, h, &a) },
		"StatEntry":      func() error { buf, err = f.StatEntry(f.op, vfs.RootID, "f", &a, buf[:0]); return err },
		"StatEntry of what is not in memory": func() error {
			buf, err = f.StatEntry(f.op, vfs.RootID, "other", &a, buf[:0])
			return err
		},
		"Access": func() error { _, err := f.Access(user, node, all); return err },
	} {
		n := testing.AllocsPerRun(100, func() {
			if err := call(); err != nil && err != errWouldWait {
				t.Fatalf("%s: %v", name, err)
			}
		})
		if n > 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func benchStore(b *testing.B, n int, call func(f *fixture, node vfs.NodeID, off uint64)) {
	f := newFixture(b, options{bytes: 64 << 20})
	node := f.create(vfs.RootID, "f", 0o644)
	const size = 4 << 20
	for off := uint64(0); off < size; off += 1 << 20 {
		f.write(node, off, pattern(1<<20, 1), vfs.FileSync)
	}
	b.SetBytes(int64(n))
	b.ReportAllocs()
	off := uint64(0)
	for b.Loop() {
		call(f, node, off)
		off = (off + uint64(n)) % size
	}
}

func BenchmarkGetAttr(b *testing.B) {
	var a vfs.Attr
	benchStore(b, 0, func(f *fixture, node vfs.NodeID, _ uint64) { _ = f.GetAttr(f.op, node, &a) })
}

func BenchmarkLookup(b *testing.B) {
	benchStore(b, 0, func(f *fixture, node vfs.NodeID, _ uint64) {
		_, _ = f.Lookup(f.op, vfs.RootID, "f")
		f.Forget(node, 1)
	})
}

func benchRead(b *testing.B, n int) {
	var v vfs.Vec
	benchStore(b, n, func(f *fixture, node vfs.NodeID, off uint64) {
		_, _ = f.Read(f.op, node, off, uint32(n), &v, nil)
		v.Release()
	})
}

func BenchmarkRead4K(b *testing.B) { benchRead(b, 4<<10) }
func BenchmarkRead1M(b *testing.B) { benchRead(b, 1<<20) }

func benchWrite(b *testing.B, n int, how vfs.Stable) {
	v := vfs.Vec{Bufs: [][]byte{pattern(n, 1)}}
	var res vfs.WriteResult
	benchStore(b, n, func(f *fixture, node vfs.NodeID, off uint64) { _ = f.Write(f.op, node, off, &v, how, &res) })
}

func BenchmarkWrite4K(b *testing.B)     { benchWrite(b, 4<<10, vfs.Unstable) }
func BenchmarkWrite1M(b *testing.B)     { benchWrite(b, 1<<20, vfs.Unstable) }
func BenchmarkWrite4KSync(b *testing.B) { benchWrite(b, 4<<10, vfs.FileSync) }
func BenchmarkWrite1MSync(b *testing.B) { benchWrite(b, 1<<20, vfs.FileSync) }
