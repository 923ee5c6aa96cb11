package fusefs

import (
	"bytes"
	"runtime/debug"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Requests by number (enum fuse_opcode of linux/fuse.h).
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetAttr     = 3
	fuseSetAttr     = 4
	fuseReadlink    = 5
	fuseSymlink     = 6
	fuseMknod       = 8
	fuseMkdir       = 9
	fuseUnlink      = 10
	fuseRmdir       = 11
	fuseRename      = 12
	fuseLink        = 13
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseStatFS      = 17
	fuseRelease     = 18
	fuseFsync       = 20
	fuseGetXAttr    = 22
	fuseListXAttr   = 23
	fuseFlush       = 25
	fuseInit        = 26
	fuseOpenDir     = 27
	fuseReadDir     = 28
	fuseReleaseDir  = 29
	fuseFsyncDir    = 30
	fuseAccess      = 34
	fuseCreate      = 35
	fuseInterrupt   = 36
	fuseDestroy     = 38
	fuseIoctl       = 39
	fuseBatchForget = 42
	fuseReadDirPlus = 44
	fuseRename2     = 45

	// enum fuse_notify_code
	notifyInvalInode = 2
	notifyPrune      = 9
)

const (
	pageBytes = 4096 // what the kernel counts a request's pages in, on amd64 and most others
	// maxNames bounds one part of a listing, in bytes: each request in work has as much.
	maxNames = 64 << 10
)

// doorWire is a request as it came, and the reply as it goes.
type doorWire struct {
	buf   []byte // what is read into; nil for one who does not listen
	small []byte // holds a small request
	in    []byte // the request: part of small, or of buf
	large bool   // it is part of buf

	out   [32]uint64 // header and fixed part of the reply
	names []byte     // variable part of the reply: entries of a directory
	iov   []unix.Iovec

	listens bool // owned by the goroutine

	// Guarded by the connection's mu, from leave on.
	unique               uint64
	cancel               chan struct{}
	cancelled, signalled bool
	guarded              bool // a signal alone does not cancel
}

func (w *doorWire) init() {
	w.small = make([]byte, 0, 256)
	w.cancel = make(chan struct{})
}

// renew prepares for another request.
func (w *doorWire) renew() {
	if w.cancelled {
		w.cancel = make(chan struct{})
	}
	w.cancelled, w.signalled, w.guarded = false, false, false
}

// receive takes the n bytes that were read.
func (w *doorWire) receive(n int) {
	w.in, w.large = w.buf[:n], n > smallRequest
	if !w.large {
		w.small = append(w.small[:0], w.in...)
		w.in = w.small
	}
	w.unique = w.header().Unique
}

func (w *doorWire) header() *fuse.InHeader {
	return (*fuse.InHeader)(unsafe.Pointer(unsafe.SliceData(w.in)))
}

// body is where the fixed part of the reply goes.
func (w *doorWire) body() unsafe.Pointer { return unsafe.Pointer(&w.out[2]) }

// name returns the n-th string after the fixed part of the request, which is size bytes.
func (w *doorWire) name(size, n int) (string, bool) {
	rest := w.in[size:]
	for {
		name, more, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return "", false
		}
		if n == 0 {
			return unsafe.String(unsafe.SliceData(name), len(name)), true
		}
		rest, n = more, n-1
	}
}

// reply is what goes back besides the status.
type reply struct {
	fixed int      // bytes of the fixed part
	data  [][]byte // what follows it
	none  bool     // there is no reply
}

// serve serves the request of n bytes that was read.
func (s *doorSlot) serve(n int) {
	c, w := s.fs.conn, &s.wire
	w.receive(n)
	var out reply
	st := s.dispatch(&out)
	if !out.none {
		if st != fuse.OK {
			out = reply{}
		}
		if err := c.send(w, w.unique, st, out.fixed, out.data); err != nil {
			s.fs.logger.Error("fuse: cannot reply", "request", w.header().Opcode, "error", err)
			_ = c.send(w, w.unique, fuse.EIO, 0, nil)
		}
	}
	s.end()
	c.finished(s)
}

