package nfs3

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
	"pgregory.net/rapid"
)

// message is what all Args and Result types are.
type message interface {
	Encode(*xdr.Encoder)
	Decode(*xdr.Decoder) error
}

// codec is a message type and a generator of its values.
type codec struct {
	name string
	zero func() message
	gen  func(*rapid.T) message
}

var codecs = []codec{
	{"fh", func() message { return new(FileHandle) }, func(t *rapid.T) message { h := genHandle(t); return &h }},
	{"post_op_fh", func() message { return new(PostOpFH) }, func(t *rapid.T) message { h := genPostFH(t); return &h }},
	{"post_op_attr", func() message { return new(PostOpAttr) }, func(t *rapid.T) message { p := genPost(t); return &p }},
	{"handle", func() message { return new(HandleArgs) }, func(t *rapid.T) message { return &HandleArgs{genHandle(t)} }},
	{"dirop", func() message { return new(DirOpArgs) }, func(t *rapid.T) message { a := genDirOp(t); return &a }},
	{"wcc", func() message { return new(WCCResult) }, func(t *rapid.T) message { return &WCCResult{genStatus(t), genWCC(t)} }},
	{"getattr res", func() message { return new(GetAttrResult) }, genGetAttrResult},
	{"setattr", func() message { return new(SetAttrArgs) }, genSetAttrArgs},
	{"lookup res", func() message { return new(LookupResult) }, genLookupResult},
	{"access", func() message { return new(AccessArgs) }, func(t *rapid.T) message { return &AccessArgs{genHandle(t), u32(t)} }},
	{"access res", func() message { return new(AccessResult) }, genAccessResult},
	{"readlink res", func() message { return new(ReadlinkResult) }, genReadlinkResult},
	{"read", func() message { return new(ReadArgs) }, func(t *rapid.T) message { return &ReadArgs{genHandle(t), u64(t), u32(t)} }},
	{"read res", func() message { return new(ReadResult) }, genReadResult},
	{"write", func() message { return new(WriteArgs) }, genWriteArgs},
	{"write res", func() message { return new(WriteResult) }, genWriteResult},
	{"create", func() message { return new(CreateArgs) }, genCreateArgs},
	{"create res", func() message { return new(CreateResult) }, genCreateResult},
	{"mkdir", func() message { return new(MkdirArgs) }, func(t *rapid.T) message { return &MkdirArgs{genDirOp(t), genSet(t)} }},
	{"symlink", func() message { return new(SymlinkArgs) }, func(t *rapid.T) message {
		return &SymlinkArgs{genDirOp(t), genSet(t), genBytes(t, MaxSymlink)}
	}},
	{"mknod", func() message { return new(MknodArgs) }, genMknodArgs},
	{"rename", func() message { return new(RenameArgs) }, func(t *rapid.T) message { return &RenameArgs{genDirOp(t), genDirOp(t)} }},
	{"rename res", func() message { return new(RenameResult) }, func(t *rapid.T) message {
		return &RenameResult{genStatus(t), genWCC(t), genWCC(t)}
	}},
	{"link", func() message { return new(LinkArgs) }, func(t *rapid.T) message { return &LinkArgs{genHandle(t), genDirOp(t)} }},
	{"link res", func() message { return new(LinkResult) }, func(t *rapid.T) message {
		return &LinkResult{genStatus(t), genPost(t), genWCC(t)}
	}},
	{"readdir", func() message { return new(ReaddirArgs) }, func(t *rapid.T) message {
		return &ReaddirArgs{genHandle(t), u64(t), genVerf(t), u32(t)}
	}},
	{"readdir res", func() message { return new(ReaddirResult) }, genReaddirResult},
	{"readdirplus", func() message { return new(ReaddirplusArgs) }, func(t *rapid.T) message {
		return &ReaddirplusArgs{genHandle(t), u64(t), genVerf(t), u32(t), u32(t)}
	}},
	{"fsstat res", func() message { return new(FSStatResult) }, genFSStatResult},
	{"fsinfo res", func() message { return new(FSInfoResult) }, genFSInfoResult},
	{"pathconf res", func() message { return new(PathConfResult) }, genPathConfResult},
	{"commit", func() message { return new(CommitArgs) }, func(t *rapid.T) message { return &CommitArgs{genHandle(t), u64(t), u32(t)} }},
	{"commit res", func() message { return new(CommitResult) }, genCommitResult},
	{"mnt", func() message { return new(MntArgs) }, func(t *rapid.T) message { return &MntArgs{genBytes(t, MaxMountPath)} }},
	{"mnt res", func() message { return new(MntResult) }, genMntResult},
}

