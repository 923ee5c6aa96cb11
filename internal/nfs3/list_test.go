package nfs3

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
	"pgregory.net/rapid"
)

func genEntry(t *rapid.T) EntryPlus {
	p := EntryPlus{Attr: genPost(t), Handle: genPostFH(t)}
	p.DirEntry = vfs.DirEntry{Ino: u64(t), Name: genBytes(t, MaxName), Cookie: u64(t), Type: p.Attr.Attr.Type}
	return p
}

// TestDirWriter fills a listing as far as it goes: the result is within the
// limit and holds all the entries that fit.
func TestDirWriter(t *testing.T) {
	for _, plus := range []bool{false, true} {
		t.Run(fmt.Sprintf("plus=%v", plus), rapid.MakeCheck(func(t *rapid.T) {
			ents := rapid.SliceOfN(rapid.Custom(genEntry), 0, 20).Draw(t, "entries")
			limit := rapid.Uint32Range(0, 6000).Draw(t, "maxcount")
			head := ReaddirResult{DirAttr: genPost(t), Verf: genVerf(t)}
			var e xdr.Encoder
			var w DirWriter
			head.Encode(&e)
			if w.Start(&e, &head, limit) != (e.Len()-4+listTail <= int(limit)) {
				t.Fatal("Start misjudged the room")
			}
			n := 0
			for n < len(ents) && put(&w, &ents[n], plus) {
				n++
			}
			room, before := w.Room(), e.Len()
			w.End(n == len(ents))
			if size := e.Len() - 4; n > 0 && size > int(limit) {
				t.Fatalf("%d bytes, the limit is %d", size, limit)
			}
			if n < len(ents) && size(&ents[n], plus) <= room || before != e.Len()-listTail || w.Len() != n {
				t.Fatalf("entry %d of %d bytes did not fit into %d", n, size(&ents[n], plus), room)
			}
			check(t, e.Buf, &head, ents[:n], n == len(ents), plus)
		}))
	}
}

// TestListEncoding has the bytes of RFC 1813 §3.3.17.
func TestListEncoding(t *testing.T) {
	var e xdr.Encoder
	var w DirWriter
	h, _ := MakeHandle([]byte{9, 9, 9, 9})
	w.StartPlus(&e, new(ReaddirResult), 100, 100)
	w.EntryPlus(&EntryPlus{
		DirEntry: vfs.DirEntry{Ino: 1, Name: []byte("a"), Cookie: 2, Type: vfs.TypeRegular},
		Handle:   PostOpFH{true, h},
	})
	w.End(true)
	want := []byte{
		0, 0, 0, 1, // an entry follows
		0, 0, 0, 0, 0, 0, 0, 1, // fileid
		0, 0, 0, 1, 'a', 0, 0, 0, // name
		0, 0, 0, 0, 0, 0, 0, 2, // cookie
		0, 0, 0, 0, // no attributes
		0, 0, 0, 1, 0, 0, 0, 4, 9, 9, 9, 9, // handle
		0, 0, 0, 0, // no more entries
		0, 0, 0, 1, // eof
	}
	if !bytes.Equal(e.Buf, want) {
		t.Errorf("% x\nwant % x", e.Buf, want)
	}
}

func put(w *DirWriter, p *EntryPlus, plus bool) bool {
	if plus {
		w.dirRoom = 1 << 30
		return w.EntryPlus(p)
	}
	return w.Entry(&p.DirEntry)
}

func size(p *EntryPlus, plus bool) int {
	if plus {
		return p.Size()
	}
	return EntrySize(len(p.Name))
}

