package nfsserver

import (
	"slices"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

const (
	// dirLimit is the largest directory listing, in bytes (dtpref), dirPart of the arena
	// is, but no less than dirMin, which is also the largest list of mounts and exports.
	dirLimit = 256 << 10
	dirPart  = 128
	dirMin   = 64 << 10
	// recordMax is more than any record in a pageBuf: an entry of
	// READDIRPLUS, or one of DUMP.
	recordMax = 1536
)

// dirMax returns the largest directory listing, in bytes.
func (c *Config) dirMax() int {
	return min(max(c.Arena.Total()<<alloc.PageShift/dirPart, dirMin), dirLimit)
}

// listPages returns how many pages hold n bytes of records.
func listPages(n int) int { return n/(alloc.PageSize-recordMax) + 1 }

func listBytes(n int) int { return listPages(n) << alloc.PageShift }

// A directory entry with all that READDIRPLUS adds, and the end of the list.
var _ [recordMax - (4 + 8 + 4 + nfs3.MaxName + 1 + 8 + 4 + nfs3.AttrLen + 8 + nfs3.MaxHandle) - 8]byte

// pageBuf collects encoded records in pages of the arena. Each record lies in
// one page, and what is left of a page that the next record does not fit in is
// not part of the data.
type pageBuf struct {
	arena  *alloc.Arena
	enc    xdr.Encoder    // over the page in use
	folios []*alloc.Folio // all pages; those from next on are not used yet
	next   int
	bufs   [][]byte // data of the pages before the one in use
}

// allocPages takes pages for n bytes of records in each of bufs: all pages at once, as nobody waits for memory while holding some.
func (r *request) allocPages(flags gfp.Flags, n int, bufs ...*pageBuf) error {
	each := listPages(n)
	r.folios = slices.Grow(r.folios[:0], each*len(bufs))
	all := r.folios[:each*len(bufs)]
	if err := r.srv.cfg.Arena.AllocInto(r.op.Scope, flags, all); err != nil {
		return vfs.ErrJukebox
	}
	for i, p := range bufs {
		p.folios = append(p.folios[:0], all[i*each:(i+1)*each]...)
		p.turn()
	}
	clear(all)
	return nil
}

// turn makes the next page the one in use.
func (p *pageBuf) turn() {
	b := p.arena.Bytes(p.folios[p.next])
	p.enc.Buf = b[:0]
	p.next++
}

// reserve makes room in one page for a record of n bytes; false if there is no
// page left.
func (p *pageBuf) reserve(n int) bool {
	if n <= cap(p.enc.Buf)-len(p.enc.Buf) {
		return true
	}
	if p.next == len(p.folios) || n > alloc.PageSize {
		return false
	}
	p.cut()
	p.turn()
	return true
}

// cut ends a range of the data, and returns how many there are.
func (p *pageBuf) cut() int {
	if len(p.enc.Buf) > 0 {
		p.bufs = append(p.bufs, p.enc.Buf)
		p.enc.Buf = p.enc.Buf[len(p.enc.Buf):]
	}
	return len(p.bufs)
}

// moveTo gives data and pages to v. Pages that were not used are free.
func (p *pageBuf) moveTo(v *vfs.Vec) {
	v.Bufs = append(v.Bufs, p.bufs[:p.cut()]...)
	p.pinTo(v)
}

// pinTo gives the pages to v, for data that it has.
func (p *pageBuf) pinTo(v *vfs.Vec) {
	for _, f := range p.folios[:p.next] {
		v.Pins = append(v.Pins, f.Num())
	}
	v.Owner = p.arena
	p.arena.PutAll(p.folios[p.next:])
	p.empty()
}

// release gives back all pages.
func (p *pageBuf) release() {
	p.arena.PutAll(p.folios)
	p.empty()
}

func (p *pageBuf) empty() {
	clear(p.folios)
	p.folios, p.bufs, p.next = p.folios[:0], p.bufs[:0], 0
	p.enc.Buf = nil
}