func u32(t *rapid.T) uint32 { return rapid.Uint32().Draw(t, "u32") }
func u64(t *rapid.T) uint64 { return rapid.Uint64().Draw(t, "u64") }
func flip(t *rapid.T) bool  { return rapid.Bool().Draw(t, "bool") }

func below(t *rapid.T, n int) uint32 { return uint32(rapid.IntRange(0, n-1).Draw(t, "enum")) }

func genBytes(t *rapid.T, max int) []byte {
	return rapid.SliceOfN(rapid.Byte(), 0, max).Draw(t, "bytes")
}

func genHandle(t *rapid.T) FileHandle {
	h, _ := MakeHandle(genBytes(t, MaxHandle))
	return h
}

func genPostFH(t *rapid.T) (p PostOpFH) {
	if p.Has = flip(t); p.Has {
		p.Handle = genHandle(t)
	}
	return p
}

func genDirOp(t *rapid.T) DirOpArgs { return DirOpArgs{genHandle(t), genBytes(t, MaxName)} }

func genTime(t *rapid.T) vfs.Time {
	return vfs.Time{Sec: int64(u32(t)), Nsec: below(t, nsecLimit)}
}

func genAttr(t *rapid.T) vfs.Attr {
	return vfs.Attr{
		Type: vfs.FileType(1 + below(t, 7)), Mode: below(t, modeBits+1), Nlink: u32(t), UID: u32(t), GID: u32(t),
		Size: u64(t), Used: u64(t), Major: u32(t), Minor: u32(t), FSID: u64(t), Ino: u64(t),
		Atime: genTime(t), Mtime: genTime(t), Ctime: genTime(t),
	}
}

func genPost(t *rapid.T) (p PostOpAttr) {
	if flip(t) {
		a := genAttr(t)
		p.Set(&a)
	}
	return p
}

func genWCC(t *rapid.T) (w vfs.WCC) {
	if w.HasPre = flip(t); w.HasPre {
		w.Pre = vfs.PreAttr{Size: u64(t), Mtime: genTime(t), Ctime: genTime(t)}
	}
	if w.HasPost = flip(t); w.HasPost {
		w.Post = genAttr(t)
	}
	return w
}

func genSet(t *rapid.T) (s vfs.SetAttr) {
	if s.SetMode = flip(t); s.SetMode {
		s.Mode = below(t, modeBits+1)
	}
	if s.SetUID = flip(t); s.SetUID {
		s.UID = u32(t)
	}
	if s.SetGID = flip(t); s.SetGID {
		s.GID = u32(t)
	}
	if s.SetSize = flip(t); s.SetSize {
		s.Size = u64(t)
	}
	if s.SetAtime = vfs.SetTime(below(t, 3)); s.SetAtime == vfs.SetToClientTime {
		s.Atime = genTime(t)
	}
	if s.SetMtime = vfs.SetTime(below(t, 3)); s.SetMtime == vfs.SetToClientTime {
		s.Mtime = genTime(t)
	}
	return s
}

func genVerf(t *rapid.T) (v vfs.Verifier) {
	copy(v[:], rapid.SliceOfN(rapid.Byte(), VerfLen, VerfLen).Draw(t, "verf"))
	return v
}

func genStatus(t *rapid.T) Status {
	if flip(t) {
		return StatusOK
	}
	return Status(u32(t))
}

func genGetAttrResult(t *rapid.T) message {
	r := &GetAttrResult{Status: genStatus(t)}
	if r.Status == StatusOK {
		r.Attr = genAttr(t)
	}
	return r
}

func genSetAttrArgs(t *rapid.T) message {
	a := &SetAttrArgs{genHandle(t), genSet(t)}
	if a.Set.HasGuard = flip(t); a.Set.HasGuard {
		a.Set.Guard = genTime(t)
	}
	return a
}