func check(t *rapid.T, b []byte, head *ReaddirResult, ents []EntryPlus, atEnd, plus bool) {
	d := xdr.NewDecoder(b)
	var r ReaddirResult
	if err := r.Decode(&d); err != nil || r != *head {
		t.Fatalf("head: %+v, %v", r, err)
	}
	var got EntryPlus
	n := 0
	for ; next(&d, &got, plus); n++ {
		want := ents[n]
		if !plus {
			want = EntryPlus{DirEntry: want.DirEntry}
			want.Type = 0
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("entry %d: %+v, want %+v", n, got, want)
		}
	}
	eof, err := ListEOF(&d)
	if n != len(ents) || eof != atEnd || err != nil || d.Remaining() != 0 {
		t.Fatalf("%d of %d entries, eof %v, %v", n, len(ents), eof, err)
	}
}

func next(d *xdr.Decoder, p *EntryPlus, plus bool) bool {
	if plus {
		return NextEntryPlus(d, p)
	}
	return NextEntry(d, &p.DirEntry)
}

func TestDircount(t *testing.T) {
	var e xdr.Encoder
	var w DirWriter
	p := EntryPlus{DirEntry: vfs.DirEntry{Name: []byte("four")}, Attr: PostOpAttr{Has: true}}
	tests := []struct{ dirCount, want uint32 }{{0, 1}, {23, 1}, {24, 1}, {47, 1}, {48, 2}, {1000, 5}}
	for _, tt := range tests {
		w.StartPlus(&e, new(ReaddirResult), tt.dirCount, 4096)
		for range 5 {
			w.EntryPlus(&p)
		}
		if w.Len() != int(tt.want) {
			t.Errorf("dircount %d: %d entries, want %d", tt.dirCount, w.Len(), tt.want)
		}
	}
}

func TestEntryPlusSizeIsTheLargest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := genEntry(t)
		most := EntryPlusSize(len(p.Name), p.Handle.Handle.Len())
		if full := p.Attr.Has && p.Handle.Has; p.Size() > most || full && p.Size() != most {
			t.Fatalf("%d bytes, reckoned with %d", p.Size(), most)
		}
	})
}

func TestHostileLists(t *testing.T) {
	entry := func(name int) []byte {
		var e xdr.Encoder
		var w DirWriter
		w.Start(&e, new(ReaddirResult), 4096)
		w.Entry(&vfs.DirEntry{Name: make([]byte, name)})
		return e.Buf
	}
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"empty", nil, xdr.ErrShort},
		{"no end", entry(10), xdr.ErrShort},
		{"no eof", append(entry(10), 0, 0, 0, 0), xdr.ErrShort},
		{"long name", append(entry(256), 0, 0, 0, 0), ErrNameTooLong},
		{"bad bool", append(entry(10), 0, 0, 0, 2), xdr.ErrBadValue},
	}
	for _, tt := range tests {
		var ent vfs.DirEntry
		d := xdr.NewDecoder(tt.in)
		for NextEntry(&d, &ent) {
		}
		if _, err := ListEOF(&d); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestDump(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 5).Draw(t, "n")
		var e xdr.Encoder
		var want []MountEntry
		for range n {
			m := MountEntry{genBytes(t, MaxMountName), genBytes(t, MaxMountPath)}
			m.Encode(&e)
			want = append(want, m)
		}
		EndList(&e)
		d := xdr.NewDecoder(e.Buf)
		var got []MountEntry
		for m := (MountEntry{}); NextMount(&d, &m); {
			got = append(got, m)
		}
		if !reflect.DeepEqual(got, want) || d.Err() != nil || d.Remaining() != 0 {
			t.Fatalf("%v, %v", got, d.Err())
		}
	})
}

func TestExports(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e xdr.Encoder
		want := make([]Export, rapid.IntRange(0, 4).Draw(t, "n"))
		for i := range want {
			want[i].Dir = genBytes(t, MaxMountPath)
			for range rapid.IntRange(0, 4).Draw(t, "groups") {
				want[i].Groups = append(want[i].Groups, genBytes(t, MaxMountName))
			}
			want[i].Encode(&e)
		}
		EndList(&e)
		d := xdr.NewDecoder(e.Buf)
		var x Export
		n := 0
		for ; NextExport(&d, &x); n++ {
			if !bytes.Equal(x.Dir, want[n].Dir) || !reflect.DeepEqual(x.Groups, append([][]byte{}, want[n].Groups...)) &&
				len(want[n].Groups)+len(x.Groups) > 0 {
				t.Fatalf("%v, want %v", x, want[n])
			}
		}
		if n != len(want) || d.Err() != nil || d.Remaining() != 0 {
			t.Fatalf("%d of %d, %v", n, len(want), d.Err())
		}
	})
}

