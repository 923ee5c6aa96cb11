package nfs3

import "loopnfs/internal/xdr"

// PathConfArgs are the arguments of PATHCONF (RFC 1813 §3.3.20).
type PathConfArgs = HandleArgs

// PathConf is what PATHCONF returns.
type PathConf struct {
	LinkMax, NameMax                uint32
	NoTrunc, ChownRestricted        bool
	CaseInsensitive, CasePreserving bool
}

// PathConfResult are the results of PATHCONF; Conf with success only.
type PathConfResult struct {
	Status Status
	Attr   PostOpAttr
	Conf   PathConf
}

// Encode appends r.
func (r *PathConfResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	r.Attr.Encode(e)
	if r.Status == StatusOK {
		r.Conf.encode(e)
	}
}

// Decode decodes r.
func (r *PathConfResult) Decode(d *xdr.Decoder) error {
	*r = PathConfResult{Status: Status(d.Uint32())}
	r.Attr.Decode(d)
	if r.Status == StatusOK {
		r.Conf.decode(d)
	}
	return d.Err()
}

func (c *PathConf) encode(e *xdr.Encoder) {
	e.Uint32(c.LinkMax)
	e.Uint32(c.NameMax)
	e.Bool(c.NoTrunc)
	e.Bool(c.ChownRestricted)
	e.Bool(c.CaseInsensitive)
	e.Bool(c.CasePreserving)
}

func (c *PathConf) decode(d *xdr.Decoder) {
	c.LinkMax, c.NameMax = d.Uint32(), d.Uint32()
	c.NoTrunc, c.ChownRestricted = d.Bool(), d.Bool()
	c.CaseInsensitive, c.CasePreserving = d.Bool(), d.Bool()
}