// send sends a reply. That nobody waits for it any more is no error.
func (c *doorConn) send(w *doorWire, unique uint64, st fuse.Status, fixed int, data [][]byte) error {
	head := (*fuse.OutHeader)(unsafe.Pointer(&w.out))
	size := int(unsafe.Sizeof(*head)) + fixed
	w.iov = append(w.iov[:0], unix.Iovec{Base: (*byte)(unsafe.Pointer(&w.out)), Len: uint64(size)})
	for _, d := range data {
		if len(d) > 0 {
			w.iov = append(w.iov, unix.Iovec{Base: &d[0], Len: uint64(len(d))})
			size += len(d)
		}
	}
	*head = fuse.OutHeader{Length: uint32(size), Status: -int32(st), Unique: unique}
	_, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(c.fd), uintptr(unsafe.Pointer(&w.iov[0])), uintptr(len(w.iov)))
	switch errno {
	case 0, unix.ENOENT, unix.ENODEV, unix.ECONNABORTED:
		return nil
	}
	return errno
}

// dispatch has the request served; a panic is an error of this request alone.
func (s *doorSlot) dispatch(out *reply) (st fuse.Status) {
	defer func() {
		if v := recover(); v != nil {
			s.fs.logger.Error("fuse: a request panicked", "panic", v, "stack", string(debug.Stack()))
			st = fuse.EIO
		}
	}()
	h := s.wire.header()
	if h.Opcode >= uint32(len(doorCalls)) || doorCalls[h.Opcode].serve == nil {
		s.fs.count[opOther].Add(1)
		return fuse.ENOSYS
	}
	call := &doorCalls[h.Opcode]
	if len(s.wire.in) < call.in {
		s.fs.logger.Error("fuse: bad request", "request", h.Opcode, "bytes", len(s.wire.in), "error", "it is too short")
		return fuse.EIO
	}
	clear(s.wire.out[2 : 2+(call.out+7)/8])
	out.fixed = call.out
	return call.serve(s, s.fs, out)
}

// doorCall says how a kind of request is laid out and who serves it.
type doorCall struct {
	in    int // bytes of the fixed part of the request
	out   int // bytes of the fixed part of the reply
	serve func(s *doorSlot, f *doorFS, out *reply) fuse.Status
}

const headSize = int(unsafe.Sizeof(fuse.InHeader{}))

// fixed is a kind of request without names.
func fixed[In, Out any](serve func(f *doorFS, s *doorSlot, in *In, out *Out) fuse.Status) doorCall {
	var in In
	var out Out
	return doorCall{int(unsafe.Sizeof(in)), int(unsafe.Sizeof(out)), func(s *doorSlot, f *doorFS, _ *reply) fuse.Status {
		return serve(f, s, (*In)(unsafe.Pointer(s.wire.header())), (*Out)(s.wire.body()))
	}}
}

// plain is one whose reply is its status.
func plain[In any](serve func(f *doorFS, s *doorSlot, in *In) fuse.Status) doorCall {
	var in In
	return doorCall{int(unsafe.Sizeof(in)), 0, func(s *doorSlot, f *doorFS, _ *reply) fuse.Status {
		return serve(f, s, (*In)(unsafe.Pointer(s.wire.header())))
	}}
}

// named is one with a name.
func named[In, Out any](serve func(f *doorFS, s *doorSlot, in *In, name string, out *Out) fuse.Status) doorCall {
	var in In
	var out Out
	return doorCall{int(unsafe.Sizeof(in)), int(unsafe.Sizeof(out)), func(s *doorSlot, f *doorFS, _ *reply) fuse.Status {
		name, ok := s.wire.name(int(unsafe.Sizeof(in)), 0)
		if !ok {
			return fuse.EIO
		}
		return serve(f, s, (*In)(unsafe.Pointer(s.wire.header())), name, (*Out)(s.wire.body()))
	}}
}

// none is a reply without a fixed part.
type none struct{}

// Requests that go-fuse has no type for.
type (
	rename1In struct {
		fuse.InHeader
		Newdir uint64
	}
	batchForgetIn struct {
		fuse.InHeader
		Count, _ uint32
	}
	forgetOne struct{ NodeID, N uint64 }
)