func genLookupResult(t *rapid.T) message {
	r := &LookupResult{Status: genStatus(t), DirAttr: genPost(t)}
	if r.Status == StatusOK {
		r.Handle, r.Attr = genHandle(t), genPost(t)
	}
	return r
}

func genAccessResult(t *rapid.T) message {
	r := &AccessResult{Status: genStatus(t), Attr: genPost(t)}
	if r.Status == StatusOK {
		r.Access = u32(t)
	}
	return r
}

func genReadlinkResult(t *rapid.T) message {
	r := &ReadlinkResult{Status: genStatus(t), Attr: genPost(t)}
	if r.Status == StatusOK {
		r.Target = genBytes(t, MaxSymlink)
	}
	return r
}

func genReadResult(t *rapid.T) message {
	r := &ReadResult{Status: genStatus(t), Attr: genPost(t)}
	if r.Status == StatusOK {
		r.Count, r.EOF = u32(t), flip(t)
		r.DataLen = r.Count
	}
	return r
}

func genWriteArgs(t *rapid.T) message {
	a := &WriteArgs{Handle: genHandle(t), Offset: u64(t), Count: u32(t), Stable: vfs.Stable(below(t, 3))}
	a.DataLen = a.Count
	return a
}

func genWriteResult(t *rapid.T) message {
	r := &WriteResult{Status: genStatus(t), WCC: genWCC(t)}
	if r.Status == StatusOK {
		r.Count, r.Committed, r.Verf = u32(t), vfs.Stable(below(t, 3)), genVerf(t)
	}
	return r
}

func genCreateArgs(t *rapid.T) message {
	a := &CreateArgs{Where: genDirOp(t), How: vfs.CreateMode(below(t, 3))}
	if a.How == vfs.Exclusive {
		a.Verf = genVerf(t)
	} else {
		a.Set = genSet(t)
	}
	return a
}

func genCreateResult(t *rapid.T) message {
	r := &CreateResult{Status: genStatus(t), DirWCC: genWCC(t)}
	if r.Status == StatusOK {
		r.Handle, r.Attr = genPostFH(t), genPost(t)
	}
	return r
}

func genMknodArgs(t *rapid.T) message {
	a := &MknodArgs{Where: genDirOp(t), Type: vfs.FileType(below(t, 10))}
	switch a.Type {
	case vfs.TypeBlock, vfs.TypeChar:
		a.Set, a.Major, a.Minor = genSet(t), u32(t), u32(t)
	case vfs.TypeSocket, vfs.TypeFIFO:
		a.Set = genSet(t)
	}
	return a
}

func genReaddirResult(t *rapid.T) message {
	r := &ReaddirResult{Status: genStatus(t), DirAttr: genPost(t)}
	if r.Status == StatusOK {
		r.Verf = genVerf(t)
	}
	return r
}

func genFSStatResult(t *rapid.T) message {
	r := &FSStatResult{Status: genStatus(t), Attr: genPost(t)}
	if r.Status == StatusOK {
		r.Stat = vfs.StatFS{
			TotalBytes: u64(t), FreeBytes: u64(t), AvailBytes: u64(t),
			TotalFiles: u64(t), FreeFiles: u64(t), AvailFiles: u64(t),
		}
		r.Invarsec = u32(t)
	}
	return r
}

func genFSInfoResult(t *rapid.T) message {
	r := &FSInfoResult{Status: genStatus(t), Attr: genPost(t)}
	if r.Status == StatusOK {
		r.Info = FSInfo{
			RTMax: u32(t), RTPref: u32(t), RTMult: u32(t), WTMax: u32(t), WTPref: u32(t), WTMult: u32(t),
			DTPref: u32(t), MaxFileSize: u64(t), TimeDelta: genTime(t), Properties: u32(t),
		}
	}
	return r
}

func genPathConfResult(t *rapid.T) message {
	r := &PathConfResult{Status: genStatus(t), Attr: genPost(t)}
	if r.Status == StatusOK {
		r.Conf = PathConf{u32(t), u32(t), flip(t), flip(t), flip(t), flip(t)}
	}
	return r
}

func genCommitResult(t *rapid.T) message {
	r := &CommitResult{Status: genStatus(t), WCC: genWCC(t)}
	if r.Status == StatusOK {
		r.Verf = genVerf(t)
	}
	return r
}

