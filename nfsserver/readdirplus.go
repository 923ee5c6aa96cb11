package nfsserver

import (
	"slices"
	"sync/atomic"
	"syscall"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// pieceLen is how many entries of a READDIRPLUS a worker takes at a time.
const pieceLen = 32

// nameSink keeps as many entries as READDIRPLUS can send, encoded as for
// READDIR: attributes and handles are looked up when the file system has let go
// of the directory. There are at most pieceLen in each range of pages.
type nameSink struct {
	pages     pageBuf
	handleLen int // expected
	room      int // bytes left of maxcount
	dirRoom   int // bytes left of dircount
	n         int
}

// Entry implements vfs.DirSink.
func (s *nameSink) Entry(e *vfs.DirEntry) bool {
	dir := nfs3.EntrySize(len(e.Name))
	size := nfs3.EntryPlusSize(len(e.Name), s.handleLen)
	if s.n > 0 && (dir > s.dirRoom || size > s.room) || !s.pages.reserve(dir) {
		return false
	}
	if s.n%pieceLen == 0 {
		s.pages.cut()
	}
	s.n++
	s.room -= size
	s.dirRoom -= dir
	enc := &s.pages.enc
	enc.Bool(true)
	enc.Uint64(e.Ino)
	enc.Opaque(e.Name)
	enc.Uint64(e.Cookie)
	return true
}

// listing is what a READDIRPLUS has to tell, in pieces that two workers can take.
type listing struct {
	dir    vfs.NodeID
	room   int      // bytes of the reply that are left
	names  [][]byte // for each piece: entries as nameSink has encoded them
	pieces []piece  // what has become of them
	taken  atomic.Int32
}

// piece is some entries with attributes and handles.
type piece struct {
	in       *pageBuf // nil for one that nobody has ended
	from, to int      // ranges of in
	whole    bool     // all did fit
}

// readdirplus answers READDIRPLUS (RFC 1813 §3.3.17).
func readdirplus(r *request) {
	var args nfs3.ReaddirplusArgs
	var res nfs3.ReaddirplusResult
	node, err := r.node(args.Decode(&r.dec), &args.Handle)
	r.postOp(node, &res.DirAttr)
	if err == nil {
		err = r.readdirplus(node, &args, &res)
	}
	res.Status = statusOf(err)
	res.Encode(&r.enc)
}

// readdirplus leaves the entries in r.data.
func (r *request) readdirplus(node vfs.NodeID, args *nfs3.ReaddirplusArgs, res *nfs3.ReaddirplusResult) error {
	size := min(args.MaxCount, uint32(r.srv.dirMax))
	if err := r.allocPages(gfp.Kernel, int(size), &r.pages, &r.names.pages); err != nil {
		return err
	}
	r.names.handleLen, r.names.n = r.exp.handleLen, 0
	r.names.dirRoom = int(args.DirCount)
	if !r.list.w.StartPlus(&r.pages.enc, res, args.DirCount, size) {
		return errTooSmall
	}
	r.names.room = r.list.w.Room()
	verf, eof, err := r.exp.FS.ReadDir(&r.op, node, args.Cookie, args.Verf, &r.names)
	if err != nil {
		return err
	}
	res.Verf = verf
	l := &r.listing
	l.begin(node, r.list.w.Room(), r.names.pages.bufs[:r.names.pages.cut()])
	h := r.callHelper()
	defer func() { r.srv.putHelper(r.await(h)) }() // whatever panics
	r.identifyAll(l)
	h = r.await(h)
	return r.endPlus(eof, h)
}

func (l *listing) begin(dir vfs.NodeID, room int, names [][]byte) {
	l.dir, l.room, l.names = dir, room, names
	l.pieces = slices.Grow(l.pieces[:0], len(names))[:len(names)]
	clear(l.pieces)
	l.taken.Store(0)
}

// identifyAll takes pieces of l until there are none, and puts them into r.pages.
func (r *request) identifyAll(l *listing) {
	for i := int(l.taken.Add(1)) - 1; i < len(l.names); i = int(l.taken.Add(1)) - 1 {
		l.pieces[i] = r.identifyPiece(l.dir, l.names[i])
	}
}

func (r *request) identifyPiece(dir vfs.NodeID, names []byte) piece {
	p := &r.plus
	*p = plusList{r: r, dir: dir, names: xdr.NewDecoder(names), fits: true}
	from := r.pages.cut()
	if r.exp.stater == nil || r.exp.stater.StatEntries(&r.op, dir, p) != nil {
		p.lookUpAll()
	}
	return piece{in: &r.pages, from: from, to: r.pages.cut(), whole: p.fits}
}

// plusList is a piece of a listing that attributes and handles are looked up for. It
// implements vfs.StatList.
type plusList struct {
	r     *request
	dir   vfs.NodeID
	names xdr.Decoder
	e     nfs3.EntryPlus
	fits  bool // so far
}

// step goes to the next entry.
func (p *plusList) step() bool {
	ok := p.fits && p.names.Remaining() > 0 && nfs3.NextEntry(&p.names, &p.e.DirEntry)
	p.e.Attr.Has, p.e.Handle.Has = false, false
	return ok
}

// put appends the entry.
func (p *plusList) put() {
	p.fits = p.r.pages.reserve(p.e.Size()) && p.r.list.w.EntryPlus(&p.e)
}

// Next implements vfs.StatList.
func (p *plusList) Next() (name string, buf []byte) {
	for p.step() {
		if name = borrowed(p.e.Name); name != "." && name != ".." {
			return name, p.r.handlePrefix()
		}
		p.lookUp()
	}
	return "", nil
}

// Tell implements vfs.StatList. An entry that is gone by now, or may not be looked up, is
// listed without attributes and handle.
func (p *plusList) Tell(attr *vfs.Attr, handle []byte, err error) {
	if err == nil {
		p.e.Attr.Set(attr)
		p.e.Handle.Handle, p.e.Handle.Has = nfs3.MakeHandle(handle)
	}
	p.put()
}

// lookUpAll is for a file system that keeps in memory what it tells of.
func (p *plusList) lookUpAll() {
	for p.step() {
		p.lookUp()
	}
}

// lookUp puts the entry with what LOOKUP finds.
func (p *plusList) lookUp() {
	r := p.r
	defer p.put()
	mark := r.nrefs
	ent, err := r.lookupEntry(p.dir, p.e.Name)
	if err != nil {
		return
	}
	p.e.Attr.Set(&ent.Attr)
	if h, err := r.fileHandle(ent.Node); err == nil {
		p.e.Handle = nfs3.PostOpFH{Has: true, Handle: h}
	}
	if r.nrefs > mark {
		r.nrefs--
		r.exp.FS.Forget(ent.Node, 1)
	}
}

// endPlus puts what r and h, if there was one, have found into r.data, in order.
func (r *request) endPlus(eof bool, h *helper) error {
	n := r.listing.collect(&r.data)
	if h != nil && h.accept != sunrpc.Success && len(r.data.Bufs) == 0 {
		return syscall.EREMOTEIO // NFS3ERR_SERVERFAULT: it has panicked
	}
	eof = eof && n == len(r.listing.pieces)
	if len(r.data.Bufs) == 0 && !eof || !r.pages.reserve(listEnd) {
		r.data.Release()
		return errTooSmall
	}
	r.list.w.End(eof)
	r.pages.cut()
	r.data.Bufs = append(r.data.Bufs, r.pages.bufs[len(r.pages.bufs)-1])
	r.pages.pinTo(&r.data)
	if h != nil {
		h.pages.pinTo(&r.data)
	}
	return nil
}

// collect appends pieces to v as far as there is room, and returns how many are whole.
func (l *listing) collect(v *vfs.Vec) (n int) {
	for _, p := range l.pieces {
		if p.in == nil {
			return n
		}
		for _, b := range p.in.bufs[p.from:p.to] {
			if l.room -= len(b); l.room < 0 {
				return n
			}
			v.Bufs = append(v.Bufs, b)
		}
		if !p.whole {
			return n
		}
		n++
	}
	return n
}
