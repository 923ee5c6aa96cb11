package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// nameSink keeps as many entries as READDIRPLUS can send, encoded as for
// READDIR: attributes and handles are looked up when the file system has let go
// of the directory.
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
	size := min(args.MaxCount, dirMax)
	if err := r.allocPages(int(size), &r.pages, &r.names.pages); err != nil {
		return err
	}
	r.list.pages = &r.pages
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
	all := r.addPlus(node)
	return r.endList(eof && all)
}

// addPlus appends the entries in r.names with attributes and handles; false if
// they did not all fit.
func (r *request) addPlus(dir vfs.NodeID) bool {
	for _, b := range r.names.pages.seal() {
		d := xdr.NewDecoder(b)
		var e nfs3.EntryPlus
		for d.Remaining() > 0 && nfs3.NextEntry(&d, &e.DirEntry) {
			r.identify(dir, &e)
			if !r.pages.reserve(e.Size()) || !r.list.w.EntryPlus(&e) {
				return false
			}
		}
	}
	return true
}

// identify looks up attributes and handle of an entry. One that is gone by now,
// or may not be looked up, is listed without.
func (r *request) identify(dir vfs.NodeID, e *nfs3.EntryPlus) {
	e.Attr.Has, e.Handle.Has = false, false
	if r.exp.stater != nil && string(e.Name) != "." && string(e.Name) != ".." {
		r.statEntry(dir, e)
		return
	}
	mark := r.nrefs
	ent, err := r.lookupEntry(dir, e.Name)
	if err != nil {
		return
	}
	e.Attr.Set(&ent.Attr)
	if h, err := r.fileHandle(ent.Node); err == nil {
		e.Handle = nfs3.PostOpFH{Has: true, Handle: h}
	}
	if r.nrefs > mark {
		r.nrefs--
		r.exp.FS.Forget(ent.Node, 1)
	}
}

// statEntry is identify for a file system that need not keep the file in memory.
func (r *request) statEntry(dir vfs.NodeID, e *nfs3.EntryPlus) {
	h, err := r.exp.stater.StatEntry(&r.op, dir, borrowed(e.Name), &r.attr, r.handlePrefix())
	if err != nil {
		return
	}
	e.Attr.Set(&r.attr)
	e.Handle.Handle, e.Handle.Has = nfs3.MakeHandle(h)
}
