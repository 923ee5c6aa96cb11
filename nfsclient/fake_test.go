package nfsclient

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// fake is a small NFS server in memory that misbehaves on demand: it stands for
// what no real server does when asked. Data written UNSTABLE is lost in a crash.
type fake struct {
	t testing.TB
	l net.Listener

	mu    sync.Mutex
	files []*fakeFile // by handle
	verf  vfs.Verifier
	clock int64
	conns map[net.Conn]struct{}
	count map[uint32]int
	calls []fakeCall
	late  [][]byte // replies not sent yet

	// Guarded by mu. before decides what happens to a call; after may damage
	// the reply, record mark included.
	before    func(c *fakeCall) verdict
	after     func(c *fakeCall, reply []byte) []byte
	hold      chan struct{} // nothing is read until it is closed
	maxWrite  uint32
	maxRead   uint32
	committed vfs.Stable
}

type fakeFile struct {
	attr   vfs.Attr
	data   []byte
	stable []byte
	names  map[string]int
	made   vfs.Verifier // by an EXCLUSIVE create
}

type fakeCall struct {
	xid, proc uint32
	stamp     uint32
	port      uint16
	cred      sunrpc.AuthSysCred
}

type verdict int

const (
	serve       verdict = iota
	drop                // carry out, send no reply
	late                // carry out, send the reply when sendLate is called
	ignore              // do not even carry out
	jukebox             // answer NFS3ERR_JUKEBOX
	cut                 // carry out, then close the connection
	garbageArgs         // answer GARBAGE_ARGS
	noSpace             // answer NFS3ERR_NOSPC
)

func startFake(t testing.TB) *fake {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	f := &fake{t: t, l: l, verf: vfs.Verifier{1}, conns: map[net.Conn]struct{}{}, count: map[uint32]int{}, maxWrite: 1 << 20, maxRead: 1 << 20}
	f.add(vfs.TypeDirectory)
	go f.accept(l)
	t.Cleanup(func() { f.l.Close(); f.cutAll() })
	return f
}

func (f *fake) addr() string { return f.l.Addr().String() }

// set changes how f behaves.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) counted(proc uint32) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[proc]
}

// crash loses what was not committed, and all connections.
func (f *fake) crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verf[0]++
	for _, x := range f.files {
		x.data = append([]byte(nil), x.stable...)
		x.attr.Size = uint64(len(x.data))
	}
	f.cutConns()
}

func (f *fake) cutAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutConns()
}

// cutConns closes all connections; what was read from them is not carried out any more.
// mu is held.
func (f *fake) cutConns() {
	for c := range f.conns {
		c.Close()
	}
	clear(f.conns)
}

func (f *fake) add(typ vfs.FileType) int {
	n := len(f.files)
	x := &fakeFile{attr: vfs.Attr{Type: typ, Mode: 0o777, Nlink: 1, Ino: uint64(n + 10)}, names: map[string]int{}}
	f.files = append(f.files, x)
	f.touch(x)
	return n
}

func (f *fake) touch(x *fakeFile) {
	f.clock++
	x.attr.Mtime = vfs.Time{Sec: f.clock}
	x.attr.Ctime = x.attr.Mtime
}

func (f *fake) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.conns[c] = struct{}{}
		f.mu.Unlock()
		go f.talk(c)
	}
}

func (f *fake) talk(c net.Conn) {
	defer func() {
		c.Close()
		f.mu.Lock()
		delete(f.conns, c)
		f.mu.Unlock()
	}()
	in := bufio.NewReader(c)
	for {
		f.mu.Lock()
		hold := f.hold
		f.mu.Unlock()
		if hold != nil {
			<-hold
		}
		var mark [4]byte
		if _, err := io.ReadFull(in, mark[:]); err != nil {
			return
		}
		rec := make([]byte, binary.BigEndian.Uint32(mark[:])&^(1<<31))
		if _, err := io.ReadFull(in, rec); err != nil {
			return
		}
		reply, end := f.answer(c, rec)
		if reply != nil {
			if _, err := c.Write(reply); err != nil {
				return
			}
		}
		if end {
			return
		}
	}
}

