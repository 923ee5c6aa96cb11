package nfsserver

import (
	"loopnfs/alloc"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// demand is what a call needs beyond its slot.
type demand struct {
	// bytes of the arena that it holds, from receipt to reply at most: what
	// WRITE receives, the pages that READ pins, those of a listing.
	bytes int
	// payload is how many bytes of data to receive, behind the first head
	// bytes of the record.
	payload, head int
}

// demandOf returns what c needs, given a decoder at its arguments. A call that
// cannot be decoded needs nothing.
func (s *Server) demandOf(c *sunrpc.Call, d xdr.Decoder) demand {
	switch {
	case c.Vers != nfs3.Version:
		return demand{}
	case c.Prog == nfs3.MountProgram && (c.Proc == nfs3.MountProcDump || c.Proc == nfs3.MountProcExport):
		return demand{bytes: listBytes(dirMin)}
	case c.Prog != nfs3.Program:
		return demand{}
	}
	switch c.Proc {
	case nfs3.ProcRead:
		return s.demandOfRead(&d)
	case nfs3.ProcWrite:
		return s.demandOfWrite(&d)
	case nfs3.ProcReaddir:
		return s.demandOfReaddir(&d)
	case nfs3.ProcReaddirplus:
		return s.demandOfReaddirplus(&d)
	}
	return demand{}
}

func (s *Server) demandOfRead(d *xdr.Decoder) demand {
	var a nfs3.ReadArgs
	if a.Decode(d) != nil {
		return demand{}
	}
	n := min(int(a.Count), s.ioMax)
	return demand{bytes: alloc.Pages(int(a.Offset%alloc.PageSize)+n) << alloc.PageShift}
}

func (s *Server) demandOfWrite(d *xdr.Decoder) demand {
	var a nfs3.WriteArgs
	if a.Decode(d) != nil {
		return demand{}
	}
	n := min(int(a.DataLen), s.ioMax)
	return demand{bytes: alloc.Pages(n) << alloc.PageShift, payload: n, head: d.Offset()}
}

func (s *Server) demandOfReaddir(d *xdr.Decoder) demand {
	var a nfs3.ReaddirArgs
	if a.Decode(d) != nil {
		return demand{}
	}
	return demand{bytes: listBytes(int(min(a.Count, uint32(s.dirMax))))}
}

func (s *Server) demandOfReaddirplus(d *xdr.Decoder) demand {
	var a nfs3.ReaddirplusArgs
	if a.Decode(d) != nil {
		return demand{}
	}
	return demand{bytes: 2 * listBytes(int(min(a.MaxCount, uint32(s.dirMax))))}
}