// doorCalls are the requests that are served, by number. They are set by init, as serving
// one may start a goroutine that serves others.
var doorCalls [64]doorCall

func init() {
	for n, call := range doorCallTable() {
		doorCalls[n] = call
	}
}

func doorCallTable() map[int]doorCall {
	return map[int]doorCall{
		fuseLookup:  named((*doorFS).Lookup),
		fuseForget:  {int(unsafe.Sizeof(fuse.ForgetIn{})), 0, serveForget},
		fuseGetAttr: fixed((*doorFS).GetAttr),
		fuseSetAttr: fixed((*doorFS).SetAttr),
		fuseReadlink: {headSize, 0, func(s *doorSlot, f *doorFS, out *reply) fuse.Status {
			target, st := f.Readlink(s, s.wire.header())
			out.data = s.wire.one(target)
			return st
		}},
		fuseSymlink: {headSize, int(unsafe.Sizeof(fuse.EntryOut{})), func(s *doorSlot, f *doorFS, _ *reply) fuse.Status {
			name, ok := s.wire.name(headSize, 0)
			target, ok2 := s.wire.name(headSize, 1)
			if !ok || !ok2 {
				return fuse.EIO
			}
			return f.Symlink(s, s.wire.header(), target, name, (*fuse.EntryOut)(s.wire.body()))
		}},
		fuseMknod: named((*doorFS).Mknod),
		fuseMkdir: named((*doorFS).Mkdir),
		fuseUnlink: named(func(f *doorFS, s *doorSlot, h *fuse.InHeader, name string, _ *none) fuse.Status {
			return f.Unlink(s, h, name)
		}),
		fuseRmdir: named(func(f *doorFS, s *doorSlot, h *fuse.InHeader, name string, _ *none) fuse.Status {
			return f.Rmdir(s, h, name)
		}),
		fuseRename: {int(unsafe.Sizeof(rename1In{})), 0, func(s *doorSlot, f *doorFS, _ *reply) fuse.Status {
			in := (*rename1In)(unsafe.Pointer(s.wire.header()))
			return serveRename(s, f, &fuse.RenameIn{InHeader: in.InHeader, Newdir: in.Newdir}, int(unsafe.Sizeof(*in)))
		}},
		fuseRename2: {int(unsafe.Sizeof(fuse.RenameIn{})), 0, func(s *doorSlot, f *doorFS, _ *reply) fuse.Status {
			in := (*fuse.RenameIn)(unsafe.Pointer(s.wire.header()))
			return serveRename(s, f, in, int(unsafe.Sizeof(*in)))
		}},
		fuseLink: named((*doorFS).Link),
		fuseOpen: fixed((*doorFS).Open),
		fuseRead: {int(unsafe.Sizeof(fuse.ReadIn{})), 0, func(s *doorSlot, f *doorFS, out *reply) (st fuse.Status) {
			st = f.Read(s, (*fuse.ReadIn)(unsafe.Pointer(s.wire.header())))
			out.data = s.read.slices()
			return st
		}},
		fuseWrite:  {int(unsafe.Sizeof(fuse.WriteIn{})), int(unsafe.Sizeof(fuse.WriteOut{})), serveWrite},
		fuseStatFS: fixed((*doorFS).StatFs),
		fuseRelease: plain(func(f *doorFS, s *doorSlot, in *fuse.ReleaseIn) fuse.Status {
			s.leave()
			f.Release(in)
			return fuse.OK
		}),
		fuseFsync: plain((*doorFS).Fsync),
		fuseGetXAttr: {headSize, 0, func(_ *doorSlot, f *doorFS, _ *reply) fuse.Status {
			// There are none, and ENOSYS keeps the kernel from asking again before each write.
			f.count[opGetXAttr].Add(1)
			return fuse.ENOSYS
		}},
		fuseFlush:   plain((*doorFS).Flush),
		fuseOpenDir: fixed((*doorFS).OpenDir),
		fuseReadDir: {int(unsafe.Sizeof(fuse.ReadIn{})), 0, func(s *doorSlot, f *doorFS, out *reply) fuse.Status {
			return serveReadDir(s, f, out, false)
		}},
		fuseReadDirPlus: {int(unsafe.Sizeof(fuse.ReadIn{})), 0, func(s *doorSlot, f *doorFS, out *reply) fuse.Status {
			return serveReadDir(s, f, out, true)
		}},
		fuseReleaseDir: plain(func(f *doorFS, _ *doorSlot, in *fuse.ReleaseIn) fuse.Status {
			f.ReleaseDir(in)
			return fuse.OK
		}),
		fuseFsyncDir: plain((*doorFS).Fsync),
		fuseAccess:   plain((*doorFS).Access),
		fuseCreate:   named((*doorFS).Create),
		fuseInterrupt: {int(unsafe.Sizeof(fuse.InterruptIn{})), 0, func(s *doorSlot, f *doorFS, out *reply) fuse.Status {
			st := f.conn.interrupt((*fuse.InterruptIn)(unsafe.Pointer(s.wire.header())).Unique)
			out.none = st == fuse.OK
			return st
		}},
		fuseDestroy:     {headSize, 0, func(*doorSlot, *doorFS, *reply) fuse.Status { return fuse.OK }},
		fuseBatchForget: {int(unsafe.Sizeof(batchForgetIn{})), 0, serveBatchForget},
		fuseIoctl: {headSize, 0, func(_ *doorSlot, f *doorFS, _ *reply) fuse.Status {
			f.count[opOther].Add(1)
			return fuse.Status(unix.ENOTTY) // there are none
		}},
	}
}

