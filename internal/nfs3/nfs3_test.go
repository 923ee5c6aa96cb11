package nfs3

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"syscall"
	"testing"

	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"

	client "github.com/vmware/go-nfs-client/nfs"
	clientxdr "github.com/vmware/go-nfs-client/nfs/xdr"
)

func TestStatusOf(t *testing.T) {
	tests := []struct {
		err  error
		want Status
	}{
		{nil, StatusOK},
		{syscall.ENOENT, StatusNoEnt},
		{syscall.EACCES, StatusAcces},
		{fmt.Errorf("store: %w", syscall.ENOSPC), StatusNoSpc},
		{vfs.ErrStale, StatusStale},
		{vfs.ErrBadHandle, StatusBadHandle},
		{vfs.ErrNotSync, StatusNotSync},
		{vfs.ErrBadCookie, StatusBadCookie},
		{vfs.ErrJukebox, StatusJukebox},
		{syscall.ENOMEM, StatusJukebox},
		{syscall.ENOSYS, StatusNotSupp},
		{syscall.EINVAL, StatusInval},
		{syscall.EIO, StatusIO},
		{syscall.EMFILE, StatusIO},
		{syscall.Errno(0), StatusOK},
		{io.EOF, StatusServerFault},
		{ErrNameTooLong, StatusNameTooLong},
		{fmt.Errorf("args: %w", ErrBadHandle), StatusBadHandle},
	}
	for _, tt := range tests {
		if got := StatusOf(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestErrno(t *testing.T) {
	for _, r := range statusTable {
		err := Errno(r.status)
		if r.status == StatusOK && err != nil || r.status != StatusOK && err == nil {
			t.Errorf("%v: %v", r.status, err)
		}
		back := StatusOf(err)
		if back != r.status && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%v became %v and then %v", r.status, err, back)
		}
	}
	if err := Errno(Status(12345)); err != syscall.EIO {
		t.Errorf("unknown status: %v", err)
	}
}

func TestNames(t *testing.T) {
	tests := []struct{ got, want string }{
		{StatusOK.String(), "NFS3_OK"},
		{StatusJukebox.String(), "NFS3ERR_JUKEBOX"},
		{Status(3).String(), "nfsstat3 3"},
		{ProcName(ProcNull), "NULL"},
		{ProcName(ProcWrite), "WRITE"},
		{ProcName(ProcReaddirplus), "READDIRPLUS"},
		{ProcName(ProcCommit), "COMMIT"},
		{ProcName(22), "UNKNOWN"},
		{MountProcName(MountProcUmntAll), "UMNTALL"},
		{MountProcName(MountProcExport), "EXPORT"},
		{MountProcName(6), "UNKNOWN"},
		{MountOK.String(), "MNT3_OK"},
		{MountAcces.String(), "MNT3ERR_ACCES"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

func TestMountStatusOf(t *testing.T) {
	tests := []struct {
		err  error
		want MountStatus
	}{
		{nil, MountOK},
		{syscall.ENOENT, MountNoEnt},
		{ErrNameTooLong, MountNameTooLong},
		{vfs.ErrStale, MountServerFault},
	}
	for _, tt := range tests {
		if got := MountStatusOf(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestHandle(t *testing.T) {
	a, ok := MakeHandle([]byte("abc"))
	b, _ := MakeHandle([]byte("abc"))
	c, _ := MakeHandle([]byte("abc\x00"))
	if !ok || a != b || a == c || a.Len() != 3 || string(a.Bytes()) != "abc" {
		t.Errorf("%v, %v, %v", a, b, c)
	}
	d := xdr.NewDecoder([]byte{0, 0, 0, 1, 'x', 0, 0, 0})
	if err := a.Decode(&d); err != nil {
		t.Fatal(err)
	}
	if x, _ := MakeHandle([]byte("x")); a != x {
		t.Error("bytes of the former handle stayed")
	}
	if h, ok := MakeHandle(make([]byte, 65)); ok || h != (FileHandle{}) {
		t.Error("a handle of 65 bytes")
	}
}

func TestTimeIsClamped(t *testing.T) {
	tests := []struct{ in, want vfs.Time }{
		{vfs.Time{Sec: -1, Nsec: 5}, vfs.Time{}},
		{vfs.Time{Sec: 0, Nsec: 5}, vfs.Time{Nsec: 5}},
		{vfs.Time{Sec: math.MaxUint32, Nsec: 5}, vfs.Time{Sec: math.MaxUint32, Nsec: 5}},
		{vfs.Time{Sec: math.MaxUint32 + 1}, vfs.Time{Sec: math.MaxUint32, Nsec: nsecLimit - 1}},
	}
	for _, tt := range tests {
		var e xdr.Encoder
		EncodeTime(&e, tt.in)
		d := xdr.NewDecoder(e.Buf)
		if got := DecodeTime(&d); got != tt.want || d.Err() != nil {
			t.Errorf("%v: %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestModeHasPermissionsOnly(t *testing.T) {
	var got GetAttrResult
	b := encode(&GetAttrResult{Attr: vfs.Attr{Type: vfs.TypeRegular, Mode: 0o644}})
	b[10] |= 0x80 // S_IFREG, as some servers send
	d := xdr.NewDecoder(b)
	if err := got.Decode(&d); err != nil || got.Attr.Mode != 0o644 {
		t.Errorf("%o, %v", got.Attr.Mode, err)
	}
}

// sample has a different value in each field.
func sample() vfs.Attr {
	return vfs.Attr{
		Type: vfs.TypeChar, Mode: 0o1755, Nlink: 3, UID: 4, GID: 5, Size: 6 << 32, Used: 7 << 32, Major: 8,
		Minor: 9, FSID: 10 << 32, Ino: 11 << 32, Atime: vfs.Time{Sec: 12, Nsec: 13},
		Mtime: vfs.Time{Sec: 14, Nsec: 15}, Ctime: vfs.Time{Sec: 16, Nsec: 17},
	}
}

func theirs(t *testing.T, b []byte, into any) {
	t.Helper()
	r := bytes.NewReader(b)
	if err := clientxdr.Read(r, into); err != nil || r.Len() != 0 {
		t.Fatalf("%T: %v, %d bytes left", into, err, r.Len())
	}
}

func same(a vfs.Attr, f client.Fattr) bool {
	when := func(t client.NFS3Time) vfs.Time { return vfs.Time{Sec: int64(t.Seconds), Nsec: t.Nseconds} }
	return a == vfs.Attr{
		Type: vfs.FileType(f.Type), Mode: f.FileMode, Nlink: f.Nlink, UID: f.UID, GID: f.GID, Size: f.Filesize,
		Used: f.Used, Major: f.SpecData[0], Minor: f.SpecData[1], FSID: f.FSID, Ino: f.Fileid,
		Atime: when(f.Atime), Mtime: when(f.Mtime), Ctime: when(f.Ctime),
	}
}

// TestAgainstAnotherImplementation has another client decode what is encoded
// here, field by field.
func TestAgainstAnotherImplementation(t *testing.T) {
	a := sample()
	var attr struct {
		Status uint32
		Fattr  client.Fattr
	}
	theirs(t, encode(&GetAttrResult{Attr: a}), &attr)
	if !same(a, attr.Fattr) {
		t.Errorf("fattr3: %+v", attr.Fattr)
	}

	wcc := vfs.WCC{HasPre: true, Pre: a.Pre(), HasPost: true, Post: a}
	var write struct {
		Status     uint32
		Wcc        client.WccData
		Count, How uint32
		Verf       uint64
	}
	theirs(t, encode(&WriteResult{WCC: wcc, Count: 5, Committed: vfs.FileSync, Verf: vfs.Verifier{7: 9}}), &write)
	if b := write.Wcc.Before; !same(a, write.Wcc.After.Attr) || b.Size != a.Size || b.MTime.Seconds != 14 ||
		b.CTime.Seconds != 16 || write.Count != 5 || write.How != 2 || write.Verf != 9 {
		t.Errorf("WRITE: %+v", write)
	}

	h, _ := MakeHandle([]byte("12345"))
	set := vfs.SetAttr{SetMode: true, Mode: 0o600, SetSize: true, Size: 77, SetMtime: vfs.SetToClientTime, Mtime: a.Mtime}
	var mkdir struct {
		Where client.Diropargs3
		Set   client.Sattr3
	}
	theirs(t, encode(&MkdirArgs{DirOpArgs{h, []byte("name")}, set}), &mkdir)
	if s := mkdir.Set; string(mkdir.Where.FH) != "12345" || mkdir.Where.Filename != "name" || s.Mode.Mode != 0o600 ||
		s.UID.SetIt || s.Size.Size != 77 || s.Atime.SetIt != client.DontChange || s.Mtime.Time.Nseconds != 15 {
		t.Errorf("MKDIR: %+v", mkdir)
	}

	var info struct {
		Status uint32
		Info   client.FSInfo
	}
	theirs(t, encode(&FSInfoResult{Info: FSInfo{1, 2, 3, 4, 5, 6, 7, 8, vfs.Time{Nsec: 9}, 10}}), &info)
	if i := info.Info; i.RTMax != 1 || i.RTMult != 3 || i.WTMax != 4 || i.WTMult != 6 || i.DTPref != 7 || i.Size != 8 ||
		i.TimeDelta.Nseconds != 9 || i.Properties != 10 {
		t.Errorf("FSINFO: %+v", i)
	}
}

// TestEncodings has the bytes of RFC 1813 for what no other codec here checks.
func TestEncodings(t *testing.T) {
	h, _ := MakeHandle([]byte("hndl"))
	fh := []uint32{4, 0x686e646c}
	name := []uint32{1, 0x61000000}
	at := DirOpArgs{h, []byte("a")}
	where := append(fh[:2:2], name...)
	unset := []uint32{0, 0, 0, 0, 0, 0}
	statFS := vfs.StatFS{TotalBytes: 1, FreeBytes: 2, AvailBytes: 3, TotalFiles: 4, FreeFiles: 5, AvailFiles: 6}
	tests := []struct {
		name string
		m    message
		want [][]uint32
	}{
		{"ACCESS", &AccessArgs{h, 0x3f}, [][]uint32{fh, {0x3f}}},
		{"ACCESS result", &AccessResult{Access: 5}, [][]uint32{{0, 0, 5}}},
		{"LOOKUP failed", &LookupResult{Status: StatusNoEnt}, [][]uint32{{2, 0}}},
		{"LOOKUP result", &LookupResult{Handle: h}, [][]uint32{{0}, fh, {0, 0}}},
		{"CREATE result", &CreateResult{Handle: PostOpFH{true, h}}, [][]uint32{{0, 1}, fh, {0, 0, 0}}},
		{"LINK result", &LinkResult{DirWCC: vfs.WCC{HasPre: true}}, [][]uint32{{0, 0, 1, 0, 0, 0, 0, 0, 0, 0}}},
		{"READLINK result", &ReadlinkResult{Target: []byte("a")}, [][]uint32{{0, 0}, name}},
		{"READ", &ReadArgs{h, 1 << 32, 3}, [][]uint32{fh, {1, 0, 3}}},
		{"READ result", &ReadResult{Count: 3, EOF: true}, [][]uint32{{0, 0, 3, 1, 3}}},
		{"WRITE", &WriteArgs{h, 7, 8, vfs.DataSync, 8}, [][]uint32{fh, {0, 7, 8, 1, 8}}},
		{"SETATTR", &SetAttrArgs{h, vfs.SetAttr{SetAtime: 1, HasGuard: true, Guard: vfs.Time{Sec: 1, Nsec: 2}}},
			[][]uint32{fh, {0, 0, 0, 0, 1, 0, 1, 1, 2}}},
		{"CREATE exclusive", &CreateArgs{Where: at, How: vfs.Exclusive, Verf: vfs.Verifier{1}}, [][]uint32{where, {2, 1 << 24, 0}}},
		{"CREATE guarded", &CreateArgs{Where: at, How: vfs.Guarded}, [][]uint32{where, {1}, unset}},
		{"SYMLINK", &SymlinkArgs{at, vfs.SetAttr{}, []byte("b")}, [][]uint32{where, unset, {1, 0x62000000}}},
		{"MKNOD device", &MknodArgs{Where: at, Type: vfs.TypeBlock, Major: 8, Minor: 1}, [][]uint32{where, {3}, unset, {8, 1}}},
		{"MKNOD fifo", &MknodArgs{Where: at, Type: vfs.TypeFIFO}, [][]uint32{where, {7}, unset}},
		{"MKNOD regular", &MknodArgs{Where: at, Type: vfs.TypeRegular}, [][]uint32{where, {1}}},
		{"RENAME", &RenameArgs{at, at}, [][]uint32{where, where}},
		{"RENAME result", &RenameResult{}, [][]uint32{{0, 0, 0, 0, 0}}},
		{"LINK", &LinkArgs{h, at}, [][]uint32{fh, where}},
		{"READDIR", &ReaddirArgs{h, 5, vfs.Verifier{7: 6}, 512}, [][]uint32{fh, {0, 5, 0, 6, 512}}},
		{"READDIRPLUS", &ReaddirplusArgs{h, 5, vfs.Verifier{7: 6}, 512, 1024}, [][]uint32{fh, {0, 5, 0, 6, 512, 1024}}},
		{"FSSTAT result", &FSStatResult{Stat: statFS, Invarsec: 7},
			[][]uint32{{0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 7}}},
		{"PATHCONF result", &PathConfResult{Conf: PathConf{9, 255, true, false, true, false}}, [][]uint32{{0, 0, 9, 255, 1, 0, 1, 0}}},
		{"COMMIT", &CommitArgs{h, 5, 6}, [][]uint32{fh, {0, 5, 6}}},
		{"COMMIT failed", &CommitResult{Status: StatusIO}, [][]uint32{{5, 0, 0}}},
		{"MNT result", &MntResult{Handle: h, Flavors: [MaxFlavors]uint32{1, 0}, NFlavors: 2}, [][]uint32{{0}, fh, {2, 1, 0}}},
		{"MNT failed", &MntResult{Status: MountAcces}, [][]uint32{{13}}},
	}
	for _, tt := range tests {
		var want xdr.Encoder
		for _, ws := range tt.want {
			for _, w := range ws {
				want.Uint32(w)
			}
		}
		if got := encode(tt.m); !bytes.Equal(got, want.Buf) {
			t.Errorf("%s: % x\nwant % x", tt.name, got, want.Buf)
		}
	}
}