func genMntResult(t *rapid.T) message {
	r := &MntResult{Status: MountStatus(genStatus(t))}
	if r.Status == MountOK {
		r.Handle = genHandle(t)
		r.NFlavors = copy(r.Flavors[:], rapid.SliceOfN(rapid.Uint32(), 0, MaxFlavors).Draw(t, "flavors"))
	}
	return r
}

func encode(m message) []byte {
	var e xdr.Encoder
	m.Encode(&e)
	return e.Buf
}

// TestRoundTrip decodes into a value that still holds another message: nothing
// of it may stay.
func TestRoundTrip(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.name, rapid.MakeCheck(func(t *rapid.T) {
			want, got := c.gen(t), c.gen(t)
			b := encode(want)
			d := xdr.NewDecoder(append(b, 1, 2, 3, 4))
			if err := got.Decode(&d); err != nil || d.Remaining() != 4 {
				t.Fatalf("%v, %d bytes left", err, d.Remaining())
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v\nwant %+v", got, want)
			}
		}))
	}
}

// TestCutMessages decodes each proper prefix of each message.
func TestCutMessages(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.name, rapid.MakeCheck(func(t *rapid.T) {
			b := encode(c.gen(t))
			cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
			d := xdr.NewDecoder(b[:cut])
			if err := c.zero().Decode(&d); !errors.Is(err, xdr.ErrShort) {
				t.Fatalf("%d of %d bytes: %v", cut, len(b), err)
			}
		}))
	}
}

func TestSizeLimits(t *testing.T) {
	var h FileHandle
	h.set(make([]byte, MaxHandle))
	where := DirOpArgs{h, make([]byte, MaxName)}
	set := vfs.SetAttr{
		SetMode: true, SetUID: true, SetGID: true, SetSize: true,
		SetAtime: vfs.SetToClientTime, SetMtime: vfs.SetToClientTime,
	}
	link := ReadlinkResult{Attr: PostOpAttr{Has: true}, Target: make([]byte, MaxSymlink)}
	if n := len(encode(&SymlinkArgs{where, set, link.Target})); n != MaxArgs {
		t.Errorf("largest SYMLINK has %d bytes, MaxArgs is %d", n, MaxArgs)
	}
	if n := len(encode(&link)); n != MaxResult {
		t.Errorf("largest READLINK has %d bytes, MaxResult is %d", n, MaxResult)
	}
	rapid.Check(t, func(t *rapid.T) {
		c := rapid.SampledFrom(codecs).Draw(t, "codec")
		if n := len(encode(c.gen(t))); n > max(MaxArgs, MaxResult) {
			t.Fatalf("%s has %d bytes", c.name, n)
		}
	})
}