// one is a reply's data of one part.
func (w *doorWire) one(b []byte) [][]byte {
	if len(b) == 0 {
		return nil
	}
	return [][]byte{b}
}

func serveForget(s *doorSlot, f *doorFS, out *reply) fuse.Status {
	out.none = true
	s.leave()
	in := (*fuse.ForgetIn)(unsafe.Pointer(s.wire.header()))
	f.Forget(in.NodeId, in.Nlookup)
	return fuse.OK
}

func serveBatchForget(s *doorSlot, f *doorFS, out *reply) fuse.Status {
	out.none = true
	s.leave()
	in := (*batchForgetIn)(unsafe.Pointer(s.wire.header()))
	rest := s.wire.in[unsafe.Sizeof(*in):]
	one := int(unsafe.Sizeof(forgetOne{}))
	for range min(int(in.Count), len(rest)/one) {
		g := (*forgetOne)(unsafe.Pointer(&rest[0]))
		f.Forget(g.NodeID, g.N)
		rest = rest[one:]
	}
	return fuse.OK
}

func serveRename(s *doorSlot, f *doorFS, in *fuse.RenameIn, size int) fuse.Status {
	from, ok := s.wire.name(size, 0)
	to, ok2 := s.wire.name(size, 1)
	if !ok || !ok2 {
		return fuse.EIO
	}
	return f.Rename(s, in, from, to)
}

func serveWrite(s *doorSlot, f *doorFS, _ *reply) (st fuse.Status) {
	in := (*fuse.WriteIn)(unsafe.Pointer(s.wire.header()))
	data := s.wire.in[unsafe.Sizeof(*in):]
	if len(data) < int(in.Size) {
		return fuse.EIO
	}
	out := (*fuse.WriteOut)(s.wire.body())
	out.Size, st = f.Write(s, in, data[:in.Size])
	return st
}

func serveReadDir(s *doorSlot, f *doorFS, out *reply, plus bool) fuse.Status {
	in := (*fuse.ReadIn)(unsafe.Pointer(s.wire.header()))
	size := int(min(in.Size, maxNames))
	if cap(s.wire.names) < size {
		s.wire.names = make([]byte, size)
	}
	list := fuse.NewDirEntryList(s.wire.names[:size:size], in.Offset) // ReadDir may begin again
	st := f.ReadDir(s, in, list, plus)
	out.data = s.wire.one(list.Bytes())
	return st
}
