package fusefs

import (
	"bytes"
	"testing"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

// Whole pages that a WRITE brings in folios are the pages of the file afterwards, whatever
// was there before; others are copied.
func TestWriteTakesPagesOver(t *testing.T) {
	f := newFixture(t, options{})
	n := f.create(vfs.RootID, "f", 0o644)
	f.write(n, 0, pattern(3*alloc.PageSize, 1), vfs.FileSync)              // clean pages
	f.write(n, 2*alloc.PageSize, pattern(alloc.PageSize, 2), vfs.Unstable) // a dirty one
	fs := make([]*alloc.Folio, 5)
	f.ok(f.arena.AllocInto(f.op.Scope, gfp.Kernel, fs))
	v := vfs.Vec{Owner: f.arena}
	want := pattern(4*alloc.PageSize+100, 3)
	for i, folio := range fs {
		b := f.arena.Bytes(folio)
		b = b[:copy(b, want[i*alloc.PageSize:])]
		v.Bufs, v.Pins = append(v.Bufs, b), append(v.Pins, folio.Num())
	}
	var res vfs.WriteResult
	f.ok(f.Write(f.op, n, 0, &v, vfs.Unstable, &res))
	in := f.nodes.get(n)
	for i, folio := range fs {
		got := in.m.Get(uint64(i))
		if (got == folio) != (i < 4) {
			t.Errorf("page %d is folio %d, the WRITE brought it in %d", i, got.Num(), folio.Num())
		}
		f.arena.Put(got)
	}
	v.Release()
	if got, _ := f.read(n, 0, uint32(len(want))); !bytes.Equal(got, want) {
		t.Error("the file has other data than was written")
	}
	_, _, err := f.Commit(f.op, n, 0, 0)
	f.ok(err)
	if !bytes.Equal(f.backing("f"), want) {
		t.Error("the backing file has other data than was written")
	}
}

// Folios that belong to somebody are copied: those of another file, of which READ gives
// the pages, too.
func TestWriteCopiesPagesOfOthers(t *testing.T) {
	f := newFixture(t, options{})
	a, b := f.create(vfs.RootID, "a", 0o644), f.create(vfs.RootID, "b", 0o644)
	want := pattern(2*alloc.PageSize, 1)
	f.write(a, 0, want, vfs.Unstable)
	var v vfs.Vec
	var attr vfs.Attr
	_, err := f.Read(f.op, a, 0, uint32(len(want)), &v, &attr)
	f.ok(err)
	var res vfs.WriteResult
	f.ok(f.Write(f.op, b, 0, &v, vfs.Unstable, &res))
	v.Release()
	f.write(a, 0, pattern(2*alloc.PageSize, 2), vfs.Unstable)
	if got, _ := f.read(b, 0, uint32(len(want))); !bytes.Equal(got, want) {
		t.Error("a write to one file shows in the other")
	}
}

// A WRITE that cannot read what it leaves of a page leaves nothing of any page behind: new
// ones hold what their memory had in it before.
func TestFailedWriteLeavesNoPages(t *testing.T) {
	f := newFixture(t, options{noStart: true})
	node := f.create(vfs.RootID, "f", 0o644)
	f.write(node, 0, pattern(4*alloc.PageSize, 1), vfs.FileSync)
	in, err := f.inode(node)
	f.ok(err)
	in.m.InvalidateClean()
	sp := spanOf(0, 2*alloc.PageSize+100) // the last page is written in part
	b := f.scratch.get()
	b.fs = b.fs[:sp.pages]
	f.ok(b.alloc(f.arena, f.op.Scope, gfp.Kernel, sp.pages))
	if f.prepare(in, -1, sp, b) == nil {
		t.Fatal("a page was read from nowhere")
	}
	b.release(f.arena)
	f.scratch.put(b)
	if n := in.m.Len(); n != 0 {
		t.Errorf("%d pages are in the cache", n)
	}
	if got, _ := f.read(node, 0, 4*alloc.PageSize); !bytes.Equal(got, pattern(4*alloc.PageSize, 1)) {
		t.Error("the file has other data than was written")
	}
}
