package nfs3

import "loopnfs/internal/xdr"

// ReadArgs are the arguments of READ (RFC 1813 §3.3.6).
type ReadArgs struct {
	Handle FileHandle
	Offset uint64
	Count  uint32 // bytes; any value, the server has its own limit
}

// Encode appends a.
func (a *ReadArgs) Encode(e *xdr.Encoder) {
	a.Handle.Encode(e)
	e.Uint64(a.Offset)
	e.Uint32(a.Count)
}

// Decode decodes a.
func (a *ReadArgs) Decode(d *xdr.Decoder) error {
	a.Handle.Decode(d)
	a.Offset = d.Uint64()
	a.Count = d.Uint32()
	return d.Err()
}

// ReadResult are the results of READ up to and with the length word of the data;
// DataLen bytes and their padding (xdr.PadLen) follow. All but Attr with success
// only.
type ReadResult struct {
	Status  Status
	Attr    PostOpAttr
	Count   uint32 // bytes read
	EOF     bool
	DataLen uint32 // always Count
}

// Encode appends r, with Count for DataLen.
func (r *ReadResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	r.Attr.Encode(e)
	if r.Status != StatusOK {
		return
	}
	e.Uint32(r.Count)
	e.Bool(r.EOF)
	e.Uint32(r.Count)
}

// Decode decodes r; xdr.ErrBadValue if DataLen is not Count. The caller compares
// Count with what it asked for and with what is left of the record.
func (r *ReadResult) Decode(d *xdr.Decoder) error {
	*r = ReadResult{Status: Status(d.Uint32())}
	r.Attr.Decode(d)
	if r.Status != StatusOK {
		return d.Err()
	}
	r.Count = d.Uint32()
	r.EOF = d.Bool()
	r.DataLen = decodeDataLen(d, r.Count)
	return d.Err()
}

// decodeDataLen decodes the length word of a payload of count bytes.
func decodeDataLen(d *xdr.Decoder, count uint32) uint32 {
	n := d.Uint32()
	if n != count {
		d.Fail(xdr.ErrBadValue)
	}
	return n
}