// answer carries out one call.
func (f *fake) answer(c net.Conn, rec []byte) (reply []byte, end bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.conns[c]; !ok {
		return nil, true
	}
	d := xdr.NewDecoder(rec)
	var call sunrpc.Call
	if err := sunrpc.DecodeCall(&d, &call); err != nil {
		f.t.Errorf("fake: bad call: %v", err)
		return nil, true
	}
	fc := &fakeCall{xid: call.XID, proc: call.Proc, stamp: call.Cred.Sys.Stamp, port: uint16(c.RemoteAddr().(*net.TCPAddr).Port), cred: call.Cred.Sys}
	how := serve
	if call.Prog == nfs3.Program {
		f.count[call.Proc]++
		f.calls = append(f.calls, *fc)
		if f.before != nil {
			how = f.before(fc)
		}
	}
	if how == ignore {
		return nil, false
	}
	var e xdr.Encoder
	mark := sunrpc.BeginRecord(&e)
	switch {
	case how == garbageArgs:
		sunrpc.ReplyGarbageArgs(&e, call.XID)
	case call.Prog == nfs3.MountProgram:
		sunrpc.ReplySuccess(&e, call.XID)
		if call.Proc == nfs3.MountProcMnt {
			res := nfs3.MntResult{Handle: handleOf(0)}
			res.Encode(&e)
		}
	default:
		sunrpc.ReplySuccess(&e, call.XID)
		f.serve(call.Proc, &d, &e, how)
	}
	sunrpc.EndRecord(&e, mark, 0)
	if f.after != nil && call.Prog == nfs3.Program {
		e.Buf = f.after(fc, e.Buf)
	}
	switch how {
	case drop:
		return nil, false
	case late:
		f.late = append(f.late, e.Buf)
		return nil, false
	case cut:
		return nil, true
	}
	return e.Buf, false
}

// sendLate sends the replies that were held back.
func (f *fake) sendLate() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		for _, reply := range f.late {
			c.Write(reply)
		}
	}
	f.late = nil
}

func handleOf(n int) nfs3.FileHandle {
	h, _ := nfs3.MakeHandle(binary.BigEndian.AppendUint64(nil, uint64(n)))
	return h
}

func (f *fake) file(h *nfs3.FileHandle) *fakeFile {
	return f.files[binary.BigEndian.Uint64(h.Bytes())]
}

// serve carries out one procedure of NFS.
func (f *fake) serve(proc uint32, d *xdr.Decoder, e *xdr.Encoder, how verdict) {
	var status nfs3.Status
	switch how {
	case jukebox:
		status = nfs3.StatusJukebox
	case noSpace:
		status = nfs3.StatusNoSpc
	}
	switch proc {
	case nfs3.ProcGetAttr:
		var a nfs3.GetAttrArgs
		a.Decode(d)
		r := nfs3.GetAttrResult{Status: status, Attr: f.file(&a.Handle).attr}
		r.Encode(e)
	case nfs3.ProcSetAttr:
		f.serveSetAttr(d, e, status)
	case nfs3.ProcAccess:
		var a nfs3.AccessArgs
		a.Decode(d)
		r := nfs3.AccessResult{Status: status, Access: a.Access}
		r.Attr.Set(&f.file(&a.Handle).attr)
		r.Encode(e)
	case nfs3.ProcFSInfo:
		r := nfs3.FSInfoResult{Info: nfs3.FSInfo{RTMax: 1 << 20, RTPref: 1 << 20, WTMax: 1 << 20, WTPref: 1 << 20, MaxFileSize: 1 << 40}}
		r.Encode(e)
	case nfs3.ProcLookup:
		f.serveLookup(d, e, status)
	case nfs3.ProcCreate, nfs3.ProcMkdir, nfs3.ProcSymlink:
		f.serveMake(proc, d, e, status)
	case nfs3.ProcRemove, nfs3.ProcRmdir:
		f.serveRemove(d, e, status)
	case nfs3.ProcRename:
		f.serveRename(d, e, status)
	case nfs3.ProcLink:
		f.serveLink(d, e, status)
	case nfs3.ProcRead:
		f.serveRead(d, e, status)
	case nfs3.ProcWrite:
		f.serveWrite(d, e, status)
	case nfs3.ProcCommit:
		f.serveCommit(d, e, status)
	default:
		f.t.Errorf("fake: no %s", nfs3.ProcName(proc))
	}
}

func (f *fake) wcc(x *fakeFile, change func()) (w vfs.WCC) {
	w.Pre, w.HasPre = x.attr.Pre(), true
	change()
	w.Post, w.HasPost = x.attr, true
	return w
}

func (f *fake) serveSetAttr(d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var a nfs3.SetAttrArgs
	a.Decode(d)
	x := f.file(&a.Handle)
	r := nfs3.WCCResult{Status: status, WCC: f.wcc(x, func() {
		if status == 0 && a.Set.SetSize {
			x.data = resize(x.data, int(a.Set.Size))
			x.stable = resize(x.stable, int(a.Set.Size))
			x.attr.Size = a.Set.Size
		}
		if status == 0 {
			f.touch(x)
		}
	})}
	r.Encode(e)
}

func resize(b []byte, n int) []byte {
	if n <= len(b) {
		return b[:n:n]
	}
	return append(b, make([]byte, n-len(b))...)
}

func (f *fake) serveLookup(d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var a nfs3.LookupArgs
	a.Decode(d)
	n, ok := f.file(&a.Dir).names[string(a.Name)]
	if !ok {
		status = nfs3.StatusNoEnt
	}
	r := nfs3.LookupResult{Status: status, Handle: handleOf(n)}
	r.Attr.Set(&f.files[n].attr)
	r.Encode(e)
}