func TestExportGroupLimit(t *testing.T) {
	for _, n := range []int{MaxGroups, MaxGroups + 1} {
		var e xdr.Encoder
		(&Export{Groups: make([][]byte, n)}).Encode(&e)
		d := xdr.NewDecoder(e.Buf)
		if ok := NextExport(&d, new(Export)); ok != (n == MaxGroups) || !ok && d.Err() != xdr.ErrTooLong {
			t.Errorf("%d groups: %v, %v", n, ok, d.Err())
		}
	}
}

// FuzzLists decodes anything as each kind of list, to its end.
func FuzzLists(f *testing.F) {
	var e xdr.Encoder
	var w DirWriter
	w.Start(&e, new(ReaddirResult), 4096)
	w.EntryPlus(&EntryPlus{DirEntry: vfs.DirEntry{Name: []byte("n")}})
	w.Entry(&vfs.DirEntry{Name: []byte("n")})
	w.End(true)
	f.Add(uint8(0), e.Buf)
	f.Add(uint8(1), e.Buf)
	f.Add(uint8(2), []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(uint8(3), bytes.Repeat([]byte{0, 0, 0, 1, 0, 0, 0, 0}, 20))
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		d := xdr.NewDecoder(b)
		step := lister(&d, kind)
		for off := -1; step(); off = d.Offset() {
			if d.Offset() <= off || d.Err() != nil {
				t.Fatalf("an entry without progress at %d, %v", off, d.Err())
			}
		}
	})
}

func lister(d *xdr.Decoder, kind uint8) func() bool {
	var p EntryPlus
	var m MountEntry
	var x Export
	switch kind % 4 {
	case 0:
		return func() bool { return NextEntryPlus(d, &p) }
	case 1:
		return func() bool { return NextEntry(d, &p.DirEntry) }
	case 2:
		return func() bool { return NextMount(d, &m) }
	}
	return func() bool { return NextExport(d, &x) }
}

// listing encodes and decodes a listing of n entries.
func listing(e *xdr.Encoder, d *xdr.Decoder, w *DirWriter, p *EntryPlus, n int) error {
	var head ReaddirResult
	e.Buf = e.Buf[:0]
	head.Encode(e)
	w.StartPlus(e, &head, 1<<20, 1<<20)
	for range n {
		w.EntryPlus(p)
	}
	w.End(true)
	d.Reset(e.Buf)
	if err := head.Decode(d); err != nil {
		return err
	}
	var got EntryPlus
	for NextEntryPlus(d, &got) {
	}
	_, err := ListEOF(d)
	return err
}

func fullEntry() *EntryPlus {
	p := &EntryPlus{DirEntry: vfs.DirEntry{Name: []byte("some-name.txt")}}
	p.Attr.Set(&vfs.Attr{Type: vfs.TypeRegular})
	p.Handle.Has = true
	p.Handle.Handle, _ = MakeHandle(make([]byte, 32))
	return p
}

func TestListsDoNotAllocate(t *testing.T) {
	e, p := xdr.Encoder{Buf: make([]byte, 0, 32<<10)}, fullEntry()
	var d xdr.Decoder
	var w DirWriter
	if n := testing.AllocsPerRun(100, func() {
		if err := listing(&e, &d, &w, p, 100); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReaddirplus100(b *testing.B) {
	e, p := xdr.Encoder{Buf: make([]byte, 0, 32<<10)}, fullEntry()
	var d xdr.Decoder
	var w DirWriter
	b.ReportAllocs()
	for b.Loop() {
		if err := listing(&e, &d, &w, p, 100); err != nil {
			b.Fatal(err)
		}
	}
}