func TestHostileMessages(t *testing.T) {
	enc := func(f func(*xdr.Encoder)) []byte { var e xdr.Encoder; f(&e); return e.Buf }
	attr := vfs.Attr{Type: vfs.TypeRegular}
	bad := attr
	bad.Type = 8
	none := attr
	none.Type = 0
	nsec := attr
	nsec.Ctime.Nsec = nsecLimit
	long := make([]byte, 5000)
	w := &WriteArgs{Count: 9}
	badLen := encode(w)
	badLen[len(badLen)-1]++
	tests := []struct {
		name string
		into message
		in   []byte
		want error
	}{
		{"handle", new(HandleArgs), enc(func(e *xdr.Encoder) { e.Opaque(long[:65]) }), ErrBadHandle},
		{"name", new(DirOpArgs), encode(&DirOpArgs{Name: long[:256]}), ErrNameTooLong},
		{"second name", new(RenameArgs), encode(&RenameArgs{To: DirOpArgs{Name: long[:256]}}), ErrNameTooLong},
		{"target", new(SymlinkArgs), encode(&SymlinkArgs{Target: long[:4097]}), ErrNameTooLong},
		{"link", new(ReadlinkResult), encode(&ReadlinkResult{Target: long[:4097]}), ErrNameTooLong},
		{"mount path", new(MntArgs), encode(&MntArgs{Path: long[:1025]}), ErrNameTooLong},
		{"type 8", new(GetAttrResult), encode(&GetAttrResult{Attr: bad}), xdr.ErrBadValue},
		{"type 0", new(GetAttrResult), encode(&GetAttrResult{Attr: none}), xdr.ErrBadValue},
		{"nanoseconds", new(SetAttrArgs), encode(&SetAttrArgs{Set: vfs.SetAttr{SetMtime: vfs.SetToClientTime, Mtime: vfs.Time{Nsec: nsecLimit}}}), xdr.ErrBadValue},
		{"stable_how", new(WriteArgs), encode(&WriteArgs{Stable: 3}), xdr.ErrBadValue},
		{"data length", new(WriteArgs), badLen, xdr.ErrBadValue},
		{"createmode", new(CreateArgs), encode(&CreateArgs{How: 3}), xdr.ErrBadValue},
		{"time_how", new(SetAttrArgs), encode(&SetAttrArgs{Set: vfs.SetAttr{SetAtime: 3}}), xdr.ErrBadValue},
		{"committed", new(WriteResult), encode(&WriteResult{Committed: 3}), xdr.ErrBadValue},
		{"flavours", new(MntResult), append(encode(&MntResult{})[:8:8], 0, 0, 0, 17), xdr.ErrBadValue},
	}
	for _, tt := range tests {
		d := xdr.NewDecoder(append(tt.in, long...))
		if err := tt.into.Decode(&d); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	var res GetAttrResult
	d := xdr.NewDecoder(encode(&GetAttrResult{Attr: nsec}))
	if err := res.Decode(&d); err != nil || res.Attr.Ctime.Nsec != nsecLimit-1 {
		t.Errorf("a time with many nanoseconds is %v: %v", res.Attr.Ctime, err)
	}
}

// FuzzMessages decodes anything as any message; what decodes is encoded and
// decoded again, and must be the same.
func FuzzMessages(f *testing.F) {
	for i, c := range codecs {
		f.Add(uint8(i), encode(rapid.Custom(c.gen).Example(1)))
		f.Add(uint8(i), bytes.Repeat([]byte{255}, 100))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		c := codecs[int(which)%len(codecs)]
		m, again := c.zero(), c.zero()
		d := xdr.NewDecoder(b)
		if m.Decode(&d) != nil {
			return
		}
		d.Reset(encode(m))
		if err := again.Decode(&d); err != nil || d.Remaining() != 0 || !reflect.DeepEqual(m, again) {
			t.Fatalf("%s: %v\n%+v\n%+v", c.name, err, m, again)
		}
	})
}

func TestNoAllocs(t *testing.T) {
	e := xdr.Encoder{Buf: make([]byte, 0, max(MaxArgs, MaxResult))}
	for _, c := range codecs {
		m := rapid.Custom(c.gen).Example(7)
		into := c.zero()
		var d xdr.Decoder
		n := testing.AllocsPerRun(50, func() {
			e.Buf = e.Buf[:0]
			m.Encode(&e)
			d.Reset(e.Buf)
			if err := into.Decode(&d); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

func benchmark(b *testing.B, m, into message) {
	e := xdr.Encoder{Buf: make([]byte, 0, MaxArgs)}
	var d xdr.Decoder
	b.ReportAllocs()
	for b.Loop() {
		e.Buf = e.Buf[:0]
		m.Encode(&e)
		d.Reset(e.Buf)
		if err := into.Decode(&d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCodec(b *testing.B) {
	h, _ := MakeHandle(make([]byte, 32))
	attr := vfs.Attr{Type: vfs.TypeRegular}
	post := PostOpAttr{Has: true, Attr: attr}
	b.Run("GetAttrResult", func(b *testing.B) {
		benchmark(b, &GetAttrResult{Attr: attr}, new(GetAttrResult))
	})
	b.Run("LookupResult", func(b *testing.B) {
		benchmark(b, &LookupResult{Handle: h, Attr: post, DirAttr: post}, new(LookupResult))
	})
	b.Run("WriteArgs", func(b *testing.B) {
		benchmark(b, &WriteArgs{Handle: h, Count: 4096}, new(WriteArgs))
	})
	b.Run("WriteResult", func(b *testing.B) {
		benchmark(b, &WriteResult{WCC: vfs.WCC{HasPre: true, HasPost: true, Post: attr}}, new(WriteResult))
	})
}