func (f *fake) serveMake(proc uint32, d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var at nfs3.DirOpArgs
	at.Decode(d)
	dir := f.file(&at.Dir)
	typ := map[uint32]vfs.FileType{nfs3.ProcCreate: vfs.TypeRegular, nfs3.ProcMkdir: vfs.TypeDirectory, nfs3.ProcSymlink: vfs.TypeSymlink}[proc]
	old, exists := dir.names[string(at.Name)]
	var how vfs.CreateMode
	var verf vfs.Verifier
	if proc == nfs3.ProcCreate {
		if how = vfs.CreateMode(d.Uint32()); how == vfs.Exclusive {
			copy(verf[:], d.FixedOpaque(len(verf)))
		}
	}
	mayExist := proc == nfs3.ProcCreate && (how == vfs.Unchecked || how == vfs.Exclusive && exists && verf == f.files[old].made)
	r := nfs3.CreateResult{Status: status}
	switch {
	case exists && !mayExist:
		r.Status = nfs3.StatusExist
	case !exists && status == 0:
		old = f.add(typ)
		f.files[old].made = verf
		dir.names[string(at.Name)] = old
		f.touch(dir)
	}
	r.Handle = nfs3.PostOpFH{Has: true, Handle: handleOf(old)}
	r.Attr.Set(&f.files[old].attr)
	r.Encode(e)
}

func (f *fake) serveRemove(d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var a nfs3.RemoveArgs
	a.Decode(d)
	dir := f.file(&a.Dir)
	if _, ok := dir.names[string(a.Name)]; !ok {
		status = nfs3.StatusNoEnt
	}
	if status == 0 {
		delete(dir.names, string(a.Name))
	}
	r := nfs3.WCCResult{Status: status}
	r.Encode(e)
}

func (f *fake) serveRename(d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var a nfs3.RenameArgs
	a.Decode(d)
	from, to := f.file(&a.From.Dir), f.file(&a.To.Dir)
	n, ok := from.names[string(a.From.Name)]
	if !ok {
		status = nfs3.StatusNoEnt
	} else if status == 0 {
		delete(from.names, string(a.From.Name))
		to.names[string(a.To.Name)] = n
	}
	r := nfs3.RenameResult{Status: status}
	r.Encode(e)
}

func (f *fake) serveLink(d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var a nfs3.LinkArgs
	a.Decode(d)
	dir := f.file(&a.To.Dir)
	if _, ok := dir.names[string(a.To.Name)]; ok {
		status = nfs3.StatusExist
	} else {
		dir.names[string(a.To.Name)] = int(binary.BigEndian.Uint64(a.Handle.Bytes()))
	}
	r := nfs3.LinkResult{Status: status}
	r.Attr.Set(&f.file(&a.Handle).attr)
	r.Encode(e)
}

func (f *fake) serveRead(d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var a nfs3.ReadArgs
	a.Decode(d)
	x := f.file(&a.Handle)
	off := min(a.Offset, uint64(len(x.data)))
	data := x.data[off:]
	data = data[:min(len(data), int(min(a.Count, f.maxRead)))]
	r := nfs3.ReadResult{Status: status, Count: uint32(len(data)), EOF: off+uint64(len(data)) == uint64(len(x.data))}
	r.Attr.Set(&x.attr)
	r.Encode(e)
	if status == 0 {
		e.FixedOpaque(data)
	}
}

func (f *fake) serveWrite(d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var a nfs3.WriteArgs
	if err := a.Decode(d); err != nil {
		f.t.Errorf("fake: bad WRITE: %v", err)
	}
	data := d.FixedOpaque(int(a.Count))
	data = data[:min(uint32(len(data)), f.maxWrite)]
	x := f.file(&a.Handle)
	r := nfs3.WriteResult{Status: status, Count: uint32(len(data)), Committed: f.committed, Verf: f.verf}
	r.WCC = f.wcc(x, func() {
		if status != 0 {
			return
		}
		x.data = resize(x.data, max(len(x.data), int(a.Offset)+len(data)))
		copy(x.data[a.Offset:], data)
		x.attr.Size = uint64(len(x.data))
		f.touch(x)
		if f.committed != vfs.Unstable {
			x.stable = append(x.stable[:0], x.data...)
		}
	})
	r.Encode(e)
}

func (f *fake) serveCommit(d *xdr.Decoder, e *xdr.Encoder, status nfs3.Status) {
	var a nfs3.CommitArgs
	a.Decode(d)
	x := f.file(&a.Handle)
	if status == 0 {
		x.stable = append(x.stable[:0], x.data...)
	}
	r := nfs3.CommitResult{Status: status, Verf: f.verf}
	r.WCC = f.wcc(x, func() {})
	r.Encode(e)
}

// content returns what is stable of the file called name in the root.
func (f *fake) content(name string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]byte(nil), f.files[f.files[0].names[name]].stable...)
}
